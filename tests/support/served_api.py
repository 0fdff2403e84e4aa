"""Fixture `api`: the HTTP API over the session's broker and a database of the test's own, served as in control."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from connectors.runtime.health import Health
from control.api.serve import ApiServer
from schemas.settings import Settings
from tests.support.flow_process import create_topics

PARTITIONS = 2


class Api:
    """A served application, and the requests of a test. An answer is (status, JSON)."""

    def __init__(self, settings: Settings, db: psycopg.Connection[Any]) -> None:
        self.settings = settings
        self.db = db
        self.health = Health("control")
        self._server = ApiServer(self.health, settings)
        self.port = self._server.start()
        self.close = self._server.close
        self.url = f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        return self.request("POST", path, body, headers)

    def put(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.request("PUT", path, body, headers)

    def request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        """Header names are written with underscores."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(self.url + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as err:
            with err:
                return err.code, json.loads(err.read())

    def all_pages(self, path: str, limit: int) -> list[Any]:
        """Items of every page."""
        found, cursor = [], ""
        while cursor is not None:
            status, page = self.get(f"{path}{'&' if '?' in path else '?'}limit={limit}&cursor={cursor}")
            assert status == 200, page
            assert len(page["items"]) <= limit
            found += page["items"]
            cursor = page["cursor"]
        return found


@pytest.fixture
def api_with(log: str, database: str) -> Iterator[Callable[..., Api]]:
    """Served with settings of the test's own; topics are made once."""
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, PARTITIONS)
    with psycopg.connect(database, autocommit=True) as db:
        base = {
            "kafka_bootstrap": log,
            "database": database,
            "kafka_topic_prefix": prefix,
            "kafka_partitions": PARTITIONS,
        }
        served: list[Api] = []

        def serve(**more: Any) -> Api:
            served.append(Api(Settings(**base | {"kafka_replication": 1} | more), db))
            return served[-1]

        yield serve
        for one in served:
            one.close()


@pytest.fixture
def api(api_with: Callable[..., Api]) -> Api:
    return api_with()
