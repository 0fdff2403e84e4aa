"""What the log is asked, of a broker that answers oddly: a bare one that speaks two requests of the protocol."""

from __future__ import annotations

import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

ASK = "import sys; from connectors.kafka.log import cluster_id; from schemas.settings import load; print(cluster_id(load(kafka_bootstrap=sys.argv[1])))"
METADATA, API_VERSIONS = 3, 18
UNSUPPORTED_VERSION = 35


class BareBroker(socketserver.ThreadingTCPServer):
    """Answers ApiVersions 0 and Metadata up to 8. Of its Metadata answers `mute` (numbers, from 0) name no broker."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, mute: set[int]) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.mute, self.answers = mute, 0
        self.port = int(self.server_address[1])

    def metadata(self) -> bytes:
        """One broker, no topics."""
        number, self.answers = self.answers, self.answers + 1
        itself = struct.pack(">i", 1) + text("127.0.0.1") + struct.pack(">ih", self.port, -1)
        brokers = struct.pack(">i", 0) if number in self.mute else struct.pack(">i", 1) + itself
        return struct.pack(">i", 0) + brokers + text("the-cluster") + struct.pack(">iii", 1, 0, -(2**31))


class Connection(socketserver.StreamRequestHandler):
    """Requests one after the other, until the client closes."""

    server: BareBroker

    def handle(self) -> None:
        while len(size := self.rfile.read(4)) == 4:
            kind, version, number = struct.unpack_from(">hhi", self.rfile.read(*struct.unpack(">i", size)))
            if kind == METADATA:
                answer = self.server.metadata()
            elif version:
                answer = struct.pack(">hi", UNSUPPORTED_VERSION, 0)
            else:
                answer = struct.pack(">hi6h", 0, 2, METADATA, 0, 8, API_VERSIONS, 0, 0)
            self.wfile.write(struct.pack(">ii", len(answer) + 4, number) + answer)


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


@pytest.fixture
def bare(request: pytest.FixtureRequest) -> Iterator[BareBroker]:
    with BareBroker(request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("bare", [{0}, {0, 1}, {1}, {1, 2}, {0, 2, 3}], indirect=True)
def test_a_broker_that_names_no_broker_for_a_moment_ends_no_process(bare: BareBroker) -> None:
    """G7: a broker that is busy starting, or that its controller has lost sight of, does so; librdkafka aborted the process."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK, f"127.0.0.1:{bare.port}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (asked.returncode, asked.stdout.strip()) == (0, "the-cluster"), asked.stderr
    assert bare.answers > 1
