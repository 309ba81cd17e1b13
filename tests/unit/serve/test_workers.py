"""Several workers: a dead one is replaced, one that cannot load ends the server, and SIGTERM ends all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from llmrec.serve.workers import END

TESTS = Path(__file__).parents[2]
WAIT = 300  # seconds, on a busy machine


@contextmanager
def supervised(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`supervise` with two workers in a process of its own."""
    code = f"import worker_runs; worker_runs.main({str(folder)!r})"
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def started(folder: Path) -> list[tuple[int, int, str]]:
    """(place, process id, whether it was told not to listen at once) of each worker that ran."""
    return [(*map(int, path.name.split("-")), path.read_text()) for path in folder.glob("?-*") if path.read_text()]


def test_a_dead_worker_is_replaced_and_sigterm_ends_all(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        until(lambda: len(started(tmp_path)) == 2)
        first = {place: (pid, patient) for place, pid, patient in started(tmp_path)}
        assert {place: patient for place, (_, patient) in first.items()} == {0: "False", 1: "True"}
        os.kill(first[0][0], signal.SIGKILL)
        until(lambda: len(started(tmp_path)) == 3)
        (again,) = [each for each in started(tmp_path) if (each[1], each[2]) not in first.values()]
        assert (again[0], again[2]) == (0, "True")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert not [pid for _, pid, _ in started(tmp_path) if psutil.pid_exists(pid)]


def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    (tmp_path / "hangs").touch()
    with supervised(tmp_path) as process:
        until(lambda: len(started(tmp_path)) == 2)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(WAIT) == 0
        assert time.monotonic() - began > END  # it was waited for


@pytest.mark.parametrize(("how", "said"), [("wrong", "port x: is wrong."), ("dies", "exit code 7")])
def test_a_first_worker_that_can_not_load_ends_the_server(how: str, said: str, tmp_path: Path) -> None:
    (tmp_path / how).touch()
    with supervised(tmp_path) as process:
        _, error = process.communicate(timeout=WAIT)
        assert process.returncode == 1
    assert said in error.splitlines()[-1]


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        until(lambda: len(started(tmp_path)) == 2)
        process.kill()
        until(lambda: not [pid for _, pid, _ in started(tmp_path) if psutil.pid_exists(pid)])
