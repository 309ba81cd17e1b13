"""Pages in the system's Chromium, and what the accessibility rules of axe find on them.

pip install -e ".[serve,browser,test]"; apt-get install chromium
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("playwright", reason="the browser extra is not installed")
pytest.importorskip("axe_playwright_python", reason="the browser extra is not installed")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE = 180_000  # milliseconds, on a busy machine
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium of the system; Playwright's own is not needed. A test without it is skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, what it asked for and what it complained about."""

    def __init__(self, browser: Browser, address: str, size: str) -> None:
        width, height = SIZES[size]
        self.page: Page = browser.new_page(viewport={"width": width, "height": height}, has_touch=size == "phone")
        self.page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def check(self) -> None:
        """No serious fault of accessibility in light and dark, nothing wider than the window."""
        for colors in ("light", "dark"):
            self.page.emulate_media(color_scheme=colors, reduced_motion="reduce")
            found = Axe().run(self.page).response["violations"]
            faults = [
                (each["id"], node["html"], node["failureSummary"])
                for each in found
                if each["impact"] in ("serious", "critical")
                for node in each["nodes"]
            ]
            assert faults == [], colors
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
