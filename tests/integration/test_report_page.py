"""`report.html` of a run in Chromium, on a desktop and on a phone, in light and dark.

pip install -e ".[browser,test]"; apt-get install chromium
python -m pytest -m slow tests/integration/test_report_page.py
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import SIZES, Visit, launched
from playwright.sync_api import Browser

from llmrec.pipeline import FOLDERS
from llmrec.run_report import PAGE, run_report

pytestmark = pytest.mark.slow

RELEASED = Path(__file__).parents[1] / "data" / "released" / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with all sections, alone in a folder."""
    path = tmp_path_factory.mktemp("report") / PAGE
    path.write_text(run_report(RELEASED, FOLDERS), "utf-8")
    return path


@pytest.mark.parametrize("size", SIZES)
def test_the_report_in_a_browser(browser: Browser, report: Path, size: str) -> None:
    visit = Visit(browser, report.as_uri(), size)
    page = visit.page
    visit.check()

    # All pictures are drawn, and a link of the contents goes to its section.
    pictures = page.locator("img")
    assert pictures.count() == 3, "slices, loss, codes"
    assert pictures.evaluate_all("all => all.every(each => each.complete && each.naturalWidth > 100)")
    for link in page.get_by_role("navigation").get_by_role("link").all():
        link.click()
        assert page.url == report.as_uri() + str(link.get_attribute("href"))
        assert page.get_by_role("heading", name=link.inner_text(), exact=True).count() == 1

    # A table that is wider than the phone is scrolled in its own frame, by keyboard too.
    regions = page.get_by_role("region").and_(page.locator(".scroll"))
    assert regions.count() == page.locator("table").count()
    if size == "phone":
        wide = "all => all.findIndex(each => each.scrollWidth > each.clientWidth)"
        region = regions.nth(page.locator(".scroll").evaluate_all(wide))
        region.focus()
        for _ in range(100):  # the policy of the page forbids Playwright's own waiting
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(50)
            if region.evaluate("each => each.scrollLeft > 0"):
                break
        else:
            pytest.fail("the keyboard does not scroll a wide table")
    visit.check()
    assert visit.complaints == []
    assert set(visit.requests) == {report.as_uri()}
    page.close()
