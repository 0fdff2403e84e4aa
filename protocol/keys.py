"""Public keys of the network: did:key and DID-document forms → PublicKey; signatures → bool.

Never raises on wire input: an unsupported key is None. The curves are secp256k1 and P-256. A signature is 64 bytes, r‖s, over
SHA-256. One with high S is refused, because anyone can derive it from the one with low S.
"""

from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import coincurve
import libipld
from coincurve._libsecp256k1 import ffi, lib
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECP256K1: Final = b"\xe7\x01"
P256: Final = b"\x80\x24"
SIGNATURE_SIZE: Final = 64
_POINT_SIZE: Final = 33
_MAX_TEXT: Final = 256
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_LEGACY_TYPES: Final = {
    "EcdsaSecp256k1VerificationKey2019": SECP256K1,
    "EcdsaSecp256r1VerificationKey2019": P256,
}
_CONTEXT: Final = coincurve.GLOBAL_CONTEXT.ctx
_prehashed = ec.ECDSA(Prehashed(SHA256()))


class PublicKey:
    """A parsed key; `did_key` is its canonical form."""

    __slots__ = ("_key", "_parsed", "did_key")

    def __init__(self, prefix: bytes, point: bytes) -> None:
        """`point`: compressed or uncompressed SEC1. Raises ValueError if it is not on the curve."""
        if prefix == SECP256K1:
            self._key: coincurve.PublicKey | ec.EllipticCurvePublicKey = coincurve.PublicKey(point)
            self._parsed: Any = self._key.public_key
            compressed = self._key.format(compressed=True)
        else:
            self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            self._parsed = None
            compressed = self._key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        self.did_key = f"did:key:{libipld.encode_multibase('z', prefix + compressed)}"

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether this key made `signature` over SHA-256(message). About 45 µs (secp256k1) or 90 µs (P-256)."""
        if len(signature) != SIGNATURE_SIZE:
            return False
        digest = sha256(message).digest()
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
            if not 0 < s <= _P256_ORDER // 2 or not 0 < r < _P256_ORDER:
                return False
            try:
                self._key.verify(encode_dss_signature(r, s), digest, _prehashed)
            except InvalidSignature:
                return False
            return True
        # coincurve accepts DER only; libsecp256k1 accepts the compact form, and refuses high S
        parsed = ffi.new("secp256k1_ecdsa_signature *")
        if not lib.secp256k1_ecdsa_signature_parse_compact(_CONTEXT, parsed, signature):
            return False
        return bool(lib.secp256k1_ecdsa_verify(_CONTEXT, parsed, digest, self._parsed))


@lru_cache(maxsize=16_384)
def parse_did_key(did_key: str) -> PublicKey | None:
    """`did:key:z…` → key, cached. None if it is malformed or of another curve."""
    if not did_key.startswith("did:key:z") or len(did_key) > _MAX_TEXT:
        return None
    raw = _multibase(did_key[8:])
    if raw is None or len(raw) != _POINT_SIZE + 2 or raw[:2] not in (SECP256K1, P256):
        return None
    return _key(raw[:2], raw[2:])


def verify(did_key: str, message: bytes, signature: bytes) -> bool:
    """Whether the key (did:key) made the signature. False if the key cannot be parsed."""
    key = parse_did_key(did_key)
    return key is not None and key.verify(message, signature)


def method_did_key(method_type: str, multibase: str) -> str | None:
    """`type` and `publicKeyMultibase` of a verification method → did:key, or None.

    A Multikey has its curve in a prefix. The types of 2019 name the curve and hold only the point.
    """
    if len(multibase) > _MAX_TEXT:
        return None
    if method_type == "Multikey":
        key = parse_did_key(f"did:key:{multibase}")
    else:
        prefix = _LEGACY_TYPES.get(method_type)
        point = _multibase(multibase)
        key = _key(prefix, point) if prefix and point else None
    return key.did_key if key else None


def _multibase(text: str) -> bytes | None:
    if not text.startswith("z"):
        return None
    try:
        raw: bytes = libipld.decode_multibase(text)[1]
    except ValueError:
        return None
    return raw


def _key(prefix: bytes, point: bytes) -> PublicKey | None:
    try:
        return PublicKey(prefix, point)
    except ValueError:
        return None
