"""README's snippets run as they stand, and print what it says.

A ```python block after a line `<!-- run -->` is run, all of them in order in one program. A ```text block right
after it must be its output; two texts are equal when they differ only in numbers and in the width of spaces.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^<!-- run -->\n+```python\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
END = "=== end of block ==="


class Block(NamedTuple):
    """A snippet and the output that README shows for it, None if it shows none."""

    code: str
    output: str | None


def blocks(text: str) -> list[Block]:
    """The blocks to run, in order."""
    return [Block(match[1], match[2]) for match in BLOCK.finditer(text)]


def normal(output: str) -> str:
    """The text with every number as # and every run of white space as one space."""
    return " ".join(NUMBER.sub("#", output).split())


def test_blocks_and_normal() -> None:
    with_output, skipped = "<!-- run -->\n```python\na = 1\n```\n```text\nout\n```\n\n", "```python\nno\n```\n"
    text = f"{with_output}{skipped}<!-- run -->\n```python\nb\n```\n\nWords.\n```text\nnot its output\n```\n"
    assert blocks(text) == [Block("a = 1\n", "out\n"), Block("b\n", None)]
    assert normal("recall  0.123\n-4e-05 x") == normal("recall 0.5  \n 7 x")
    assert normal("recall 0.123") != normal("ndcg 0.123")


@pytest.fixture(scope="module")
def outputs(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block prints; fails if one raises."""
    folder = tmp_path_factory.mktemp("readme")
    program = "".join(f"{block.code}\nprint({END!r})\n" for block in blocks(README.read_text(encoding="utf-8")))
    (folder / "readme.py").write_text(program, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "readme.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split(f"{END}\n")[:-1]


def test_snippets_print_what_readme_says(outputs: list[str]) -> None:
    found = blocks(README.read_text(encoding="utf-8"))
    assert found, "README has no block to run"
    assert len(outputs) == len(found)
    for block, output in zip(found, outputs, strict=True):
        if block.output is not None:
            assert normal(output) == normal(block.output), output
