"""The status page in a real Chromium, over the API as control serves it."""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress

import pytest
from confluent_kafka import Producer
from playwright.sync_api import Error, Page, Route, expect

from connectors.http.server import HttpServer, health_app
from connectors.kafka.producer import LogProducer, dead_letter
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.runtime import metrics
from connectors.runtime.health import Health
from control import jobs
from control.dead_letter_index import DeadLetterIndex
from control.page.poller import EVERY_SECONDS, pause
from control.process_status import Process, Registry
from schemas import wire
from schemas.job_spec import JobSpec
from schemas.reasons import DeadReason
from tests.support.flow_process import wait_until
from tests.support.served_api import Api

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
LETTERS = str.maketrans("0123456789", "abcdefghij")  # a DID of the PLC directory has no 0, 1, 8 and 9
DIDS = [f"did:plc:{number:024}".translate(LETTERS) for number in range(9)]
WAIT_MS = 60_000


def fill(api: Api) -> None:
    """A mirror with repos in every phase, a job, a failing host, a letter, a skipped range, a cursor; some of it hostile."""
    RepoQueue(api.settings).discover([ListedRepo(did) for did in DIDS])
    phases = ("pending", "backfill", "sync", "sync", "sync", "sync", "unavailable", "failed", "failed")
    for did, phase in zip(DIDS, phases, strict=True):
        api.db.execute(
            "update sluice.repo set phase = %s, host = 'https://pds.test', handle = %s, last_error = %s where did = %s",
            (phase, HOSTILE, f"HTTP 500 {HOSTILE}", did),
        )
    api.db.execute(
        "insert into sluice.host (host, consecutive_failures, failures, requests, last_error) values (%s, 3, 3, 9, %s)",
        ("https://bad.test", HOSTILE),
    )
    api.db.execute(
        "insert into sluice.host (host, paused_until, pause_reason) values"
        " ('https://full.test', now() + interval '10 minutes', 'rate limit')"
    )
    api.db.execute(
        "insert into sluice.dead_letter (part, log_offset, topic, did, reason, error)"
        " values (0, 0, 'firehose wss://relay.test', %s, 'bad_car', %s)",
        (DIDS[0], HOSTILE),
    )
    api.db.execute(
        "insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason)"
        " values ('https://relay.test', '1000', '2000', 'bad_answer')"
    )
    api.db.execute(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', 'https://relay.test', '42')"
    )
    jobs.start(api.db, JobSpec(source="dids", dids=DIDS[:3]), api.settings)
    producer = Producer({"bootstrap.servers": api.settings.kafka_bootstrap})
    for number in range(7):
        producer.produce(api.settings.topic("firehose_live"), b"{}", str(number), partition=0)
    assert producer.flush(60) == 0


@pytest.fixture
def filled(api: Api) -> Api:
    fill(api)
    return api


def cells(page: Page, section: str) -> str:
    return page.locator(f"#{section}").inner_text()


