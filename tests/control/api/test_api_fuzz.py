"""The API fuzzed from its own OpenAPI document: no 5xx, and every answer is what the document says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control.api.application import ROUTERS
from tests.support.served_api import Api
from tests.support.size import sized

EXAMPLES = sized(4, 40)
SECONDS = 60
TOO_LONG = b"Invalid HTTP request received."
"""uvicorn's answer to a request line beyond its limit: it never reaches the application."""

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@pytest.fixture
def filled(api: Api) -> Api:
    """Something of everything, so that lists are not empty and ids meet rows."""
    RepoQueue(api.settings).discover([ListedRepo(f"did:plc:{number:024d}") for number in range(5)])
    api.db.execute("update sluice.repo set phase = 'failed', last_error = 'no'")
    api.db.execute("insert into sluice.host (host) values ('https://one'), ('https://two')")
    api.db.execute(
        "insert into sluice.dead_letter (part, log_offset, topic, reason, error)"
        " values (0, 0, 'firehose_live', 'undecodable', 'no'), (0, 1, 'repo_backfill', 'bad_task', 'no')"
    )
    api.db.execute(
        "insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason) values ('https://r', '1', '2', 'no')"
    )
    assert api.post("/api/v1/jobs", {"source": "dids", "dids": ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"]})[0] == 200
    return api


def test_no_request_makes_the_api_fail(filled: Api) -> None:
    schema = schemathesis.openapi.from_url(f"{filled.url}/api/openapi.json")
    seen: Counter[int] = Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == sum(len(router.routes) for router, _, _ in ROUTERS)

    def tried(case: schemathesis.Case) -> None:
        answer = case.call(base_url=filled.url, timeout=SECONDS)
        if TOO_LONG in answer.content:
            return
        seen[answer.status_code] += 1
        case.validate_response(answer, checks=list(CHECKS))

    for operation in operations:
        for mode in GenerationMode:
            fuzz(operation.as_strategy(generation_mode=mode), tried)
    assert seen[200] > 8
    assert seen[400] > 8
    assert not any(status >= 500 for status in seen), seen


def fuzz(cases: SearchStrategy[schemathesis.Case], tried: Callable[[schemathesis.Case], None]) -> None:
    """The first failure is the answer: making it smaller would take more requests than finding it."""
    limits = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with suppress(Unsatisfiable):  # an operation without parameters and body has nothing that could be wrong
        limits(given(cases)(tried))()
