"""Outside values in texts of ours: bounded, and never rendered where they are not scalars.

`repr` of what a peer sent recurses as deep as the peer likes and takes as much memory as it likes. Every rejection, log line
and error that quotes an outside value goes through `shown`.
"""

from traceback import extract_tb

_MAX_INT = 1 << 64


def shown(value: object, most: int = 200) -> str:
    """A scalar as Python writes it, cut to about `most` characters; the type's name of anything else."""
    if type(value) is str:
        return repr(value[:most])[: most + 2]  # escapes make it longer
    if type(value) is bytes:
        return f"{len(value)} bytes"
    if value is None or type(value) is bool or type(value) is float:
        return str(value)
    if type(value) is int:
        return str(value) if -_MAX_INT < value < _MAX_INT else "an integer of more than 64 bits"
    return f"a value of type {type(value).__name__}"


def failure(err: BaseException) -> str:
    """Name and place of an exception that a frame caused. Not its message, which may quote the frame."""
    frames = extract_tb(err.__traceback__, limit=-1)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(err).__name__}{where}"
