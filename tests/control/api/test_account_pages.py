"""The pages of a repo and its records, the search, the charts, and what everybody can use: in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
import psycopg
import pytest
from playwright.sync_api import Page, expect

from control.page.account_routes import pretty
from control.page.rendering import code, labelled, linked
from tests.control.api.test_status_page import DIDS, HOSTILE, WAIT_MS, alive, cells, fill
from tests.support.served_api import Api

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
DID, HANDLE, POST = DIDS[7], "alice.test", "app.bsky.feed.post"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def fill_repo(db: psycopg.Connection[Any]) -> None:
    """What a failed repo can have, with hostile text wherever the network sends it; and two hours of figures."""
    values = {"did": DID, "cid": CID, "hostile": HOSTILE, "post": POST, "handle": HANDLE}
    for statement in (
        "insert into sluice.handle (did, handle, verified, verified_at) values (%(did)s, %(handle)s, true, now())",
        "insert into sluice.identity (did, pds) values (%(did)s, 'https://pds.test')",
        "insert into sluice.backfill_attempt (did, attempt, host, started_at, ended_at, outcome, error)"
        " select %(did)s, n, 'https://pds.test', now() - interval '90 s', now(), 'failed', 'HTTP 50' || n || %(hostile)s"
        " from generate_series(1, 3) n",
        "insert into sluice.collection (name) values (%(post)s)",
        "insert into sluice.record_row (rev, indexed_at, repo, collection, attempt, rkey, cid, json)"
        " select 1, now() + n * interval '1 s', r.id, c.id, 1, '3k' || lpad(n::text, 3, '0'), sluice.cid_bytes(%(cid)s),"
        " json_build_object('text', %(hostile)s::text, 'reply', 'at://' || %(did)s || '/app.bsky.feed.post/3k001', 'n', n)"
        " from sluice.repo r, sluice.collection c, generate_series(1, 60) n where r.did = %(did)s",
        "insert into sluice.label (src, uri, val, neg, cts, seq) values"
        " ('did:plc:labeler', %(did)s, %(hostile)s, true, '2026-01-01T00:00:00Z', 1)",
        "insert into sluice.buffered_event (did, log_offset, rev, event) values (%(did)s, 7, '3l33333333333', '')",
        "update sluice.dead_letter set did = %(did)s",
        "insert into sluice.figure (at, figures) select now() - make_interval(secs => 20 * n), jsonb_build_object("
        "'records', 900000 - 1000 * n, 'events', 90000 - 60 * n, 'repos', 9000 - n, 'lag firehose_live', mod(n, 50),"
        " 'lag label_live', 3) from generate_series(0, 360) n",
    ):
        db.execute(statement.encode(), values)


@pytest.fixture
def filled(api: Api) -> Api:
    fill(api)
    fill_repo(api.db)
    return api


def find(page: Page, text: str) -> None:
    page.get_by_role("searchbox").fill(text)
    page.get_by_role("button", name="Find").click()


def test_a_search_leads_to_a_repo_its_records_and_one_of_them(filled: Api, open_page: Callable[..., Page]) -> None:
    """By DID, handle and AT-URI; every text of the network is shown as text, and nothing of it runs."""
    page = open_page(filled.url, expected="40")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    for text in (DID, f"@{HANDLE.upper()}", f"at://{DID}"):
        find(page, text)
        expect(page).to_have_url(f"{filled.url}/repos/{DID}", timeout=WAIT_MS)
        expect(page.locator("#repo h2")).to_have_text(HANDLE)
        page.goto(filled.url)
    find(page, DID)
    expect(page.locator("#attempts tbody tr")).to_have_count(3)
    assert re.search(
        rf"3\s+failed\s+\S+ \S+ UTC\s+\S+ \S+ UTC\s+1 min\s+https://pds.test\s+HTTP 503{re.escape(HOSTILE)}",
        cells(page, "attempts"),
    )
    assert f"{HOSTILE} (withdrawn)" in cells(page, "labels")
    assert "3l33333333333" in cells(page, "buffered")
    assert HOSTILE in cells(page, "dead_letters")
    assert re.search(rf"{POST}\s+60", cells(page, "collections"))
    page.get_by_role("link", name=POST, exact=True).click()
    expect(page.locator("#records tbody tr")).to_have_count(50)
    assert cells(page, "records").index("3k060") < cells(page, "records").index("3k059")
    page.get_by_role("link", name="Older records").click()
    expect(page.locator("#records tbody tr")).to_have_count(10)
    page.get_by_role("link", name="3k007").click()
    assert f'"text": "{HOSTILE.replace(chr(34), chr(92) + chr(34))}"' in cells(page, "record")
    page.get_by_role("link", name=f"at://{DID}/{POST}/3k001").click()
    expect(page).to_have_url(f"{filled.url}/repos/{DID}/{POST}/3k001", timeout=WAIT_MS)
    assert CID in cells(page, "record")
    assert page.locator("img").count() == 0
    for text, message in {
        "nobody.test": "no known DID document claims the handle nobody.test",
        "<b>alice": "'<b>alice' is not a DID or a handle",
        f"at://{DID}/{POST}/none": f"at://{DID}/{POST}/none is not in the mirror",
        DIDS[0].replace("a", "z"): "is not in the mirror",
        "alice.test/a": "write a DID",
    }.items():
        find(page, text)
        expect(page.locator("#message")).to_contain_text(message, timeout=WAIT_MS)


def test_a_repo_is_retried_and_audited_on_its_page(filled: Api, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{filled.url}/repos/{DID}")
    alive(page)
    page.get_by_role("button", name=f"Retry {DID}").click()
    expect(page.locator("#notice")).to_have_text(f"Retry {DID}: done", timeout=WAIT_MS)
    expect(page.locator("#repo .state")).to_have_text("pending", timeout=WAIT_MS)
    filled.db.execute("update sluice.repo set phase = 'sync', rev = '3l22222222222' where did = %s", (DID,))
    page.get_by_role("button", name=f"Audit now {DID}").click()  # the page asks again by itself
    expect(page.locator("#notice")).to_contain_text("the repo is fetched again", timeout=WAIT_MS)
    assert f"record: {POST}/3k001" in page.locator("#notice").inner_text()
    expect(page.locator("#repo")).to_contain_text("pending (audit)", timeout=WAIT_MS)


def test_charts_have_hours_of_history_and_survive_a_reload(filled: Api, open_page: Callable[..., Page]) -> None:
    page = open_page(filled.url, timezone_id="Asia/Tokyo")
    alive(page)
    summary = page.locator("[data-chart=records] .summary")
    expect(summary).to_have_text("now 50, at most 50", timeout=WAIT_MS)
    expect(page.locator("[data-chart=lag] .u-series")).to_have_count(3)  # the time, and two topics
    assert page.locator(".plot canvas").count() == 4
    page.get_by_role("button", name="1 hour").click()
    page.reload()
    expect(page.get_by_role("button", name="1 hour")).to_have_attribute("aria-pressed", "true", timeout=WAIT_MS)
    expect(summary).to_have_text("now 50, at most 50", timeout=WAIT_MS)
    span = page.evaluate("(() => { const t = [...plots.values()][0].plot.data[0]; return t.at(-1) - t[0]; })()")
    assert 3300 < span <= 3640
    assert page.evaluate("ticks(null, [1767312000 - 3600])") == ["23:00"], "UTC, whatever the browser's zone is"
    canvas = page.locator(".plot canvas").first.element_handle()
    filled.db.execute("update sluice.cursor set position = '777'")
    expect(page.locator("#cursors")).to_contain_text("777", timeout=WAIT_MS)
    assert canvas is not None
    assert canvas.evaluate("one => one.isConnected"), "an update leaves the charts"


def test_what_is_empty_is_folded_and_problems_lead_to_the_runbook(api: Api, open_page: Callable[..., Page]) -> None:
    page = open_page(api.url)
    alive(page)
    assert not page.locator("#failed details").evaluate("one => one.open")
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Failed repos").click()
    assert page.locator("#failed details").evaluate("one => one.open")
    expect(page.locator("#attention .fine")).to_be_visible()
    fill(api)
    expect(page.locator("#attention li.warn").first).to_be_visible(timeout=WAIT_MS)
    assert page.locator("#failed details").evaluate("one => one.open"), "as it was left"
    page.locator("#attention").get_by_role("link", name="Runbook: SluiceReposFail").click()
    expect(page).to_have_url(f"{api.url}/runbook#SluiceReposFail", timeout=WAIT_MS)
    assert "backfill retry --all" in page.locator("article#SluiceReposFail").inner_text()


def test_a_repo_s_page_needs_the_token_too(api_with: Callable[..., Api], open_page: Callable[..., Page]) -> None:
    api = api_with(api_token="one-to-change", api_read_token="one-to-read")
    fill(api)
    fill_repo(api.db)
    page = open_page(f"{api.url}/search?q={HANDLE}", expected="the server responded with a status of 40")
    assert DID not in page.content()
    for token in ("wrong", "one-to-read"):
        page.get_by_label("Token of the API").fill(token)
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#live")).to_contain_text("not valid" if token == "wrong" else "as of", timeout=WAIT_MS)
    expect(page).to_have_url(f"{api.url}/repos/{DID}")
    expect(page.locator("#attempts tbody tr")).to_have_count(3)
    page.get_by_role("button", name=f"Retry {DID}").click()
    expect(page.locator("#notice")).to_contain_text("this token allows reading only", timeout=WAIT_MS)


PAGES = ("", f"/repos/{DID}", f"/repos/{DID}/{POST}", f"/repos/{DID}/{POST}/3k001", "/runbook")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_used_by_everyone(filled: Api, open_page: Callable[..., Page], scheme: Any) -> None:
    """axe-core finds nothing: landmarks, headings, names, tables, contrast. A phone's width cuts nothing."""
    page = open_page(filled.url, color_scheme=scheme)
    for path in PAGES:
        page.goto(f"{filled.url}{path}")
        if not path:
            alive(page)
            expect(page.locator("[data-chart=lag] canvas")).to_be_attached(timeout=WAIT_MS)
        assert violations(page) == [], path
        page.set_viewport_size({"width": 375, "height": 812})
        page.wait_for_function("innerWidth === 375")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
        assert page.evaluate(CUT) == [], path
        assert violations(page) == [], f"{path}, narrow"
        page.set_viewport_size({"width": 1280, "height": 720})
    page.evaluate("document.querySelector('h1').remove(); document.body.append(new Image())")
    assert {"image-alt"} <= set(violations(page)), "the checks see what they are for"


