"""`python -m tests.support.page_pictures URL`: the pictures of docs/images, from a running mirror (`sluice up --simulate`)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 375, "height": 812}
SETTLE_MS = 7000  # two snapshots, for the rates


def shot(browser: Browser, url: str, name: str, size: dict[str, int], scheme: str, *, full: bool = False) -> None:
    page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1)
    page.goto(url)
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=IMAGES / f"{name}.png", full_page=full)
    page.close()


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shot(browser, url, "page", DESKTOP, "light")
        shot(browser, url, "page-dark", DESKTOP, "dark")
        shot(browser, url, "page-phone", PHONE, "light")
        page = browser.new_page()
        page.goto(url)
        repo = page.locator('#failed a[href^="/repos/"], #dead_letters a[href^="/repos/"]').first.get_attribute("href")
        page.goto(f"{url}{repo}")
        record = page.locator('#records a[href^="/repos/"]').first
        shot(browser, f"{url}{repo}", "page-repo", DESKTOP, "light")
        shot(browser, f"{url}{repo}", "page-repo-phone", PHONE, "dark")
        if record.count():
            shot(browser, f"{url}{record.get_attribute('href')}", "page-record", DESKTOP, "light")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
