"""Input and output of `project`."""

from typing import Any

import msgspec

Row = tuple[str | None, ...]
Record = dict[str, Any]


class Source(msgspec.Struct, frozen=True):  # Structs: frozen dataclasses cost a third of the projection of a like
    """One record of the mirror.

    `json` as `protocol.encoding.record_json` wrote it; `indexed_at` as `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    """

    did: str
    collection: str
    rkey: str
    cid: str
    json: bytes | str
    indexed_at: str

    @property
    def uri(self) -> str:
        return f"at://{self.did}/{self.collection}/{self.rkey}"


class Notice(msgspec.Struct, frozen=True):
    """A candidate for `notification`; author, recordUri and recordCid are those of the source.

    `did`: the receiver, which is the authority of an AT-URI, so possibly a handle. `subject`: the column reasonSubject, an
    AT-URI without a trailing slash.
    """

    did: str
    reason: str
    subject: str | None
    sort_at: str


class Reply(msgspec.Struct, frozen=True):
    """AT-URIs of what a post answers; with the records there, they decide invalidReplyRoot and violatesThreadGate."""

    root: str
    parent: str


class Projected(msgspec.Struct, frozen=True):
    """The rows of one record. `invalid` set: no rows; the record is out of the AppView, and out of `bsky.record`.

    rows        table → rows in the order of `rows.COLUMNS`; no key for a table without rows
    notices     at most one per receiver and reason, none for a duplicate. Of a post, at most one per receiver: reply
                notices, which need the parents' authors, follow these and skip receivers that have one. Never for the
                author, except `follow` and `verified`. Reason `quote` does not hold while the post violates embedding rules:
                then a reply notice to the same receiver does.
    sort_at     least(createdAt, indexedAt)
    mentions    DIDs that a post's facets mention: a gate with the mention rule admits them
    """

    uri: str
    rows: dict[str, list[Row]] = {}
    notices: list[Notice] = []
    sort_at: str = ""
    reply: Reply | None = None
    mentions: tuple[str, ...] = ()
    invalid: str | None = None