def violations(page: Page) -> list[str]:
    page.evaluate(AXE)
    found: list[dict[str, Any]] = page.evaluate("axe.run(document).then((one) => one.violations)")
    return [one["id"] if one["id"] == "image-alt" else f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


CUT = """[...document.querySelectorAll('.frame')].filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"""


def test_the_keyboard_reaches_everything_in_order(filled: Api, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{filled.url}/repos/{DID}")
    alive(page)
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()"))
    assert reached[0] == "To the content"
    assert [name for name in reached if name in ("Sluice", "Find", "Runbook", f"Retry {DID}")] == [
        "Sluice",
        "Find",
        "Runbook",
        f"Retry {DID}",
    ]


def test_a_database_that_does_not_answer_is_said_on_every_page(
    api_with: Callable[..., Api], open_page: Callable[..., Page]
) -> None:
    api = api_with(database="postgresql://127.0.0.1:9/none?connect_timeout=1")
    page = open_page(f"{api.url}/repos/{DID}", expected="503")
    expect(page.locator("#trouble")).to_be_visible()
    assert page.locator("#message").inner_text().startswith("No answer")


def test_templates_escape_what_they_link() -> None:
    assert linked('<b> at://did:plc:a/b.c/d" did:web:x') == (
        '&lt;b&gt; <a href="/search?q=at%3A%2F%2Fdid%3Aplc%3Aa%2Fb.c%2Fd">at://did:plc:a/b.c/d</a>&#34; '
        '<a href="/search?q=did%3Aweb%3Ax">did:web:x</a>'
    )
    assert code("a `b<c` <d>") == "a <code>b&lt;c</code> &lt;d&gt;"
    assert labelled("<th>x</th><td>1</td>", ["X", '"<#']) == '<th>x</th><td role="cell" data-label="&#34;&lt;">1</td>'
    assert pretty('{"a":1.0,"b":"é"}') == '{\n  "a": 1.0,\n  "b": "é"\n}'
    assert pretty("{") == "{"
    assert pretty("[" * 100_000) == "[" * 100_000
