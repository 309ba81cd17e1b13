"""What mkdocs needs beyond the pages of docs/: README as the first page, and no links to files that are not pages."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README as the page index.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=LINK.sub(_from_docs, text)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Name a file outside docs/ as code, since the site does not have it."""
    return LINK.sub(_without_files, markdown)


def _from_docs(link: re.Match[str]) -> str:
    """A link of README, whose paths start at the top of the repository, as a page in docs/ writes it."""
    text, target = link.groups()
    if re.match(r"#|\w+:", target):
        return link[0]
    return f"[{text}]({target.removeprefix('docs/') if target.startswith('docs/') else f'../{target}'})"


def _without_files(link: re.Match[str]) -> str:
    """`[the text](../FILE)` as: the text (`FILE`)."""
    text, target = link.groups()
    if not target.startswith("../"):
        return link[0]
    name = f"`{target.removeprefix('../')}`"
    return name if name.strip("`") == text.strip("`") else f"{text} ({name})"
