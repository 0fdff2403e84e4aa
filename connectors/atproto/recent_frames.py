"""The newest frames of one upstream, in bounded memory. A reconnect needs their highest seq and the last error frame."""

from collections import deque

from protocol.event_stream import position

FRAMES = 16
FRAME_BYTES = 16 * 1024
"""Only the seq of a larger frame is kept."""


class RecentFrames:
    """At most FRAMES frames of FRAME_BYTES. The loop adds frames; the flow's thread may call `last_seq` concurrently.

    Frames are decoded on demand: decoding each one here would cost the loop about 4 µs.
    """

    def __init__(self) -> None:
        self._kept: deque[bytes | int | None] = deque(maxlen=FRAMES)

    def add(self, frame: bytes) -> None:
        self._kept.append(frame if len(frame) <= FRAME_BYTES else position(frame))

    def newest(self) -> bytes | None:
        """The last frame, or None if it was too large to keep. Error frames are small."""
        last = self._kept[-1] if self._kept else None
        return last if isinstance(last, bytes) else None

    def drop_newest(self) -> None:
        self._kept.pop()

    def clear(self) -> None:
        self._kept.clear()

    def last_seq(self) -> int | None:
        """The highest seq of the frames that have one (`event_stream.position`)."""
        # iterate over a copy: appending to a deque during iteration raises RuntimeError
        found = [position(one) if isinstance(one, bytes) else one for one in tuple(self._kept)]
        return max((seq for seq in found if seq is not None), default=None)
