"""Filling a skipped range: which page to request next, and what is left of the range. Pure; never raises on wire input.

The range is cut into pieces, and the widest piece is next. A piece whose page fails is halved if its cursors allow it
(numbers, and `<millis>::<did>`). So everything readable is read, and the range shrinks to the part that fails. A round ends
after a number of failures, fewer with every earlier round; the rest is left for the next round.
"""

from dataclasses import dataclass, field

from steps.listing.list_page import PageFailure, PageTrouble, RepoPage
from steps.listing.skip_ahead import middle, order, reached

FIRST_FAILURES = 36  # of a range's first round
LEAST_FAILURES = 12  # of any round: a range of 4,000 is halved to one cursor
MAX_REQUESTS = 256  # of one round
MAX_PIECES = 4  # left of one range; those nearest to each other are joined


@dataclass(frozen=True, slots=True)
class Piece:
    """Cursors from..to, requested in pages of `size`."""

    from_cursor: str
    to_cursor: str
    size: int


@dataclass(slots=True)
class RangeFill:
    """One round. `furthest`: the last cursor that the upstream returned, or ''; `detail`: the newest failure."""

    to_cursor: str
    page_size: int
    failures_left: int
    pending: list[Piece]
    closed: list[Piece] = field(default_factory=list)
    requests_left: int = MAX_REQUESTS
    failures: int = 0
    entries: int = 0
    furthest: str = ""
    detail: str = ""
    stopped: bool = False

    def next(self) -> Piece | None:
        """The piece to request, at its `from_cursor`; None: the round is over."""
        if self.stopped or not self.pending or self.failures_left <= 0 or self.requests_left <= 0:
            return None
        return max(self.pending, key=_width)

    def answered(self, piece: Piece, page: RepoPage) -> None:
        """Record the page of `piece`."""
        self.requests_left -= 1
        self.entries += len(page.entries) + page.rejected
        following = page.cursor
        self.pending.remove(piece)
        if following is None:  # the list ends here
            self.pending = [one for one in self.pending if not reached(one.from_cursor, piece.from_cursor)]
        elif following == piece.from_cursor or reached(piece.from_cursor, following):
            self.pending.append(piece)
            self.failed(piece, PageFailure(PageTrouble.MALFORMED, "a cursor that does not move"))
        else:
            if not self.furthest or reached(following, self.furthest):
                self.furthest = following
            if not reached(following, piece.to_cursor):
                self.pending.append(Piece(following, piece.to_cursor, min(piece.size * 2, self.page_size)))

    def failed(self, piece: Piece, failure: PageFailure) -> None:
        """Record that `piece` returned no page."""
        self.requests_left -= 1
        self.failures += 1
        self.detail = failure.detail
        if failure.trouble in (PageTrouble.THROTTLED, PageTrouble.UNREACHABLE):  # not caused by the range
            self.stopped = True
            return
        self.failures_left -= 1
        self.pending.remove(piece)
        halves = _halves(piece)
        self.pending += halves
        if not halves:
            self.closed.append(piece)

    def left(self) -> list[tuple[str, str]]:
        """What is unread, as (from, to), in order; adjacent pieces are joined."""
        pieces = sorted((*self.pending, *self.closed), key=lambda one: order(one.from_cursor))
        left = [(piece.from_cursor, piece.to_cursor) for piece in pieces]
        joined: list[tuple[str, str]] = []
        for start, end in left:
            if joined and reached(joined[-1][1], start):
                joined[-1] = joined[-1][0], end
            else:
                joined.append((start, end))
        while len(joined) > MAX_PIECES:
            at = min(range(len(joined) - 1), key=lambda n: _span(joined[n][1], joined[n + 1][0]))
            joined[at : at + 2] = [(joined[at][0], joined[at + 1][1])]
        return joined


def begin(from_cursor: str, to_cursor: str, page_size: int, retry_count: int) -> RangeFill:
    """A new round; `retry_count`: rounds before it."""
    failures = max(LEAST_FAILURES, FIRST_FAILURES >> min(retry_count, 10))
    return RangeFill(to_cursor, page_size, failures, [Piece(from_cursor, to_cursor, page_size)])


def _halves(piece: Piece) -> list[Piece]:
    """Both halves; the same piece in smaller pages if it cannot be cut; [] if neither is possible."""
    half = max(1, piece.size // 2)
    cut = middle(piece.from_cursor, piece.to_cursor)
    if cut is not None:
        parts = (piece.from_cursor, cut), (cut, piece.to_cursor)
        return [Piece(start, end, min(half, max(1, int(_span(start, end))))) for start, end in parts]
    if piece.size > 1:
        return [Piece(piece.from_cursor, piece.to_cursor, half)]
    return []


def _width(piece: Piece) -> tuple[float, int]:
    return _span(piece.from_cursor, piece.to_cursor), piece.size


def _span(start: str, end: str) -> float:
    return max(0.0, float(order(end)[0] - order(start)[0]))
