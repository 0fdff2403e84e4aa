"""The sections of the page: `Look` → name → HTML. Pure, but for the clock of the ages that the look brought along."""

import time
from urllib.parse import quote

from control.attention import attention as needs
from control.page.charts import chart
from control.page.figures import age, count, moment, share
from control.page.look import ROWS, Look, done
from control.page.markup import Markup, Part, tag
from control.page.tables import button, meter, section, table
from control.page.watcher import Course
from control.status import PHASES, held
from schemas.job_spec import Job, JobStatus

MEANING = {
    "pending": "to be fetched",
    "backfill": "being fetched",
    "sync": "complete, following the stream",
    "unavailable": "deactivated, taken down or deleted",
    "failed": "given up after the last attempt",
}
PAUSABLE = {JobStatus.PENDING, JobStatus.RUNNING, JobStatus.RETRY, JobStatus.PAUSED_QUOTA_LIMIT}
OVER = {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


def sections(look: Look, course: Course) -> dict[str, Markup]:
    """Every section, in the order of the page."""
    return {
        "attention": attention(look),
        "coverage": coverage(look),
        "rates": rates(look, course),
        "jobs": jobs(look),
        "paused": paused(look),
        "hosts": hosts(look),
        "failed": failed(look),
        "letters": letters(look),
        "skipped": skipped(look),
        "cursors": cursors(look),
    }


def attention(look: Look) -> Markup:
    found = needs(look.status, now=time.time())
    body = (
        tag("ul", [tag("li", f"{one.what}; {one.remedy}") for one in found])
        if found
        else tag("p", "Nothing.", class_="empty")
    )
    return section("attention", "Needs attention", body)


def coverage(look: Look) -> Markup:
    repos = look.status.repos
    total = sum(repos.values())
    there = repos["sync"] + repos["unavailable"]
    headline = tag("p", tag("b", count(there)), f" of {count(total)} repos ({share(there, total)})", class_="headline")
    rows = [[phase, MEANING[phase], count(repos[phase]), share(repos[phase], total)] for phase in PHASES]
    facts = (
        f"About {count(look.status.records)} records and {count(look.status.labels)} labels in the tables,"
        f" {held(look.status)} live events held for running backfills,"
        f" {count(look.status.retrying)} repos waiting for another attempt."
    )
    grid = table("Repos by phase", ("Phase", "Meaning", "Repos#", "Share#"), rows, empty="No repo is known yet.")
    return section("coverage", "Coverage", headline, meter("repos that are done", there, total), grid, tag("p", facts))


def rates(look: Look, course: Course) -> Markup:
    shown = [("repos", "Repos", "done/s"), ("records", "Records", "written/s"), ("events", "Live events", "read/s")]
    charts = [chart(title, unit, course.points.get(name, ())) for name, title, unit in shown]
    rows = []
    for (group, topic), lag in look.status.lag.items():
        charts.append(chart(f"Lag of {topic}", "messages", course.points.get(f"lag {topic}", ())))
        parts = [one for one in look.status.standings if (one.group, one.topic) == (group, topic)]
        lost = sum(one.lost for one in parts)
        rows.append([topic, group, count(lag), count(max((one.lag for one in parts), default=0)), count(lost)])
    heads = ("Topic", "Group", "Messages to settle#", "Most in a partition#", "Lost to retention#")
    note = "The charts cover the minutes since somebody began to look."
    grid = table("Lag of every group", heads, rows, empty="No topic yet.")
    return section("rates", "Rates and lag", tag("div", charts, class_="charts"), grid, note=note)


def jobs(look: Look) -> Markup:
    heads = ("Job", "Source", "State", "Progress", "Listed#", "Rate#", "Time left#", "Cutoff", "Actions")
    rows = [
        [
            f"{job.id}: {job.name}",
            job.source,
            _state(job),
            _progress(job),
            count(job.counts.listed),
            "–" if job.rate_per_second is None else f"{job.rate_per_second:.1f}/s",
            age(job.eta_seconds),
            moment(job.cutoff.time),
            tag("div", _actions(job), class_="actions"),
        ]
        for job in look.jobs
    ]
    return section("jobs", "Jobs", table("Backfill jobs", heads, rows, empty="No job yet."))


def _state(job: Job) -> Part:
    until = [" until ", moment(job.resume_at)] if job.resume_at and job.status not in OVER else None
    why = tag("div", job.error, class_="why") if job.error else None
    return [tag("span", job.status.value.replace("_", " "), class_=f"state {job.status}"), until, why]


def _progress(job: Job) -> Part:
    counts = job.counts
    ended = counts.synced + counts.unavailable + counts.failed
    whole = ended + counts.pending
    if not whole:
        return "no repo of its own"
    more = f", {count(counts.failed)} failed" if counts.failed else ""
    return [meter(f"job {job.id}", ended, whole), tag("div", f"{count(ended)} of {count(whole)}{more}")]


def _actions(job: Job) -> list[Markup]:
    path, what = f"/api/v1/jobs/{job.id}", f"job {job.id}"
    found = []
    if job.status in PAUSABLE:
        found.append(button("Pause", what, f"{path}/pause"))
    if job.status in (JobStatus.PAUSED, JobStatus.PAUSED_QUOTA_LIMIT):
        found.append(button("Resume", what, f"{path}/resume"))
    if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        found.append(button("Retry", what, f"{path}/retry"))
    if job.status not in OVER:
        found.append(button("Cancel", what, f"{path}/cancel", sure=True))
    return found


def paused(look: Look) -> Markup:
    rows = [[seen.name, seen.state, seen.why or "–", "yes" if seen.ready else "no"] for seen in look.processes]
    waits = [tag("li", what) for what in look.status.paused]
    body = tag("ul", waits) if waits else tag("p", "Nothing is paused.", class_="empty")
    grid = table("Processes of this machine", ("Process", "State", "Why", "Ready"), rows, empty="") if rows else None
    return section("paused", "Paused, and processes", body, grid)


def hosts(look: Look) -> Markup:
    work = [
        [
            row["host"],
            [
                meter(f"repos of {row['host']} that are done", done(row), row["total"]),
                " ",
                share(done(row), row["total"]),
            ],
            *(count(row.get(phase, 0)) for phase in PHASES),
        ]
        for row in look.hosts
    ]
    failing = [
        [
            row["host"],
            count(row["consecutive_failures"]),
            f"{count(row['failures'])} of {count(row['requests'])}",
            row["last_error"],
            f"{row['pause_reason'] or 'paused'}, {age(row['paused_seconds'])} more" if row["paused_seconds"] else "–",
        ]
        for row in look.status.failing_hosts
    ]
    return section(
        "hosts",
        "Hosts",
        tag("h3", "With most work left"),
        table(
            "Hosts with most work left",
            ("PDS", "Done", *(f"{p}#" for p in PHASES)),
            work,
            empty="No host has work left.",
        ),
        tag("h3", "Failing or paused"),
        table(
            "Failing hosts", ("PDS", "In a row#", "Failures#", "Last error", "Paused"), failing, empty="No host fails."
        ),
    )


def failed(look: Look) -> Markup:
    rows = [
        [repo.did, repo.handle, repo.host, repo.last_error or repo.reason, count(repo.retry_count), _again(repo.did)]
        for repo in look.failed
    ]
    heads = ("DID", "Handle", "PDS", "Last error", "Attempts#", "Actions")
    note = _more(len(rows), "sluice backfill retry --all", "retries all of them")
    return section("failed", "Failed repos", table("Failed repos", heads, rows, empty="No repo has failed."), note=note)


def _again(did: str) -> Markup:
    return button("Retry", did, f"/api/v1/repos/{quote(did, safe=':')}/retry")


def letters(look: Look) -> Markup:
    rows = []
    for letter in look.letters:
        path = f"/api/v1/dead-letters/{letter.id}"
        retry = button("Retry", f"dead letter {letter.id}", f"{path}/retry")
        dismiss = button("Dismiss", f"dead letter {letter.id}", f"{path}/dismiss", sure=True)
        actions = tag("div", retry, dismiss, class_="actions")
        rows.append(
            [letter.id, letter.topic, letter.did, letter.reason, letter.error, moment(letter.noticed_at), actions]
        )
    heads = ("Place", "From", "DID", "Reason", "Error", "Noticed", "Actions")
    note = _more(len(rows), "sluice dead-letters list", "shows all of them")
    grid = table("Open dead letters", heads, rows, empty="No dead letter is open.")
    return section("letters", "Dead letters", grid, note=note)


def skipped(look: Look) -> Markup:
    rows = [
        [
            str(one.id),
            one.upstream,
            f"{one.from_cursor} – {one.to_cursor}",
            one.reason,
            count(one.retry_count),
            moment(one.skipped_at),
            button("Fill", f"range {one.id}", "/api/v1/skipped/fill", body=f'{{"ids":[{one.id}]}}'),
        ]
        for one in look.skipped
    ]
    heads = ("Range", "Upstream", "Cursors", "Reason", "Tries#", "Since", "Actions")
    gaps = look.status.stream_gaps
    note = (
        f"Stretches of streams that were not read: {count(gaps)}. A listing that begins later answers them."
        if gaps
        else None
    )
    return section(
        "skipped", "Skipped ranges", table("Skipped ranges", heads, rows, empty="No range is open."), note=note
    )


def cursors(look: Look) -> Markup:
    rows = [
        [row["upstream"], row["flow"], row["position"] or "start", age(row["age_seconds"])]
        for row in look.status.cursors[: 2 * ROWS]
    ]
    heads = ("Upstream", "Flow", "Position#", "Stored before#")
    return section("cursors", "Cursors", table("Cursors", heads, rows, empty="No cursor yet."))


def _more(shown: int, command: str, does: str) -> Part:
    return ["The first ", str(ROWS), "; ", tag("code", command), f" {does}."] if shown == ROWS else None
