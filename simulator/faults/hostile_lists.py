"""Responses of a hostile or broken server to a list request."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from simulator.accounts import SimulatedAccount
from simulator.faults.faults import Faults, Parameters

ESCAPES = "\x1b]0;owned\x07\r\nWARNING forged line\x9b31m \u202egnp"
KINDS = ("long_cursor", "invalid_utf8", "null", "huge", "deep", "escapes", "no_json")


def malformed(parameters: Parameters, fired: int, field: str) -> web.Response:
    """A malformed page of `field`, of the parameters' `kind`; by default the kinds in turn, chosen by the count `fired`."""
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
    """The response if a fault of this list fires: a malformed page, or a page whose cursors alternate. Else None."""
    name = "hosts_malformed" if field == "hosts" else "list_malformed"
    if (wanted := faults.fire(name, host=host)) is not None:
        return malformed(wanted, faults.counts[name], field)
    name = "hosts_cycle" if field == "hosts" else "list_cycle"
    if faults.fire(name, host=host) is not None:
        return web.json_response({field: rows(), "cursor": "again-b" if cursor == "again-a" else "again-a"})
    return None


def rows(accounts: list[SimulatedAccount]) -> list[dict[str, Any]]:
    """Rows of listRepos with required fields only."""
    return [{"did": account.did, "active": True} for account in accounts]
