import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.did_document import IdentityReason, IdentityRejected, ResolvedIdentity, document_url, parse_document
from tests.support.tiny_repo import DID, Key, base58

KEY, LABEL_KEY, OTHER = Key(), Key("p256"), Key()


def document(**changes: object) -> dict:
    return {
        "@context": ["https://www.w3.org/ns/did/v1"],
        "id": DID,
        "alsoKnownAs": ["at://Alice.Example.COM", "at://second.example.com"],
        "verificationMethod": [
            {"id": f"{DID}#other", "type": "Multikey", "controller": DID, "publicKeyMultibase": OTHER.multibase},
            {"id": f"{DID}#atproto", "type": "Multikey", "controller": DID, "publicKeyMultibase": KEY.multibase},
            {"id": "#atproto_label", "type": "Multikey", "controller": DID, "publicKeyMultibase": LABEL_KEY.multibase},
        ],
        "service": [
            {"id": "#bsky_fg", "type": "BskyFeedGenerator", "serviceEndpoint": "https://feed.example.com"},
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://PDS.example.com/"},
            {"id": f"{DID}#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": "http://127.0.0.1:2583"},
        ],
    } | changes


def parsed(**changes: object) -> ResolvedIdentity:
    identity = parse_document(DID, document(**changes))
    assert isinstance(identity, ResolvedIdentity)
    return identity


def test_a_whole_document() -> None:
    assert parsed() == ResolvedIdentity(
        did=DID,
        pds="https://pds.example.com",
        handle="alice.example.com",
        signing_key=KEY.did_key,
        label_key=LABEL_KEY.did_key,
        labeler="http://127.0.0.1:2583",
    )


def test_the_key_is_never_simply_the_first() -> None:
    identity = parsed(
        verificationMethod=[{"id": f"{DID}#other", "type": "Multikey", "publicKeyMultibase": OTHER.multibase}]
    )
    assert identity.signing_key is None
    assert identity.label_key is None
    foreign = [{"id": "did:plc:zzz#atproto", "type": "Multikey", "publicKeyMultibase": OTHER.multibase}]
    assert parsed(verificationMethod=foreign).signing_key is None


def test_legacy_keys() -> None:
    for key, kind in ((Key(), "EcdsaSecp256k1VerificationKey2019"), (Key("p256"), "EcdsaSecp256r1VerificationKey2019")):
        method = {"id": "#atproto", "type": kind, "publicKeyMultibase": base58(key.long_point)}
        assert parsed(verificationMethod=[method]).signing_key == key.did_key


def test_another_did_is_rejected() -> None:
    for doc, reason in (
        (document(id="did:plc:somebodyelse"), IdentityReason.DID_MISMATCH),
        (document(id=None), IdentityReason.DID_MISMATCH),
        ({}, IdentityReason.DID_MISMATCH),
        ([], IdentityReason.NOT_AN_OBJECT),
        (None, IdentityReason.NOT_AN_OBJECT),
        ("x", IdentityReason.NOT_AN_OBJECT),
    ):
        rejected = parse_document(DID, doc)
        assert isinstance(rejected, IdentityRejected)
        assert rejected.reason is reason


@pytest.mark.parametrize("field", ["alsoKnownAs", "verificationMethod", "service"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "x",
        {},
        [],
        [None, 5, "x", {}],
        [{"id": 5, "type": 5}],
        [{"id": "#atproto"}, {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer"}],
    ],
)
def test_malformed_parts_are_absent(field: str, value: object) -> None:
    identity = parsed(**{field: value})
    absent = {"alsoKnownAs": identity.handle, "verificationMethod": identity.signing_key, "service": identity.pds}
    assert absent[field] is None
    assert sum(v is None for v in absent.values()) == 1


@pytest.mark.parametrize(
    "endpoint",
    ["", "pds.example.com", "ftp://pds.example.com", "https://", "https://u@pds.example.com", "https://u:p@pds.example.com", "https://pds.example.com/x",
     "https://pds.example.com?x", "https://pds.example.com#x", "https://pds.example.com:99999", "https://pds.example.com:x", "https://[::1]", "https://2130706433",
     "https://0x7f.1", "https://1.2.3", "https://1.2.3.256", "https://a..b", "https://a b", "https://-a.b", "https://a.b\\c", "javascript:alert(1)", "https://" + "a" * 2000, 5, None],
)  # fmt: skip
def test_endpoints_that_are_no_origin_are_absent(endpoint: object) -> None:
    """G9."""
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}
    assert parsed(service=[service]).pds is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://pds.example.com",
        "http://localhost:2583",
        "http://pds:3000",
        "http://127.0.0.1:1",
        "https://my_pds.example.com",
    ],
)
def test_endpoints_that_are_origins(endpoint: str) -> None:
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}
    assert parsed(service=[service]).pds == endpoint
    wrong = {"id": "#atproto_pds", "type": "SomethingElse", "serviceEndpoint": endpoint}
    assert parsed(service=[wrong]).pds is None
    for foreign in ("did:plc:zzz#atproto_pds", "#other", "atproto_pds"):
        assert parsed(service=[{**service, "id": foreign}]).pds is None


def test_document_urls() -> None:
    assert document_url(DID, "https://plc.directory/") == f"https://plc.directory/{DID}"
    assert document_url("did:web:example.com", "") == "https://example.com/.well-known/did.json"
    assert document_url("did:web:example.com%3A8443", "") == "https://example.com:8443/.well-known/did.json"
    assert document_url("did:web:localhost%3A2583", "") == "http://localhost:2583/.well-known/did.json"
    for did in (
        "",
        "did:web:",
        "did:web:example.com:user:alice",
        "did:web:example.com%2Fpath",
        "did:web:u%40example.com",
        "did:web:a%3A99999",
        "did:web:a%3A",
        "did:web:1.2",
        "did:key:z6Mk",
        "x",
    ):
        assert document_url(did, "https://plc.directory") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: (
        st.lists(v) | st.dictionaries(st.sampled_from(["id", "type", "serviceEndpoint", "publicKeyMultibase", "x"]), v)
    ),
    max_leaves=8,
)


@given(JSON, JSON, JSON, st.text())
def test_nothing_raises(names: object, methods: object, services: object, endpoint: str) -> None:
    """G7."""
    parse_document(DID, document(alsoKnownAs=names, verificationMethod=methods, service=services))
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://" + endpoint}
    parse_document(DID, document(service=[service]))
    document_url("did:web:" + endpoint, endpoint)
    document_url(endpoint, endpoint)
