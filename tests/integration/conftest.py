"""The program as a user runs it, and one tiny run of all stages that the tests of this folder share."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., subprocess.CompletedProcess[str]]

TINY = {
    "data.user_core": 1,
    "data.item_core": 1,
    "data.synthetic_items": 300,
    "data.synthetic_users": 300,
    "base.hidden_size": 64,
    "base.layers": 2,
    "base.heads": 2,
    "base.vocabulary": 800,
    "tokenize.codes": 32,
    "train.epochs": 1,
    "train.evaluations": 2,
    "decode.beams": 10,
}
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread, so that sums have one order; no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def llmrec(environment: dict[str, str]) -> Program:
    """`llmrec(*words)` runs the program in a process of its own."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmrec", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.fixture(scope="session")
def fails(llmrec: Program) -> Callable[..., str]:
    """`fails(*words)` runs the program, which must end with 2 and one line after its log; returns that line."""

    def run(*words: str | Path) -> str:
        result = llmrec(*words)
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        log = result.stderr.splitlines()
        assert all(LOG_LINE.match(line) for line in log[:-1]), result.stderr
        assert log[-1].startswith("llmrec: ")
        return log[-1]

    return run


@pytest.fixture(scope="session")
def tiny_flags() -> list[str]:
    """Quickstart's configuration, cut down to seconds."""
    flags = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    return ["--config", "configs/quickstart.yaml", *flags]


@pytest.fixture(scope="session")
def tiny_run(llmrec: Program, tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed tiny run. Shared: copy it before changing anything."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    result = llmrec("run", "--run", folder, *tiny_flags)
    assert result.returncode == 0, result.stderr
    (folder.parent / "stdout.txt").write_text(result.stdout)
    (folder.parent / "stderr.txt").write_text(result.stderr)
    return folder


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))
