"""The site of docs/: its navigation has every page, and mkdocs builds it without a warning (needs the extra `docs`)."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import llmrec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"
GENERATED = "index.md"
"""The page that docs/site/hooks.py makes of README."""


def pages(navigation: list[dict[str, Any]]) -> Iterator[str]:
    """The pages of a navigation and of its sections, in order."""
    for entry in navigation:
        for target in entry.values():
            yield from pages(target) if isinstance(target, list) else [target]


def test_the_navigation_has_each_page_once() -> None:
    listed = list(pages(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"]))
    assert sorted(listed) == sorted([GENERATED, *(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))])


def test_the_api_page_has_each_public_name_once() -> None:
    documented = re.findall(r"^::: llmrec\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(documented) == sorted(llmrec.__all__)


class Page(HTMLParser):
    """What a page loads, and the ids of its elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if found.get("rel") != "canonical":
            self.loads += [found.get("src") or "", (found.get("href") or "") if tag == "link" else ""]


def test_mkdocs_builds_the_site_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is not installed; it is in the extra `docs`")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(CONFIG),
        "--site-dir",
        str(site),
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

    read = {path.name: Page(path) for path in site.glob("*.html")}
    elsewhere = {name: [url for url in page.loads if "//" in url] for name, page in read.items()}
    assert not any(elsewhere.values()), elsewhere
    assert {f"llmrec.{name}" for name in llmrec.__all__} <= read["api.html"].ids
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="your_data.html"' in home
    assert "a first look (<code>examples/first_look.ipynb</code>)" in home
    assert not (site / "site").exists()
