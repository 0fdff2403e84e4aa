"""What a gate decides does not depend on the dates that authors write (N10)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.appview.index.appview_dates import DATES, dated
from tests.appview.index.appview_world import World, at, did, post, post_gate, quote, reply, thread_gate
from tests.support.size import sized


@pytest.fixture
def world(database: str) -> World:
    return World(database)


class Numbers:
    """Keys that no example has used."""

    made = 0


dates = st.one_of(
    st.sampled_from(DATES),
    st.integers(-3_000, 6_000).map(lambda tenths: at(max(0, 10 + tenths / 600))),
)


@settings(max_examples=sized(12, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reply_date=dates,
    gate_date=dates,
    edit_date=st.none() | dates,
    fetched=st.sampled_from(["", "reply", "gate", "both"]),
    seed=st.integers(0, 1000),
    after=st.booleans(),
)
def test_no_choice_of_dates_makes_a_hidden_reply_visible(
    world: World, reply_date: str, gate_date: str, edit_date: str | None, fetched: str, seed: int, after: bool
) -> None:
    """N10: whatever a stranger and the thread's author write as createdAt, live and fetched, in any order of transactions
    and reconciliations: a reply after the gate is hidden; before it, only where its order is unknown."""
    Numbers.made += 1
    owner, stranger = (f"{kind}{Numbers.made:04d}".translate(str.maketrans("0189", "wxyz")) for kind in ("own", "str"))
    root = post(owner, "3kaaaaaaaaaa2", 1)
    gate = dated(thread_gate(root, 2), gate_date)
    answer = reply(stranger, "3kbbbbbbbbbb2", 3 if after else 1.5, root, root, createdAt=reply_date)
    quoted = dated(quote(stranger, "3kbbbbbbbbbb3", answer.minute, root), reply_date)
    no_quotes = dated(post_gate(root, 2), gate_date)
    theirs: list[Any] = []
    if fetched in ("gate", "both"):
        theirs.append((world.snapshot(owner, [root, gate, no_quotes]), 7.0))
    else:
        theirs.append((world.snapshot(owner, []), 0.0))
        theirs += [([world.commit(owner, one)], None) for one in (root, gate, no_quotes)]
    if edit_date is not None:
        theirs.append(([world.commit(owner, dated(thread_gate(root, 8, hidden=[quoted.uri]), edit_date))], None))
    others: list[Any] = []
    if fetched in ("reply", "both"):
        others.append((world.snapshot(stranger, [answer, quoted]), 7.0))
    else:
        others.append((world.snapshot(stranger, []), 0.0))
        others += [([world.commit(stranger, one)], None) for one in (answer, quoted)]
    chance = random.Random(seed)
    while theirs or others:
        events, received = chance.choice([queue for queue in (theirs, others) if queue]).pop(0)
        world.index(*events, received=received)
        if chance.random() < 0.4:
            world.reconcile()
    world.reconcile()
    hidden = world.sql(
        'select "violatesThreadGate" is true, "violatesEmbeddingRules" is true from bsky.post where creator = %s',
        did(stranger),
    )
    wanted = (True, False), (False, True)
    if after or fetched:
        assert sorted(hidden) == sorted(wanted)
    else:
        assert hidden == [(False, False)] * 2
