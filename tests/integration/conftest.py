"""The program as a user runs it, and one tiny run of all stages that the tests of this folder share.

`llmrec(*words)` runs it in the process of the tests, which has imported torch already; `llmrec_process(*words)` starts
a process, which takes seconds longer: for tests of what only a process has, such as its exit code, its streams, a kill
or another working directory. Both return the same and compute the same bits, since both have the same threads.
"""

import gc
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from filelock import FileLock

from llmrec.cli.main import main

Program = Callable[..., subprocess.CompletedProcess[str]]

TINY = {
    "data.user_core": 1,
    "data.item_core": 1,
    "data.synthetic_items": 300,
    "data.synthetic_users": 300,
    "experts.models": "[]",
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
    """The tests' own, OMP_NUM_THREADS among it (see tests/conftest.py), and no network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


@contextmanager
def _fresh_log() -> Iterator[None]:
    """The logger as a new process has it, and afterwards as it was."""
    logger = logging.getLogger("llmrec")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:], logger.propagate = [], True
    try:
        yield
    finally:
        logger.handlers[:], level, logger.propagate = before
        logger.setLevel(level)


@pytest.fixture(scope="session")
def llmrec() -> Program:
    """`llmrec(*words)` runs the program in this process; an exception that leaves `main` is exit code 1."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        arguments = list(map(str, words))
        out, error = io.StringIO(), io.StringIO()
        with _fresh_log(), redirect_stdout(out), redirect_stderr(error):
            try:
                code = main(arguments)
            except Exception:
                traceback.print_exc()
                code = 1
        gc.collect()  # what a process leaves behind when it ends: the lock of a run directory, say
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())

    return run


@pytest.fixture(scope="session")
def llmrec_process(environment: dict[str, str]) -> Program:
    """`llmrec_process(*words)` runs the program in a process of its own. A carriage return in its output stays one."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmrec", *map(str, words)]
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

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
def tiny_run(llmrec_process: Program, tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed tiny run. Shared: copy it before changing anything.

    pytest-xdist's workers share it, too: the first makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / "tiny-run" / "run", shared / "tiny-run" / "stderr.txt"
    with FileLock(shared / "tiny-run.lock"):
        if not done.exists():
            result = llmrec_process("run", "--run", folder, *tiny_flags)
            assert result.returncode == 0, result.stderr
            (folder.parent / "stdout.txt").write_text(result.stdout)
            done.write_text(result.stderr)
    return folder


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))
