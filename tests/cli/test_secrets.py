"""Passwords and tokens never reach a log line or an error line."""

from __future__ import annotations

import io
import json
import logging
import os
import sys

import psycopg
import pytest

from cli.settings_text import page
from connectors.runtime import logs
from connectors.runtime.errors import one_line
from schemas.settings import Settings
from tests.support import zygote

PASSWORD, TOKEN = 'pa:s/s"@word', 'a "quoted" token'
URL = f"postgresql://user:{PASSWORD}@db.test/sluice"


def fail(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("style", ["json", "text"])
def test_log_lines_carry_no_secret(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the message, in a field, in a traceback; the rest of the line stays."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logs, "_hidden", set())
    before = logging.getLogger().handlers[:]
    try:
        logs.hide(TOKEN)
        logs.log_to_stderr(style)
        try:
            fail(f"refused {URL} and {TOKEN}")
        except ValueError:
            logging.getLogger("test").exception(f"cannot use {URL}", extra={"url": URL, "token": TOKEN, "kept": "this"})
    finally:
        logging.getLogger().handlers[:] = before
    text = stream.getvalue()
    assert "word" not in text
    assert "quoted" not in text
    assert text.count("postgresql://user:***@db.test/sluice") == 3
    assert "this" in text
    if style == "json":
        assert json.loads(text)["kept"] == "this"


def test_an_error_of_the_database_library_does_not_show_its_password() -> None:
    """It repeats a connection string that it cannot read."""
    with pytest.raises(psycopg.Error) as caught:
        psycopg.connect("postgresq://user:hunter2@127.0.0.1/db")
    assert "hunter2" in str(caught.value), "the library still does so, or this test proves nothing"
    assert "hunter2" not in one_line(caught.value)


def test_no_command_shows_a_secret() -> None:
    variables = {
        "SLUICE_DATABASE": "postgresq://user:hunter2@127.0.0.1/db",
        "SLUICE_API_TOKEN": "hunter3",
        "SLUICE_API_READ_TOKEN": "hunter4",
        "SLUICE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")} | variables
    for command in (["settings"], ["migrate"], ["run", "control"]):
        done = zygote.run(["sluice", *command], env=environment, timeout=120)
        assert "hunter" not in done.stdout + done.stderr, command
        assert done.stdout + done.stderr


def test_settings_do_not_show_their_secrets() -> None:
    settings = Settings(database="postgresql://u:hunter2@h/d", api_token="hunter3", api_read_token="hunter4")
    assert "hunter" not in repr(settings) + page(settings)
