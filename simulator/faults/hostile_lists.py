"""What a hostile or broken server answers in place of a list: a body by its name, of each kind in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from simulator.accounts import SimulatedAccount
from simulator.faults.faults import Faults, Parameters

ESCAPES = "\x1b]0;owned\x07\r\nWARNING forged line\x9b31m \u202egnp"
KINDS = ("long_cursor", "invalid_utf8", "null", "huge", "deep", "escapes", "no_json")


def malformed(parameters: Parameters, fired: int, field: str) -> web.Response:
    """An answer that is no page of `field`. `kind` of the parameters, else the kinds in turn."""
    kind = parameters.get("kind") or KINDS[fired % len(KINDS)]
    if kind == "escapes":
        return web.json_response({"error": f"Bad{ESCAPES}", "message": ESCAPES}, status=400)
    bodies = {
        "long_cursor": b'{"%s":[],"cursor":"%s"}' % (field.encode(), b"x" * 2048),
        "invalid_utf8": b'{"%s":[{"did":"\xff\xfe"}]}' % field.encode(),
        "null": b'{"%s":null,"cursor":"x"}' % field.encode(),
        "huge": b'{"%s":[' % field.encode() + b"[]," * 2_700_000 + b"[]]}",
        "deep": b'{"%s":' % field.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "no_json": b"<html>",
    }
    return web.Response(body=bodies[kind], content_type="application/json")


def list_fault(
    faults: Faults, host: int, cursor: str, field: str, rows: Callable[[], list[Any]]
) -> web.Response | None:
    """The answer of a list whose fault fires now: malformed, or one whose cursors go a → b → a."""
    name = "hosts_malformed" if field == "hosts" else "list_malformed"
    if (wanted := faults.fire(name, host=host)) is not None:
        return malformed(wanted, faults.counts[name], field)
    name = "hosts_cycle" if field == "hosts" else "list_cycle"
    if faults.fire(name, host=host) is not None:
        return web.json_response({field: rows(), "cursor": "again-b" if cursor == "again-a" else "again-a"})
    return None


def rows(accounts: list[SimulatedAccount]) -> list[dict[str, Any]]:
    """Entries of listRepos with the least that they need."""
    return [{"did": account.did, "active": True} for account in accounts]
