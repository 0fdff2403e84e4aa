"""`make appview` beside `SLUICE_APPVIEW=true sluice up --simulate`: the official AppView answers, by handle too.

Its packages are those of the newest official AppView of the other tests: they are linked, so that npm installs them only once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from control.process_status import registered
from local.embedded.guarded_process import free_port
from tests.support import ROOT
from tests.support.official.appview_servers import VERSIONS, release
from tests.support.whole_mirror import Mirror, mirrors, wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1500)]
START_SECONDS = 300.0
MODULES = ROOT / "deploy" / "appview" / "node_modules"
SYNC_SECONDS = 240.0
VERIFIED = """
    select h.did, h.handle from sluice.handle h join sluice.repo r using (did) join bsky.profile p on p.creator = h.did
    where h.verified and r.active and r.phase = 'sync' order by 1 limit 1"""


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """What `make appview` needs, in its place."""
    installed = release(VERSIONS[-1]).modules
    wanted = json.loads((MODULES.parent / "package.json").read_text())["dependencies"]
    found = {name: json.loads((installed / name / "package.json").read_text())["version"] for name in wanted}
    assert found == wanted, "the tests' AppView is another one than that of `make appview`"
    if not MODULES.exists():
        draft = MODULES.with_name("node_modules.draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(installed, draft, symlinks=True, copy_function=os.link)
        draft.rename(MODULES)
    (MODULES / ".package-lock.json").touch()


@pytest.fixture
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with mirrors(tmp_path_factory.mktemp("appview")) as factory:
        yield factory(None, appview=True)


def appview(data_dir: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = ["make", "--silent", "appview", f"DATA_DIR={data_dir}", f"PORT={port}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "MAKE"))}
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)


def asked(port: int, method: str, query: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/xrpc/{method}?{query}", timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as err:
        return json.loads(err.read())
    except OSError:
        return {}


def verified(url: str) -> tuple[str, str] | None:
    with psycopg.connect(url) as db:
        return db.execute(VERIFIED).fetchone()


def test_profiles_are_found_by_handle(mirror: Mirror, tmp_path: Path) -> None:
    mirror.up("--simulate")
    folder = mirror.data_dir / "simulated"
    running = wait_for(lambda: mirror.alive() and registered(folder), SYNC_SECONDS, mirror.last_lines)
    did, handle = wait_for(lambda: mirror.alive() and verified(running.database), SYNC_SECONDS, mirror.last_lines)
    port, log = free_port(), tmp_path / "appview.log"
    process = appview(mirror.data_dir, port, log)
    try:

        def profile() -> Any:
            assert process.poll() is None, log.read_text()
            return asked(port, "app.bsky.actor.getProfile", f"actor={handle}").get("did")

        assert wait_for(profile, START_SECONDS, log.read_text) == did
        posts = asked(port, "app.bsky.feed.getAuthorFeed", f"actor={handle}")
        assert "feed" in posts, posts
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15)
    assert mirror.interrupt() == 0


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    ended = appview(tmp_path, free_port(), tmp_path / "log")
    assert ended.wait(START_SECONDS) == 2
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line.startswith("appview.mjs: ")] == [
        f"appview.mjs: no `sluice up` runs in {tmp_path}; start it, or give --data-dir DIR or --database URL"
    ]
