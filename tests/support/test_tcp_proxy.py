"""The fault proxy does what it says: a test that trusts a fault that never fired proves nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support.flow_process import wait_until
from tests.support.tcp_proxy import Proxy

MakeProxy = Callable[..., Proxy]
WAIT_SECONDS = 60.0


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(client: socket.socket) -> None:
        with client, suppress(ConnectionResetError):
            while data := client.recv(65536):
                client.sendall(data)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=WAIT_SECONDS)


def say(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    heard = b""
    while len(heard) < len(data):
        piece = client.recv(65536)
        assert piece, "the connection ended"
        heard += piece
    return heard


def test_it_forwards_and_counts(proxy: MakeProxy, echo: tuple[str, int]) -> None:
    between = proxy(echo)
    with connect(between) as client:
        assert say(client, b"hello") == b"hello"
    assert (between.counts.accepted, between.counts.sent, between.counts.received) == (1, 5, 5)


def test_cut_resets_what_is_open_and_takes_new_connections(proxy: MakeProxy, echo: tuple[str, int]) -> None:
    between = proxy(echo)
    with connect(between) as client:
        assert say(client, b"hello") == b"hello"
        assert between.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(between) as client:
        assert say(client, b"again") == b"again"
    assert between.counts.cut == 1


def test_refuse_closes_the_port_until_restored(proxy: MakeProxy, echo: tuple[str, int]) -> None:
    between = proxy(echo)
    between.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(between)
    between.restore()
    with connect(between) as client:
        assert say(client, b"again") == b"again"


def test_half_open_accepts_connections_without_an_answer_until_restored(
    proxy: MakeProxy, echo: tuple[str, int]
) -> None:
    between = proxy(echo)
    with connect(between) as early:
        assert say(early, b"1") == b"1"
        between.half_open()
        with connect(between) as late:
            for client in (early, late):
                client.sendall(b"2")
                client.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(WAIT_SECONDS)
            wait_until(lambda: between.counts.held >= 2)
            between.restore()
            assert early.recv(1) == late.recv(1) == b"2"


def test_delay_and_throttle_slow_it_down(proxy: MakeProxy, echo: tuple[str, int]) -> None:
    between = proxy(echo)
    with connect(between) as client:
        between.delay(100)
        began = time.monotonic()
        assert say(client, b"x") == b"x"
        assert time.monotonic() - began >= 0.2  # there and back
        between.restore()
        between.throttle(100_000)
        began = time.monotonic()
        assert say(client, b"x" * 50_000) == b"x" * 50_000
        assert time.monotonic() - began >= 0.4
    assert between.counts.delayed >= 2
    assert between.counts.throttled >= 5


def test_it_cuts_a_database_session(proxy: MakeProxy, database: str) -> None:
    server = urlsplit(database)
    assert server.hostname is not None
    assert server.port is not None
    between = proxy((server.hostname, server.port))
    client = psycopg.connect(database, port=between.port)
    assert client.execute("SELECT 1").fetchone() == (1,)
    assert between.cut() == 1
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    client.close()
