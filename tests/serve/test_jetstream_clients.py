"""Clients that nobody here wrote, unmodified: the `atproto` SDK for Python (v2)."""

from __future__ import annotations

import threading
from typing import Any

from atproto_jetstream import JetstreamClient

from connectors.runtime import metrics
from tests.serve.streams import Served, account, commit, did, identity, op
from tests.support.flow_process import wait_until

A = did(1)


class Sdk:
    """The SDK's client in a thread of its own."""

    def __init__(self, port: int, **parameters: Any) -> None:
        self.found: list[Any] = []
        self.client = JetstreamClient(parameters, base_uri=f"ws://127.0.0.1:{port}/xrpc", recv_timeout=5.0)
        self._thread = threading.Thread(target=lambda: self.client.start(self.found.append), daemon=True)
        self._thread.start()

    def rkeys(self) -> list[str]:
        return [event.rkey for event in self.found if hasattr(event, "rkey")]

    def stop(self) -> None:
        self.client.stop()


def connected(served: Served) -> Sdk:
    """A client that is connected; the count is of the whole process, whatever other tests have left in it."""
    before = metrics.SERVE_CLIENTS._value.get()
    sdk = Sdk(served.port)
    wait_until(lambda: metrics.SERVE_CLIENTS._value.get() > before)
    return sdk


def test_the_sdk_for_python_gets_compressed_events_and_resumes_at_its_cursor(served: Served) -> None:
    """V1: it fetches our dictionary by itself, and goes on where it was when the server starts again with an empty memory."""
    sdk = connected(served)
    served.write(identity(A, "a.test"), *(commit(A, f"3{n:03}", op(str(n))) for n in range(50)), account(A))
    wait_until(lambda: len(sdk.found) == 52)
    assert sdk.client.compressed
    assert sdk.found[0].identity.handle == "a.test"
    assert sdk.found[51].account.active is True
    record = sdk.found[1].record
    assert record["text"] == "hello"
    served.close()
    served.write(*(commit(A, f"3{n:03}", op(str(n))) for n in range(50, 90)))
    with Served(served.settings, served.port) as again:
        again.write(commit(A, "3999", op("90")))
        wait_until(lambda: "90" in sdk.rkeys())
        assert sdk.rkeys() == [str(n) for n in range(91)]
        assert sdk.client.cursor == sdk.found[-1].seq
        fresh = Sdk(again.port, cursor=sdk.found[20].seq, kinds=["commit"])
        wait_until(lambda: "90" in fresh.rkeys())
        assert fresh.rkeys() == [str(n) for n in range(19, 91)]
        fresh.stop()
        sdk.stop()
