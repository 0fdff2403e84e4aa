"""The machine of job states: the table in code and the one in the database are one."""

from __future__ import annotations

import psycopg
import pytest

from schemas.job_spec import JobSpec, JobStatus
from schemas.sql import queries
from steps.job_states import FINAL, TRANSITIONS, JobSource, SpecRefused, eta, identify, scaled, spec_of, split, targets

RELAY = "https://relay.test"


def test_code_and_database_hold_the_same_transitions(database: str) -> None:
    """T3"""
    with psycopg.connect(database) as db:
        found = db.execute(
            "select a, b from unnest(%(all)s::text[]) a, unnest(%(all)s::text[]) b where sluice.job_may_become(a, b)",
            {"all": list(JobStatus)},
        ).fetchall()
    assert set(found) == {(old.value, new.value) for old, following in TRANSITIONS.items() for new in following}


def test_every_state_can_be_reached_and_only_completed_is_for_ever() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    reached = {JobStatus.PENDING}
    while more := {new for old in reached for new in TRANSITIONS[old]} - reached:
        reached |= more
    assert reached == set(JobStatus)
    assert [status for status in JobStatus if not TRANSITIONS[status]] == [JobStatus.COMPLETED]
    assert all(JobStatus.RETRY in TRANSITIONS[status] for status in FINAL - {JobStatus.COMPLETED})


@pytest.mark.parametrize(
    "spec",
    [
        JobSpec(source="relay", relay=RELAY, priority=3),
        JobSpec(source="hosts", hosts=["https://a.test", "https://b.test"], batch_size=50),
        JobSpec(source="dids", dids=["did:web:a.test", "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"]),
        JobSpec(source="dids", dids=["did:web:a.test"], again=True),
        JobSpec(source="collection", collection="a.b.c", relay=RELAY),
    ],
    ids=lambda spec: spec.source,
)
def test_a_source_is_stored_and_read_back(spec: JobSpec) -> None:
    assert spec_of(identify(spec, None).source, spec.batch_size, spec.priority) == spec


def test_a_permanent_listing_is_a_job_of_its_host_and_a_list_of_dids_has_no_listing() -> None:
    assert spec_of(JobSource("pds", hosts=["https://a.test"]), 1000, 0) == JobSpec(
        source="hosts", hosts=["https://a.test"]
    )
    assert targets(JobSource("dids", first_dids=["did:web:a.test"]), 1, 1000) == []


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": "relay"},
        {"kind": "hosts", "relay": RELAY},
        {"kind": "dids", "relay": RELAY, "first_dids": ["did:web:a.test"]},
        {"kind": "collection", "relay": RELAY},
        {"kind": "other"},
    ],
    ids=lambda columns: columns["kind"],
)
def test_the_database_refuses_a_source_that_is_no_specification(database: str, columns: dict[str, object]) -> None:
    row = {"name": "x", "relay": None, "hosts": None, "collection": None, "first_dids": None, "again": False} | columns
    values = row | {"batch_size": 1000, "priority": 0, "total": None}
    with psycopg.connect(database) as db, pytest.raises(psycopg.errors.CheckViolation):
        db.execute(queries("jobs")["create"], values)


def test_lists_of_jobs_have_keys_of_their_own_and_a_relay_the_standing_one() -> None:
    """Beside a standing listing of the same host a job keeps its own cursor; of a relay it is the same listing."""
    (relay,) = targets(JobSource("relay", RELAY), 7, 100)
    assert (relay.key, relay.url, relay.host, relay.label) == (RELAY, RELAY, None, "job")
    hosts = targets(JobSource("hosts", hosts=["https://a.test", "https://b.test"]), 7, 100)
    assert [(one.key, one.url, one.host) for one in hosts] == [
        (f"https://{name}.test#job=7", f"https://{name}.test", f"https://{name}.test") for name in "ab"
    ]
    (collection,) = targets(JobSource("collection", RELAY, collection="a.b.c"), 7, 100)
    assert (collection.key, collection.host, collection.collection) == (f"{RELAY}#job=7", None, "a.b.c")


def test_a_range_is_cut_into_jobs() -> None:
    """T4"""
    spec = JobSpec(source="hosts", hosts=[f"h{n}.test" for n in range(7)] + ["h0.test"])
    assert [part.hosts for part in split(spec, 3)] == [spec.hosts[:3], spec.hosts[3:6], spec.hosts[6:7]]
    assert len({identify(part, None).name for part in split(spec, 3)}) == 3
    assert split(JobSpec(source="relay"), 3) == [JobSpec(source="relay")]


@pytest.mark.parametrize(
    "host", ["", "a b.test", "https://a.test/x", "https://u@a.test", "a.test?x", "ä.test", "http://[::1"]
)
def test_what_is_no_server_is_refused(host: str) -> None:
    with pytest.raises(SpecRefused):
        identify(JobSpec.model_construct(source="hosts", hosts=[host]), None)


def test_time_left_is_none_where_it_is_unknown() -> None:
    """R5"""
    assert eta(rate=2.0, pending=10, listed=10, total=None, done=True) == 5.0
    assert eta(rate=2.0, pending=10, listed=40, total=100, done=False) == 35.0
    assert eta(rate=2.0, pending=10, listed=10, total=None, done=False) is None
    assert eta(rate=None, pending=10, listed=10, total=None, done=True) is None
    assert eta(rate=0.0, pending=10, listed=10, total=None, done=True) is None


def test_a_sample_is_scaled_to_the_whole() -> None:
    assert scaled({"sync": 30, "pending": 10}, 400_000) == {"sync": 300_000, "pending": 100_000}
    assert scaled({}, 5) == {"pending": 5}
