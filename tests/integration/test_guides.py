"""The commands of docs/your_data.md, line by line, as a newcomer follows them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "your_data.md"
BLOCK = re.compile(r"^```(python|yaml|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_bring_your_own_data(environment: dict[str, str], tmp_path: Path) -> None:
    blocks = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks] == ["python", "yaml", "bash", "bash", "bash"]
    programs = {
        "python": [sys.executable, "-c"],
        "yaml": ["sh", "-c", 'printf %s "$0" > mine.yaml'],
        "bash": ["bash", "-euo", "pipefail", "-c"],
    }
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    printed = []
    for kind, text in blocks:
        result = subprocess.run(
            [*programs[kind], text],
            cwd=tmp_path,
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{text}\n{result.stderr}"
        printed.append(result.stdout)
    _, _, inspected, shown, asked = printed
    assert "read, users 900" in inspected
    assert "\u27e6<a_" in shown
    assert re.search(r"^llmrec +0\.\d", asked, re.MULTILINE), "the table"
    assert len(re.findall(r"^ +1  P\d+ ", asked, re.MULTILINE)) == 2, "two answers"
