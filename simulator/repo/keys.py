"""Signing keys of accounts and labelers: secp256k1 or P-256, derived from a seed.

Signatures are deterministic (RFC 6979), so that commit CIDs are reproducible. As the repository specification requires, they
are 64 bytes, r || s, with low S.
"""

import hashlib
from typing import Literal, Protocol

import coincurve
import libipld
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Curve = Literal["secp256k1", "p256"]

_MULTICODEC = {"secp256k1": b"\xe7\x01", "p256": b"\x80\x24"}
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class SigningKey(Protocol):
    """A private key that signs repository commits and labels."""

    curve: Curve

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over SHA-256 of the message."""
        ...

    def public_point(self) -> bytes:
        """The compressed public point, 33 bytes."""
        ...


class Secp256k1Key:
    """A secp256k1 key, the usual kind of account key."""

    curve: Curve = "secp256k1"
    __slots__ = ("_private",)

    def __init__(self, secret: bytes) -> None:
        self._private = coincurve.PrivateKey(secret)

    def sign(self, message: bytes) -> bytes:
        return self._private.sign_recoverable(message)[:64]

    def public_point(self) -> bytes:
        return self._private.public_key.format(compressed=True)


class P256Key:
    """A P-256 key: valid but rare."""

    curve: Curve = "p256"
    __slots__ = ("_private",)

    def __init__(self, secret: bytes) -> None:
        self._private = ec.derive_private_key(int.from_bytes(secret, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self._private.sign(message, _ECDSA_SHA256))
        return r.to_bytes(32, "big") + min(s, _P256_ORDER - s).to_bytes(32, "big")

    def public_point(self) -> bytes:
        return self._private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def derive_key(curve: Curve, *parts: object) -> SigningKey:
    """The key derived from these parts (seed, index, version, …). The same parts give the same key."""
    secret = hashlib.sha256("/".join(map(str, ("key", *parts))).encode()).digest()
    return Secp256k1Key(secret) if curve == "secp256k1" else P256Key(secret)


def multikey(key: SigningKey) -> str:
    """`publicKeyMultibase` of a Multikey verification method: base58btc of multicodec prefix and point."""
    return libipld.encode_multibase("z", _MULTICODEC[key.curve] + key.public_point())
