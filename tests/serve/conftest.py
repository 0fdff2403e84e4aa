"""Fixtures: `reads_of(settings)` serves a database in this process, `served` an empty log."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest

from local.embedded.guarded_process import free_port
from schemas.settings import Settings
from serve.context import ServeContext
from serve.serve_process import listen
from tests.serve.streams import Served
from tests.support.writable_records import make_writable


class Reads:
    """A served database, and the requests of a test."""

    def __init__(self, settings: Settings) -> None:
        self.port = free_port()
        self.settings = settings.model_copy(update={"serve_listen": f"127.0.0.1:{self.port}"})
        self._context = ServeContext(self.settings)
        self._server = listen(self.settings, self._context)

    def get(self, method: str, **query: Any) -> tuple[int, bytes]:
        """Status and body of a method of com.atproto."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", f"/xrpc/com.atproto.{method}?{urlencode(query, doseq=True)}")
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, method: str, **query: Any) -> Any:
        """The JSON of an answer with status 200."""
        status, body = self.get(method, **query)
        assert status == 200, body
        return json.loads(body)

    def error(self, method: str, **query: Any) -> tuple[int, str]:
        """Status and name of an error."""
        status, body = self.get(method, **query)
        assert status != 200
        answer = json.loads(body)
        assert set(answer) == {"error", "message"}
        assert answer["message"]
        return status, answer["error"]

    def pages(self, method: str, name: str, **query: Any) -> list[list[Any]]:
        """The items of every page of a list."""
        found, cursor = [], ""
        while cursor is not None and len(found) < 1000:
            page = self.json(method, **query, **({"cursor": cursor} if cursor else {}))
            found.append(page[name])
            cursor = page.get("cursor")
        return found

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a statement in the main database."""
        with psycopg.connect(self.settings.database, autocommit=True) as db:
            cursor = db.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self._server.close()
        self._context.close()


@pytest.fixture
def reads_of() -> Iterator[Callable[[Settings], Reads]]:
    """Serve the databases of these settings; all end with the test."""
    served: list[Reads] = []

    def serve(settings: Settings) -> Reads:
        served.append(Reads(settings))
        return served[-1]

    yield serve
    for one in served:
        one.close()


@pytest.fixture
def settings(database: str) -> Settings:
    """One database, whose records can be written by name."""
    make_writable(database)
    return Settings(database=database, kafka_partitions=8)


@pytest.fixture
def served(settings_of: Callable[..., Settings]) -> Iterator[Served]:
    """A process over a log of its own."""
    with Served(settings_of(serve_address_requests=1000)) as made:
        yield made
