"""Base64 without padding, as the data model's JSON and the messages write byte strings. Pure."""

from base64 import b64decode, b64encode


def to_base64(data: bytes) -> str:
    return b64encode(data).rstrip(b"=").decode()


def from_base64(text: str) -> bytes:
    """Unpadded base64 → bytes. Raises ValueError (`binascii.Error`) on text of an impossible length."""
    return b64decode(text + "=" * (-len(text) % 4))
