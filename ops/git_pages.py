"""Files as a git repository of one commit, read-only, over HTTP: Redpanda Console takes topic documentation from nowhere else.

`Repository(files)` is the commit as git's objects; `serve(files, host, port)` answers `git clone http://HOST:PORT/NAME.git` (any
name) with the protocol that every git client speaks: smart HTTP, version 0, without capabilities. The same files are the same
commit, whoever serves them and when.
"""

import hashlib
import struct
import threading
import zlib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from typing_extensions import override

BRANCH = "refs/heads/main"
SIGNED = b"Sluice <sluice@localhost> 0 +0000"
KINDS = {"commit": 1, "tree": 2, "blob": 3}
SERVICE = "git-upload-pack"
MOST_REQUEST_BYTES = 64 * 1024
MOST_THREADS = 32
IDLE_SECONDS = 10.0  # of a connection, within a request or between two
FLUSH = b"0000"


class Repository:
    """One commit with these files (name → text) at its root. `head` is its hash, `pack` all of it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._objects: list[bytes] = []
        entries = [(name.encode(), self._add("blob", text.encode())) for name, text in files.items()]
        tree = self._add("tree", b"".join(b"100644 " + name + b"\0" + hash_ for name, hash_ in sorted(entries)))
        lines = [b"tree " + tree.hex().encode(), b"author " + SIGNED, b"committer " + SIGNED, b"", b"topics", b""]
        self.head = self._add("commit", b"\n".join(lines)).hex()
        body = b"PACK" + struct.pack(">II", 2, len(self._objects)) + b"".join(self._objects)
        self.pack = body + hashlib.sha1(body, usedforsecurity=False).digest()

    def _add(self, kind: str, content: bytes) -> bytes:
        """Keep an object as a pack has it; its hash."""
        rest, first = len(content) >> 4, KINDS[kind] << 4 | len(content) & 15
        header = bytearray()
        while rest:
            header.append(first | 0x80)
            rest, first = rest >> 7, rest & 0x7F
        header.append(first)
        hash_ = hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).digest()
        self._objects.append(bytes(header) + zlib.compress(content))
        return hash_

    def advertised(self) -> bytes:
        """Answer to `info/refs`: what there is."""
        refs = f"{self.head} HEAD\0symref=HEAD:{BRANCH}\n", f"{self.head} {BRANCH}\n"
        return _line(f"# service={SERVICE}\n") + FLUSH + b"".join(_line(ref) for ref in refs) + FLUSH

    def answer(self, wanted: bytes) -> bytes:
        """Answer to a request for objects: everything, once the client has said what it has."""
        return _line("NAK\n") + (self.pack if b"0009done" in wanted else b"")


def _line(text: str) -> bytes:
    return f"{len(text) + 4:04x}{text}".encode()


def server(files: Mapping[str, str], host: str, port: int) -> ThreadingHTTPServer:
    """A server that is listening; the caller lets it serve. Raises OSError where it cannot listen."""
    return _Bounded((host, port), type("Pages", (_Pages,), {"repository": Repository(files)}))


class _Bounded(ThreadingHTTPServer):
    """At most MOST_THREADS connections; what comes beyond them is closed at once."""

    daemon_threads = True

    @override
    def server_activate(self) -> None:
        self._free = threading.BoundedSemaphore(MOST_THREADS)
        super().server_activate()

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Pages(BaseHTTPRequestHandler):
    repository: ClassVar[Repository]
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """What a clone asks first, and `/healthz`."""
        if self.path == "/healthz":
            self._send("text/plain", b"ok\n")
        elif self.path.endswith(f"/info/refs?service={SERVICE}"):
            self._send(f"application/x-{SERVICE}-advertisement", self.repository.advertised())
        else:
            self.send_error(404, "a git repository: clone it")

    def do_POST(self) -> None:
        """The objects."""
        length = self.headers.get("Content-Length", "")
        if not self.path.endswith(f"/{SERVICE}") or not length.isdecimal() or int(length) > MOST_REQUEST_BYTES:
            self.send_error(400, "not a request of git's for objects")
        else:
            self._send(f"application/x-{SERVICE}-result", self.repository.answer(self.rfile.read(int(length))))

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:  # a line per request is of no use
        pass
