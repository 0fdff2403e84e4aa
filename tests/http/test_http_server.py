"""The HTTP port of every process: bounded in connections, time and bytes, and read by nobody's web page."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest
from prometheus_client import REGISTRY

from connectors.http import server as http_server
from connectors.runtime.health import Health
from control.api.serve import ApiServer
from schemas.settings import Settings
from tests.support.flow_process import wait_until

HALF = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_OPEN = 1000


@pytest.fixture
def health() -> Health:
    return Health("probe", connected=True)


@pytest.fixture(params=["a flow", "control"])
def serve(request: pytest.FixtureRequest, health: Health) -> Iterator[Callable[..., int]]:
    """The port of a flow (aiohttp) and that of control (uvicorn) have the same bounds."""
    made: list[http_server.HttpServer | ApiServer] = []

    def start(*names: str) -> int:
        if request.param == "control":
            settings = Settings(http_host="127.0.0.1", http_port=0, http_names=list(names))
            made.append(ApiServer(health, settings))
        else:
            made.append(http_server.HttpServer(http_server.health_app(health, names), "127.0.0.1", 0, "health"))
        return made[-1].start()

    yield start
    for one in made:
        one.close()


def ask(port: int, path: str = "/healthz", host: str = "127.0.0.1", method: str = "GET", body: bytes = b"") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


def cut_by(bound: str) -> float:
    """Connections closed by this bound, in this process."""
    return REGISTRY.get_sample_value("sluice_http_connections_cut_total", {"bound": bound}) or 0.0


def test_incomplete_requests_take_no_threads_and_do_not_block_others(serve: Callable[..., int]) -> None:
    """H1, G6: 3,000 half requests were 3,016 threads."""
    port, before = serve(), threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(HALF_OPEN)]
    try:
        for one in slow:
            try:
                one.sendall(HALF)
            except OSError:
                continue  # cut already, to make room
        assert threading.active_count() <= before
        assert ask(port) == 200
        assert ask(port, "/metrics") == 200
        assert cut_by("all") >= HALF_OPEN - 105
        open_ = [one for one in psutil.Process().net_connections("tcp") if one.laddr.port == port and one.raddr]
        assert len([one for one in open_ if one.status == psutil.CONN_ESTABLISHED]) <= 105
    finally:
        for one in slow:
            one.close()


def test_a_request_that_does_not_come_to_its_end_is_cut(
    serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1: also where it drips, byte by byte."""
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(http_server, "SWEEP_SECONDS", 0.05)
    port, before = serve(), cut_by("late")
    with socket.create_connection(("127.0.0.1", port), 10) as slow:
        slow.sendall(HALF)

        def cut() -> bool:
            try:
                slow.sendall(b"x")
            except OSError:
                return True
            return False

        wait_until(cut, 20)
    assert cut_by("late") > before
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 60.0)  # or a slow machine's request is cut too
    assert ask(port) == 200


def test_an_idle_connection_is_kept_for_the_next_scrape(
    serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then cut, if nothing more is asked."""
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 1.5)
    monkeypatch.setattr(http_server, "SWEEP_SECONDS", 0.05)
    connection = http.client.HTTPConnection("127.0.0.1", serve(), timeout=10)
    connection.request("GET", "/metrics")
    connection.getresponse().read()
    assert not threading.Event().wait(2.0)  # beyond the time of a first request
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.2)  # from the next answer on
    connection.request("GET", "/metrics")
    connection.getresponse().read()
    sock = connection.sock
    assert sock.recv(1) == b""  # the server's end


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/" + "x" * 10_000, b"", 400), ("/nothing", b"", 404), ("/healthz", b"x" * 100_000, 405)],
)
def test_large_requests_are_refused(serve: Callable[..., int], path: str, body: bytes, status: int) -> None:
    port = serve()
    assert ask(port, path, method="POST" if body else "GET", body=body) == status
    assert ask(port) == 200


def test_the_health_pages_show_the_state_of_the_process(serve: Callable[..., int], health: Health) -> None:
    port = serve()
    assert (ask(port), ask(port, "/readyz")) == (200, 200)
    health.connected = False
    assert (ask(port), ask(port, "/readyz")) == (200, 503)
    health.hung = "no progress"
    assert ask(port) == 503


@pytest.mark.parametrize("host", ["rebound.test", "rebound.test:80", "sluice.example.org", "127.0.0.1.nip.io"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_a_page_whose_name_was_rebound_reads_nothing(serve: Callable[..., int], host: str, path: str) -> None:
    """G9: a DNS name that somebody points to this address is refused."""
    assert ask(serve(), path, host) == 403


@pytest.mark.parametrize(
    "host",
    [
        "10.2.3.4:8080",
        "[fd00::1]:8080",
        "localhost",
        "control",
        "sluice-control:8080",
        "metrics.example.org",
        "sluice-control.sluice.svc:8080",
        "control.sluice.svc.cluster.local",
    ],
)
def test_probes_and_prometheus_are_answered(serve: Callable[..., int], host: str) -> None:
    """The kubelet and Prometheus ask by a pod's address, others by names of the cluster or those that the settings give."""
    assert ask(serve("metrics.example.org"), "/metrics", host) == 200
