"""Labels in their table: the newest cts of each (src, uri, val, cid) wins, in whatever order and however often they arrive."""

import random
import string
from itertools import permutations

from flows.index.store import IndexStore
from flows.labels.encode import label_value
from protocol.labels import MAX_KEY_BYTES, Label, parse_label
from schemas import wire
from schemas.settings import Settings

SRC, URI = "did:plc:labeler", "at://did:plc:a/app.bsky.feed.post/3k"


def label(seq: int, day: int, *, neg: bool = False, cid: str | None = None) -> wire.LabelEvent:
    return wire.LabelEvent(seq=seq, src=SRC, uri=URI, val="spam", cts=f"2026-01-0{day}T00:00:00.000Z", neg=neg, cid=cid)


def test_the_newest_label_wins_in_any_order_of_arrival(database: str) -> None:
    """The negation may come before what it negates, and is kept as a row; a cid is a label of its own."""
    history = [label(1, 1), label(2, 2, neg=True), label(3, 3), label(4, 4, neg=True), label(5, 1, cid="c")]
    tables = IndexStore(Settings(database=database), "cluster", None)
    tables.starts({})
    said = []
    for order in permutations(history):
        with tables.transaction() as transaction:
            transaction.db.execute("truncate sluice.label")
            transaction.labels(order[:2])
            for one in order[2:]:
                transaction.labels([one])
            transaction.labels(order[:1])  # a replay
            said.append(transaction.db.execute("select cid, neg, seq from sluice.label order by cid").fetchall())
    tables.close()
    assert said == [[("", True, 4), ("c", False, 5)]] * 120


def test_labels_on_web_pages_handles_and_the_longest_subjects_have_rows(database: str) -> None:
    """H2: what the edge lets through fits the index of the table's key, and is found by its subject."""
    room = MAX_KEY_BYTES - len(SRC) - len("spam") - len("https://")
    noise = "".join(random.Random(6).choices(string.ascii_letters + string.digits, k=room))  # does not compress
    subjects = ["https://example.com/page", "at://bob.example/app.bsky.feed.post/3k", f"https://{noise}"]
    parsed = [parse_label({"src": SRC, "uri": uri, "val": "spam", "cts": "2026-01-01T00:00:00Z"}) for uri in subjects]
    made = [label_value(one, seq, "") for seq, one in enumerate(parsed) if isinstance(one, Label)]
    tables = IndexStore(Settings(database=database), "cluster", None)
    tables.starts({})
    with tables.transaction() as transaction:
        transaction.labels([wire.decode_label(value) for value in made])
        for uri in subjects:
            assert transaction.db.execute("select val from bsky.label where uri = %s", (uri,)).fetchall() == [("spam",)]
    tables.close()
