"""The shipped examples run and print what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 2


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"end_to_end", "own_quantizer"}
