"""Rows that depend on several repos follow from the final records, in any order of arrival."""

from __future__ import annotations

import random

import pytest

from tests.appview.index.appview_tables_seen import differences, everything, network
from tests.appview.index.appview_world import World, Write, gone
from tests.support.postgres import fresh_database


def test_any_order_of_repos_gives_the_same_tables(world: World, postgres: str, appview_template: str) -> None:
    """N10: likes before posts, replies before parents, gates after replies."""
    repos = network()
    for name, writes in repos.items():
        world.index(*world.snapshot(name, writes))
    world.reconcile()
    reference = everything(world)
    flags = dict(
        world.sql(
            'select uri, ("invalidReplyRoot", "violatesThreadGate", "violatesEmbeddingRules")::text from bsky.post'
        )
    )
    by_rkey = {uri.rsplit("/", 1)[1]: said for uri, said in flags.items()}
    assert by_rkey["3kcccccccccc3"] == "(f,t,)"
    assert by_rkey["3kdddddddddd3"] == "(,,)"
    assert by_rkey["3keeeeeeeeee2"] == "(t,f,)"
    assert by_rkey["3kdddddddddd4"] == "(,,t)"
    for seed in range(4):
        with fresh_database(postgres, appview_template) as url:
            other = World(url)
            chance = random.Random(seed)
            shuffled(other, repos, chance)
            assert differences(reference, everything(other)) == {}, f"seed {seed}"
            other.tables.close()


def shuffled(world: World, repos: dict[str, list[Write]], chance: random.Random) -> None:
    """Snapshots of the beginning of each repo in any order, then the rest as commits, reconciling now and then."""
    order = list(repos)
    chance.shuffle(order)
    rest: dict[str, list[Write]] = {}
    for name in order:
        writes = list(repos[name])
        chance.shuffle(writes)
        at_first = chance.randrange(len(writes) + 1)
        world.index(*world.snapshot(name, writes[:at_first]))
        rest[name] = writes[at_first:]
        if chance.random() < 0.5:
            world.reconcile()
    while any(rest.values()):
        name = chance.choice([name for name in rest if rest[name]])
        write = rest[name].pop()
        world.index(world.commit(name, write))
        if chance.random() < 0.3:  # there and gone again: nothing may stay of it
            world.index(world.commit(name, gone(write, write.minute)))
            world.reconcile()
            world.index(world.commit(name, write))
        if chance.random() < 0.5:
            world.reconcile()
    world.reconcile()


@pytest.fixture
def world(database: str) -> World:
    return World(database)


def test_what_is_deleted_leaves_nothing_behind(world: World) -> None:
    """Everything deleted one by one: empty tables, counts of nothing."""
    repos = network()
    for name, writes in repos.items():
        world.index(*world.snapshot(name, writes))
    world.reconcile()
    for name, writes in repos.items():
        for write in writes:
            world.index(world.commit(name, gone(write, 20)))
    world.reconcile()
    assert {table: rows for table, rows in everything(world).items() if rows} == {}
    assert world.sql("select count(*) from sluice.appview_gated") == [(0,)]
