"""Labels → the JSON messages of `label_live`. Pure."""

from protocol.encoding.unpadded_base64 import to_base64
from protocol.labels import Label
from schemas import wire


def label_value(label: Label, seq: int, labeler: str) -> bytes:
    """The message of a label from the frame with this seq of the labeler at this URL."""
    return wire.encode(
        wire.LabelEvent(
            seq=seq,
            src=label.src,
            uri=label.uri,
            val=label.val,
            cts=label.cts,
            cid=label.cid,
            neg=label.neg,
            exp=label.exp,
            sig=None if label.sig is None else to_base64(label.sig),
            relay=labeler,
        )
    )
