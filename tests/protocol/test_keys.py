"""Keys and signatures of both curves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.keys import method_did_key, parse_did_key, verify
from tests.support.tiny_repo import Key, N, base58

CURVES = ["secp256k1", "p256"]
LEGACY = {"secp256k1": "EcdsaSecp256k1VerificationKey2019", "p256": "EcdsaSecp256r1VerificationKey2019"}


@pytest.fixture(params=CURVES)
def key(request: pytest.FixtureRequest) -> Key:
    return Key(request.param)


@pytest.mark.parametrize(
    "did_key",
    [
        "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",
        "did:key:zQ3shtxV1FrJfhqE1dvxYRcCknWNjHc3c5X1y3ZSoPDi2aur2",
        "did:key:zDnaerx9CtbPJ1q36T5Ln5wYt3MQYeGRG5ehnPAmxcf5mDZpv",
        "did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169",
    ],
)
def test_known_keys_parse_to_themselves(did_key: str) -> None:
    """Examples of the did:key specification, both curves."""
    parsed = parse_did_key(did_key)
    assert parsed is not None
    assert parsed.did_key == did_key


def test_a_signature_holds_for_its_message_and_key_only(key: Key) -> None:
    signature = key.sign(b"message")
    assert verify(key.did_key, b"message", signature)
    assert not verify(key.did_key, b"massage", signature)
    assert not verify(Key(key.curve).did_key, b"message", signature)
    for other in CURVES:
        assert not verify(Key(other).did_key, b"message", signature)


def test_any_changed_byte_breaks_a_signature(key: Key) -> None:
    signature = key.sign(b"message")
    for at in range(64):
        damaged = bytearray(signature)
        damaged[at] ^= 1
        assert not verify(key.did_key, b"message", bytes(damaged))


def test_high_s_is_refused(key: Key) -> None:
    """The other valid form of the same signature must not pass."""
    for at in range(8):
        message = b"%d" % at
        low = key.sign(message)
        high = low[:32] + (N[key.curve] - int.from_bytes(low[32:])).to_bytes(32)
        assert verify(key.did_key, message, low)
        assert not verify(key.did_key, message, high)


@pytest.mark.parametrize("size", [0, 1, 63, 65, 70, 72])
def test_other_sizes_are_refused(key: Key, size: int) -> None:
    assert not verify(key.did_key, b"message", (key.sign(b"message") + bytes(10))[:size])


def test_degenerate_signatures_are_refused(key: Key) -> None:
    good = key.sign(b"message")
    for bad in (
        bytes(64),
        good[:32] + bytes(32),
        bytes(32) + good[32:],
        b"\xff" * 64,
        N[key.curve].to_bytes(32) + good[32:],
    ):
        assert not verify(key.did_key, b"message", bad)


def test_forms_of_did_documents(key: Key) -> None:
    assert method_did_key("Multikey", key.multibase) == key.did_key
    assert method_did_key(LEGACY[key.curve], base58(key.long_point)) == key.did_key
    assert method_did_key(LEGACY[key.curve], base58(key.point)) == key.did_key
    other = LEGACY[CURVES[1 - CURVES.index(key.curve)]]
    assert method_did_key(other, base58(key.long_point)) is None
    assert method_did_key("Ed25519VerificationKey2020", key.multibase) is None
    assert method_did_key("Multikey", base58(key.long_point)) is None


def test_a_malformed_key_is_not_parsed(key: Key) -> None:
    prefix = b"\xe7\x01" if key.curve == "secp256k1" else b"\x80\x24"
    for raw in (
        b"",
        prefix,
        prefix + key.point[:-1],
        prefix + key.point + b"\0",
        prefix + key.long_point,
        prefix + b"\x02" + b"\xff" * 32,
        b"\xed\x01" + key.point[1:],
    ):
        assert parse_did_key("did:key:" + base58(raw)) is None
    for text in (
        "",
        "did:key:",
        "did:key:z",
        key.multibase,
        key.did_key + "1",
        key.did_key[:-1] + "0",
        "did:key:m" + key.multibase[1:],
        key.did_key + "\n",
        "did:key:z" + "1" * 5000,
    ):
        assert parse_did_key(text) is None
        assert not verify(text, b"message", bytes(64))


@given(st.text(), st.binary(max_size=80))
def test_nothing_raises(text: str, signature: bytes) -> None:
    """G7."""
    for did_key in (text, "did:key:z" + text, "did:key:zQ3sh" + text):
        parse_did_key(did_key)
        verify(did_key, b"", signature)
    method_did_key("Multikey", text)
    method_did_key("EcdsaSecp256k1VerificationKey2019", "z" + text)


def test_random_64_bytes_never_verify() -> None:
    keys = [Key(curve) for curve in CURVES]

    @given(st.binary(min_size=64, max_size=64))
    def check(signature: bytes) -> None:
        assert not any(verify(key.did_key, b"message", signature) for key in keys)

    check()