def alive(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-live", "yes", timeout=WAIT_MS)


def test_the_streams_and_answers_of_each_serving_process_are_shown(
    api: Api, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    """V1: from the metrics of the processes of `sluice up`; one that does not answer has none."""
    metrics.SERVE_EVENTS.inc(1234)
    for status, answers in (("200", 7), ("401", 2), ("429", 3), ("503", 5)):
        metrics.SERVE_ANSWERS.labels("/xrpc/a", status).inc(answers)
    server = HttpServer(health_app(Health("serve")), "127.0.0.1", 0)
    processes = [Process("serve-1", "serve", os.getpid(), server.start()), Process("serve-2", "serve", os.getpid(), 1)]
    running = Registry(os.getpid(), "", "", "", 1, 1, processes)
    monkeypatch.setattr("control.page.page_snapshot.registered", lambda _: running)
    counted = [one for one in next(iter(metrics.SERVE_ANSWERS.collect())).samples if one.name.endswith("_total")]
    wanted = [
        sum(one.value for one in counted if not statuses or one.labels["status"] in statuses)
        for statuses in ((), ("401", "429"), ("500", "503"))
    ]
    sent = metrics.SERVE_EVENTS._value.get()
    shown = cells(open_page(api.url, java_script_enabled=False), "serving")
    server.close()
    row = re.search(r"serve-1((?:\s+[\d,]+){6})", shown)
    assert row is not None, shown
    _, events, _, *answers = (float(number.replace(",", "")) for number in row[1].split())
    assert (events, answers) == (sent, wanted)
    assert re.search(r"serve-2(\s+–){6}", shown), shown


def test_without_javascript_the_tables_are_there(filled: Api, open_page: Callable[..., Page]) -> None:
    """T5, N7: how complete a host is stands in percent beside what is left of it, and what a retry is needed for."""
    page = open_page(filled.url, java_script_enabled=False)
    assert "5 of 9 repos (55.6 %)" in cells(page, "coverage")
    assert re.search(r"failed\s+given up after the last attempt\s+2\s+22\.2 %", cells(page, "coverage"))
    assert re.search(r"firehose_live\s+index\s+7\s+7\s+0", cells(page, "lag"))
    assert "https://full.test: rate limit" in cells(page, "processes")
    assert "https://bad.test: 3 failures in a row" in cells(page, "attention")
    assert "failed repos: 2" in cells(page, "attention")
    done = re.search(r"https://pds\.test\s+(\S+ %)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", cells(page, "hosts"))
    assert done is not None
    assert done.groups() == ("55.6 %", "1", "1", "4", "1", "2")
    assert "https://relay.test" in cells(page, "cursors")
    assert DIDS[8] in cells(page, "failed")
    cutoff = filled.db.execute(
        "select to_char(cutoff at time zone 'utc', 'YYYY-MM-DD HH24:MI') from sluice.backfill_job"
    ).fetchone()
    assert cutoff is not None
    assert re.search(rf"1: \S+ \S+.*dids.*{cutoff[0]}", cells(page, "jobs").replace("\n", " "))
    shown = [button.inner_text() for button in page.locator("button:visible").all()]
    assert shown == ["Find"], "a button that cannot work is not shown"


def test_what_the_network_sends_is_text_and_changes_arrive_by_themselves(
    filled: Api, open_page: Callable[..., Page]
) -> None:
    """Handles and errors are hostile: they are shown as they are, and nothing of them runs or is loaded.

    The same page then follows the tables: changes arrive by themselves, and a database that fails is reported and recovers.
    """
    page = open_page(filled.url)
    alive(page)
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    for section in ("failed", "hosts", "dead_letters", "attention"):
        assert HOSTILE in cells(page, section)
    assert page.locator("img").count() == 0
    assert page.locator("script:not([src^='/page/'])").count() == 0
    policy = page.request.get(filled.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy

    page.locator("#cursors .frame").focus()
    filled.db.execute("update sluice.repo set phase = 'sync' where phase = 'backfill'")
    expect(page.locator("#coverage")).to_contain_text("6 of 9 repos", timeout=WAIT_MS)
    filled.db.execute("update sluice.cursor set position = '430043'")
    expect(page.locator("#cursors")).to_contain_text("430043", timeout=WAIT_MS)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Cursors, table", (
        "focus outlives an update"
    )

    filled.db.execute("alter table sluice.dead_letter rename to away")
    expect(page.locator("#trouble")).to_contain_text("dead_letter", timeout=WAIT_MS)
    filled.db.execute("alter table sluice.away rename to dead_letter")
    expect(page.locator("#trouble")).to_be_hidden(timeout=WAIT_MS)


def test_buttons_retry_pause_and_dismiss(filled: Api, open_page: Callable[..., Page]) -> None:
    page = open_page(filled.url)
    alive(page)
    page.get_by_role("button", name=f"Retry {DIDS[7]}").click()
    expect(page.locator("#notice")).to_contain_text(f"Retry {DIDS[7]}: done", timeout=WAIT_MS)
    expect(page.locator("#failed")).not_to_contain_text(DIDS[7], timeout=WAIT_MS)
    phase = filled.db.execute("select phase, retry_count from sluice.repo where did = %s", (DIDS[7],)).fetchone()
    assert phase == ("pending", 0)
    page.get_by_role("button", name="Pause job 1").click()
    expect(page.locator("#jobs .state")).to_have_text("paused", timeout=WAIT_MS)
    page.get_by_role("button", name="Resume job 1").click()
    expect(page.get_by_role("button", name="Pause job 1")).to_be_visible(timeout=WAIT_MS)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Dismiss dead letter 0:0").click()
    assert filled.db.execute("select state from sluice.dead_letter").fetchone() == ("open",), "asked first"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Dismiss dead letter 0:0").click()
    expect(page.locator("#dead_letters .empty")).to_have_text("No dead letter is open.", timeout=WAIT_MS)
    page.get_by_role("button", name="Fill range 1").click()
    expect(page.locator("#notice")).to_contain_text("Fill range 1: done", timeout=WAIT_MS)


def test_dead_letters_are_retried_and_jobs_cancelled_and_opened_again(api: Api, open_page: Callable[..., Page]) -> None:
    """N4, T3, T6: what can be read today settles; what cannot stays open and says why."""
    jobs.start(api.db, JobSpec(source="dids", dids=DIDS[:3]), api.settings)
    event = wire.AccountEvent(seq=1, time="2026-01-01T00:00:00.000Z", did=DIDS[0], active=True)
    payloads = {"good": wire.encode(event), "of old": b"{"}
    letters = [dead_letter("firehose_live", DeadReason.UNDECODABLE, why, value) for why, value in payloads.items()]
    LogProducer(api.settings).send(letters)
    index = DeadLetterIndex(api.settings)
    found = "select part, log_offset, error from sluice.dead_letter order by error"
    wait_until(lambda: index.step(api.db) >= 0 and len(api.db.execute(found).fetchall()) == len(letters))
    index.close()
    good, bad = (f"{part}:{offset}" for part, offset, _ in api.db.execute(found).fetchall())
    page = open_page(api.url)
    alive(page)
    page.get_by_role("button", name=f"Retry dead letter {bad}").click()
    expect(page.locator("#notice")).to_contain_text(
        f"Retry dead letter {bad}: open, Input data was truncated", timeout=WAIT_MS
    )
    page.get_by_role("button", name=f"Retry dead letter {good}").click()
    expect(page.locator("#notice")).to_contain_text(f"Retry dead letter {good}: done", timeout=WAIT_MS)
    expect(page.get_by_role("button", name=f"Retry dead letter {good}")).to_have_count(0, timeout=WAIT_MS)
    expect(page.get_by_role("button", name=f"Retry dead letter {bad}")).to_have_count(1)
    states = api.db.execute("select error, state from sluice.dead_letter order by error").fetchall()
    assert dict(states)["good"] == "retried"
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel job 1").click()
    assert jobs.get(api.db, 1).status == "pending", "asked first"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel job 1").click()
    expect(page.locator("#jobs .state")).to_have_text("cancelled", timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Cancel job 1")).to_have_count(0, timeout=WAIT_MS)
    page.get_by_role("button", name="Retry job 1").click()
    expect(page.locator("#jobs .state")).to_have_text("retry", timeout=WAIT_MS)
    assert jobs.get(api.db, 1).status == "retry"


def test_a_button_that_is_pressed_is_not_replaced_and_a_refused_change_is_reported(
    filled: Api, open_page: Callable[..., Page]
) -> None:
    """Between press and release of a click a section may change: the click counts all the same, and the change is shown."""
    page = open_page(filled.url, expected="409")
    alive(page)
    page.get_by_role("button", name=f"Retry {DIDS[7]}").hover()
    page.mouse.down()
    told = "{sections: {failed: byId('failed').outerHTML.replace('<h2', '<p>changed</p><h2')}, trouble: ''}"
    page.evaluate(f"show({told})")
    assert "changed" not in cells(page, "failed")
    page.evaluate("() => { const f = show; window.shown = []; show = (one) => { shown.push(one); f(one); }; }")
    page.mouse.up()
    expect(page.locator("#notice")).to_contain_text(f"Retry {DIDS[7]}: done", timeout=WAIT_MS)
    page.wait_for_function("shown.some((one) => one.sections.failed?.includes('changed'))")
    expect(page.locator("#failed")).not_to_contain_text(DIDS[7], timeout=WAIT_MS)

    # the button is kept, since an update of the page may remove it before the click
    page.evaluate("did => { kept = document.querySelector(`[data-post='/api/v1/repos/${did}/retry']`); }", DIDS[8])
    filled.db.execute("update sluice.repo set phase = 'sync' where did = %s", (DIDS[8],))
    page.evaluate("post(kept)")
    expect(page.locator("#notice")).to_contain_text("is in phase sync", timeout=WAIT_MS)


def test_snapshots_come_less_often_only_if_all_of_them_are_slow() -> None:
    assert pause([]) == pause([0.1]) == EVERY_SECONDS
    assert pause([9.0, 0.1, 9.0]) == EVERY_SECONDS
    assert pause([3.0, 4.0, 5.0]) == 30.0


def test_a_token_is_asked_for_and_kept_for_the_tab(
    api_with: Callable[..., Api], open_page: Callable[..., Page]
) -> None:
    """Without a token nothing of the mirror is in the page; a reading token shows it and changes nothing."""
    api = api_with(api_token="one-to-change", api_read_token="one-to-read")
    fill(api)
    page = open_page(api.url, expected="the server responded with a status of 40")
    expect(page.get_by_label("Token of the API")).to_be_focused(timeout=WAIT_MS)
    assert DIDS[7] not in page.content()
    expect(page.locator("#live")).to_have_text("a token is needed", timeout=WAIT_MS)
    page.get_by_label("Token of the API").fill("wrong")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#live")).to_have_text("that token is not valid", timeout=WAIT_MS)
    page.get_by_label("Token of the API").fill("one-to-read")
    page.get_by_role("button", name="Show").click()
    alive(page)
    expect(page.locator("#failed")).to_contain_text(DIDS[7], timeout=WAIT_MS)
    page.get_by_role("button", name=f"Retry {DIDS[7]}").click()
    expect(page.locator("#notice")).to_contain_text("this token allows reading only", timeout=WAIT_MS)
    page.reload()
    alive(page)
    assert page.evaluate("sessionStorage.getItem('sluice-token')") == "one-to-read"
    assert page.evaluate("localStorage.length") == 0


def test_a_late_refusal_is_of_its_own_token(api_with: Callable[..., Api], open_page: Callable[..., Page]) -> None:
    """The answer to a wrong token arrives after the right one was given: the page goes on with the right one."""
    api = api_with(api_token="one-to-change", api_read_token="one-to-read")
    page = open_page(api.url, expected="the server responded with a status of 40")
    held: list[Route] = []

    def hold(route: Route) -> None:
        wrong = route.request.headers.get("authorization") == "Bearer wrong"
        held.append(route) if wrong else route.continue_()

    page.route(f"{api.url}/", hold)
    for token in ("wrong", "one-to-read"):
        page.get_by_label("Token of the API").fill(token)
        page.get_by_role("button", name="Show").click()
        while not held:
            page.wait_for_timeout(20)
    alive(page)
    with suppress(Error):  # the browser no longer wants the answer
        held[0].continue_()
    expect(page.get_by_label("Token of the API")).to_be_hidden()
    page.reload()
    alive(page)
    assert page.evaluate("sessionStorage.getItem('sluice-token')") == "one-to-read"


def test_the_stream_is_server_sent_events(filled: Api) -> None:
    """Any client that knows server-sent events can read it: all sections first, then only what changed."""
    import urllib.request

    with urllib.request.urlopen(f"{filled.url}/events", timeout=60) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.readline() == b"event: page\n"
        first = json.loads(stream.readline().removeprefix(b"data: "))
        assert {"coverage", "jobs", "dead_letters", "cursors"} <= set(first["sections"])
        filled.db.execute("delete from sluice.dead_letter")
        for line in stream:
            if line.startswith(b"data: "):
                later = json.loads(line.removeprefix(b"data: "))["sections"]
                if "dead_letters" in later:
                    break
        assert "skipped" not in later


def test_open_pages_are_limited(filled: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    monkeypatch.setattr("control.page.routes.STREAMS", 1)
    with urllib.request.urlopen(f"{filled.url}/events", timeout=60) as stream:
        stream.readline()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{filled.url}/events", timeout=60)
        assert refused.value.code == 503
