"""pytest plugin: `browser`, a real Chromium (Debian's), and `open_page(url, …)` → a page whose errors fail the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ANSWER_MS = 60_000
expect.set_options(timeout=ANSWER_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module, because its event loop runs in the tests' thread; every page has a context of its own."""
    found = shutil.which("chromium")
    assert found, "chromium is missing: `make tools` installs it (Debian's package chromium)"
    with sync_playwright() as playwright:
        # the sandbox needs a user that is not root; the pages are our own
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(url, expected=…, **context options)`. What the console says of errors ends the test, but for `expected`."""
    opened: list[tuple[Page, list[str], str]] = []

    def factory(url: str, expected: str = "", **options: Any) -> Page:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(ANSWER_MS)
        errors: list[str] = []
        opened.append((page, errors, expected))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield factory
    for page, _, _ in opened:
        page.context.close()
    for _, errors, expected in opened:
        assert [error for error in errors if not expected or expected not in error] == []
