"""The newest frames of one upstream: what a reconnect needs of them, in bounded memory."""

from collections import deque

from protocol.event_stream import position

FRAMES = 16
FRAME_BYTES = 16 * 1024
"""A larger frame is not kept: only its seq is, read at once."""


class Recent:
    """At most FRAMES frames of FRAME_BYTES. Filled by the loop, read by the flow's thread as well."""

    def __init__(self) -> None:
        self._kept: deque[bytes | int | None] = deque(maxlen=FRAMES)

    def add(self, frame: bytes) -> None:
        """A frame was received."""
        self._kept.append(frame if len(frame) <= FRAME_BYTES else position(frame))

    def newest(self) -> bytes | None:
        """The last frame, where it is small, as error frames are."""
        last = self._kept[-1] if self._kept else None
        return last if isinstance(last, bytes) else None

    def drop_newest(self) -> None:
        """The last frame was none that counts."""
        self._kept.pop()

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def last_seq(self) -> int | None:
        """The highest seq of the frames that we understand."""
        # a copy: a deque that grows meanwhile is an error
        found = [position(one) if isinstance(one, bytes) else one for one in tuple(self._kept)]
        return max((seq for seq in found if seq is not None), default=None)
