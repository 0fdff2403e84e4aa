"""The settings: how many there are, how they reach a child process, and what an old or wrong name answers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from protocol.enforcement import Enforcement
from schemas.settings import PUBLIC, Settings, SettingsError, load, variables
from schemas.settings_renamed import RENAMED
from schemas.tuning import Tuning

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = ("README.md", ".env.example", "redpanda.yml", "Dockerfile", "Makefile", "docs", "deploy")
OTHERS = {"PURE", "CACHE_DIR", "TEST_CONTAINERS", "CONTROL_PORT", "TUNING"}  # variables of no setting


def test_public_settings_are_few_and_each_has_a_meaning() -> None:
    assert len(PUBLIC) <= 45
    assert [name for name in PUBLIC if not Settings.model_fields[name].description] == []
    assert set(PUBLIC) & set(Tuning.model_fields) == set()


def test_operators_texts_name_no_other_setting() -> None:
    known = {name.upper() for name in PUBLIC} | OTHERS
    found = set()
    listed = subprocess.run(["git", "ls-files", "-z", *OPERATORS], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in map(ROOT.joinpath, listed.stdout.split("\0")[:-1]):
        text = path.read_text("utf-8", errors="ignore")
        found |= {(path.name, one) for one in re.findall(r"SLUICE_([A-Z][A-Z_]*[A-Z])", text) if one not in known}
    assert found == set()


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_former_name_answers_with_the_name_of_today(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new in PUBLIC
    monkeypatch.setenv(f"SLUICE_{old.upper()}", "x")
    with pytest.raises(SettingsError, match=f"^SLUICE_{old.upper()} is now SLUICE_{new.upper()}; rename it$"):
        load()


def test_a_private_name_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_LEASE_SECONDS", "2")
    with pytest.raises(SettingsError, match=r"^SLUICE_LEASE_SECONDS is no longer a setting; remove it$"):
        load()


@pytest.mark.parametrize("text", ["{", "[]", '{"lease": 2}', '{"lease_seconds": "long"}'])
def test_a_wrong_tuning_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_TUNING", text)
    with pytest.raises(SettingsError, match=r"^SLUICE_TUNING: .+") as raised:
        load()
    assert "\n" not in str(raised.value)


def test_a_child_process_gets_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load(relays=["https://one.test", "https://two.test"], verify="report", lease_seconds=2.0, appview=True)
    passed = variables(given)
    assert passed == {
        "SLUICE_RELAYS": "https://one.test,https://two.test",
        "SLUICE_VERIFY": "report",
        "SLUICE_APPVIEW": "true",
        "SLUICE_TUNING": '{"lease_seconds":2.0}',
    }
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    assert load() == given
    assert load(epoch_seconds=0.1).tuning == Tuning(lease_seconds=2.0, epoch_seconds=0.1)


def test_a_copy_keeps_what_it_does_not_change() -> None:
    given = Settings(lease_seconds=2.0, epoch_seconds=0.1, user_agent="mine")
    copy = given.replaced(lease_seconds=3.0, verify=Enforcement.REPORT)
    assert copy.tuning == Tuning(lease_seconds=3.0, epoch_seconds=0.1)
    assert (copy.user_agent, copy.verify) == ("mine", Enforcement.REPORT)
    assert given.tuning.lease_seconds == 2.0
