"""A small network whose repos refer to each other in every way that matters, and all that the AppView's tables say of it."""

from __future__ import annotations

from typing import Any

from tests.appview.index.appview_world import (
    GATE,
    REPOST,
    World,
    Write,
    did,
    follow,
    like,
    post,
    post_gate,
    quote,
    reply,
    thread_gate,
)

TABLES = (
    *(
        "post",
        "feed_item",
        "quote",
        "like",
        "repost",
        "follow",
        "actor_block",
        "list",
        "list_item",
        "list_block",
        "profile",
    ),
    *(
        "thread_gate",
        "post_gate",
        "post_agg",
        "profile_agg",
        "duplicate_record",
        "op_thread_reply",
        "post_embed_record",
    ),
    *("record", "starter_pack", "feed_generator", "verification", "labeler"),
)


def everything(world: World) -> dict[str, list[Any]]:
    """Every table without what only numbers rows, and without profiles that count nothing."""
    found: dict[str, list[Any]] = {}
    for table in TABLES:
        found[table] = world.sql(f'select t::text from bsky."{table}" t order by 1')
    found["notification"] = world.sql(
        'select did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt" from bsky.notification order by 1, 2, 3, 4, 5, 6'
    )
    found["profile_agg"] = world.sql("select a::text from bsky.profile_agg a where a::text !~ ',0,0,0\\)$' order by 1")
    return found


def differences(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        table: (
            sorted(map(str, set(one[table]) - set(other[table]))),
            sorted(map(str, set(other[table]) - set(one[table]))),
        )
        for table in one
        if one[table] != other[table]
    }


def network() -> dict[str, list[Write]]:
    """A few repos that refer to each other in every way that matters."""
    fan = {"$type": f"{GATE}#followerRule"}
    root = post("ann", "3kaaaaaaaaaa2", 1)
    first = reply("bob", "3kbbbbbbbbbb2", 2, root, root)
    second = reply("cat", "3kcccccccccc2", 3, root, first)
    third = reply("ann", "3kaaaaaaaaaa3", 4, root, second)
    deep = reply("dan", "3kdddddddddd2", 5, root, third)
    astray = reply("eve", "3keeeeeeeeee2", 6, post("bob", "3kbbbbbbbbbb9", 1), second)
    closed = post("bob", "3kbbbbbbbbbb3", 1)
    refused = reply("cat", "3kcccccccccc3", 3, closed, closed)
    welcome = reply("dan", "3kdddddddddd3", 3, closed, closed)
    below = reply("ann", "3kaaaaaaaaaa4", 4, closed, refused)
    private = post("cat", "3kcccccccccc4", 1)
    forbidden = quote("dan", "3kdddddddddd4", 3, private)
    quoted = quote("eve", "3keeeeeeeeee3", 4, root)
    talking = post(
        "eve", "3keeeeeeeeee4", 5, text="hello ann",
        facets=[{"index": {"byteStart": 0, "byteEnd": 5}, "features": [{"$type": "app.bsky.richtext.facet#mention", "did": did("ann")}]}],
    )  # fmt: skip
    doubled = [like("eve", "3keeeeeeeeee5", 7, root), like("eve", "3keeeeeeeeee6", 6, root)]
    shared = like("dan", "3kdddddddddd5", 8, root, REPOST)
    shared_again = like("dan", "3kdddddddddd8", 9, root, REPOST)
    return {
        "ann": [root, third, below],
        "bob": [first, closed, thread_gate(closed, 1.5, fan), follow("bob", "3kbbbbbbbbbb4", 2, "ann")],
        "cat": [second, refused, private, post_gate(private, 2), like("cat", "3kcccccccccc5", 8, quoted)],
        "dan": [deep, welcome, forbidden, shared,
            shared_again, follow("dan", "3kdddddddddd6", 2, "bob"), follow("dan", "3kdddddddddd7", 9, "cat")],
        "eve": [astray, quoted, talking, *doubled],
    }  # fmt: skip
