"""Take the pictures of the web page that docs/serve.md shows, from a server of the quickstart's bundle.

    llmrec serve --model runs/quickstart/model --port 8000
    python scripts/page_pictures.py --url http://localhost:8000 --out docs/images

Needs the extra `browser` and Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

VISIT = "item=P00004&wish=something+to+grind+coffee"

COLORS = 128
"""Number of colours of a picture, which keeps its file small."""


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description="Take the pictures of the web page.")
    parser.add_argument("--url", default="http://localhost:8000", help="address of the server")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--visit", default=VISIT, help="what the page shows, as in its address after #")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        where = f"{options.url}/#{options.visit}"
        history = f"{options.url}/#{'&'.join(part for part in options.visit.split('&') if part.startswith('item='))}"
        picture(browser, where, options.out / "page_light.png", "light", 1280, 900, why=True)
        picture(browser, history, options.out / "page_dark.png", "dark", 1280, 820, compare=True)
        picture(browser, where, options.out / "page_phone.png", "light", 390, 1000, why=True, scroll="#answers")
        browser.close()


def picture(
    browser: Browser,
    where: str,
    path: Path,
    colors: str,
    width: int,
    height: int,
    why: bool = False,
    compare: bool = False,
    scroll: str | None = None,
) -> None:
    """Take one picture of the page in a window of this size, in pixels."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colors)
    page.set_default_timeout(120_000)
    page.goto(where)
    page.wait_for_selector(".answer")
    if why:
        page.get_by_role("button", name="Why?").first.click()
        page.wait_for_selector(".why table")
    if compare:
        page.get_by_role("button", name="Side by side").click()
        page.wait_for_selector(".columns li")
    if scroll is not None:
        page.evaluate("selector => document.querySelector(selector).scrollIntoView()", scroll)
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").quantize(COLORS).save(path, optimize=True)
    page.close()


if __name__ == "__main__":
    main()
