"""The public port of `serve`: its token, its limits of each address, its error answers, and what a wrong address says."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from connectors.http.server import BoundedConnection, ConnectionLimit
from local.embedded.guarded_process import free_port
from schemas.errors import OperatorError
from schemas.settings import Settings, SettingsError, load
from serve import guard
from serve.context import ServeContext
from serve.guard import ADDRESSES, RequestRate
from serve.serve_process import listen

Answer = tuple[int, dict[str, Any]]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """StreamStart a server with these settings; the port."""
    closes: list[Callable[[], None]] = []

    def start(**changes: Any) -> int:
        port = free_port()
        context = ServeContext(Settings(serve_listen=f"127.0.0.1:{port}", **changes))
        closes.extend((listen(context.settings, context).close, context.close))
        return port

    yield start
    for close in closes:
        close()


def ask(port: int, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_an_unknown_method_is_an_error_of_xrpc(serving: Callable[..., int]) -> None:
    port = serving()
    assert ask(port, "/xrpc/com.example.none")[0] == 501
    assert ask(port, "/nothing") == (404, {"error": "MethodNotImplemented", "message": "no such method"})


def test_with_a_token_every_request_needs_it(serving: Callable[..., int]) -> None:
    port = serving(serve_token="a-long-word")
    statuses = {
        given: ask(port, "/nothing", **({"Authorization": given} if given else {}))[0]
        for given in ("", "Bearer wrong", "Basic a-long-word", "Bearer \xff", "Bearer a-long-word")
    }
    assert statuses.pop("Bearer a-long-word") == 404
    assert set(statuses.values()) == {401}


def test_an_address_that_asks_too_often_gets_429(serving: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BURST_SECONDS", 5000.0)
    port = serving(serve_address_requests=0.001)  # five, and the next one in a quarter of an hour
    assert [ask(port, "/nothing")[0] for _ in range(7)] == [404] * 5 + [429] * 2


def test_the_tokens_of_an_address_come_back_and_addresses_are_bounded() -> None:
    rate = RequestRate(1.0)
    assert [rate.allow("a", 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert rate.allow("b", 0.0)
    assert [rate.allow("a", 2.0) for _ in range(3)] == [True, True, False]
    for number in range(ADDRESSES + 10):
        rate.allow(str(number), 3.0)
    assert len(rate._buckets) == ADDRESSES


def cut(bound: str) -> float:
    """Connections closed by this bound, in this process."""
    return REGISTRY.get_sample_value("sluice_http_connections_cut_total", {"bound": bound}) or 0.0


def test_connections_of_one_address_are_bounded(serving: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten, remove = threading.Event(), ConnectionLimit.remove

    def noted(limit: ConnectionLimit, connection: BoundedConnection) -> None:
        was_open = connection in limit._open
        remove(limit, connection)
        if was_open:
            forgotten.set()

    monkeypatch.setattr(ConnectionLimit, "remove", noted)
    port = serving(serve_address_connections=3)
    before = cut("address")
    first = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", port), 10) as beyond:
        assert beyond.recv(1) == b""
    assert cut("address") == before + 1
    first.pop().close()
    assert forgotten.wait(60)
    assert ask(port, "/nothing")[0] == 404
    for one in first:
        one.close()


def test_an_address_in_use_is_one_line_with_the_setting(serving: Callable[..., int]) -> None:
    settings = Settings(serve_listen=f"127.0.0.1:{serving()}")
    context = ServeContext(settings)
    with pytest.raises(
        OperatorError, match=r"^SLUICE_SERVE_LISTEN: 127.0.0.1:\d+ cannot be listened on .*choose another"
    ):
        listen(settings, context)
    context.close()


@pytest.mark.parametrize("wrong", ["8081", ":8081", "0.0.0.0:", "0.0.0.0:http", "0.0.0.0:99999"])
def test_a_wrong_address_is_one_line_with_the_setting(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_SERVE_LISTEN", wrong)
    with pytest.raises(SettingsError, match=r"^SLUICE_SERVE_LISTEN: .*write it as 0\.0\.0\.0:8081"):
        load()
