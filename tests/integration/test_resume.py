"""`kill -9` at any moment: the next call goes on and ends where an undisturbed run ends."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def metrics(run: Path) -> dict[str, Any]:
    """The metrics but for the speed."""
    content = json.loads((run / "evaluate" / "metrics.json").read_text())
    del content["decode"]["users_per_second"], content["milliseconds_per_user"]
    return content


def killed(command: list[str], environment: dict[str, str], lines: int, seconds: float) -> bool:
    """Start, wait for so many log lines and then some seconds, `kill -9`; False if it ended before."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr as log:
        for _ in range(lines):
            if not log.readline():
                break
        time.sleep(seconds)
        process.kill()
        return process.wait() == -9


def check(run: Path, undisturbed: Path) -> None:
    assert metrics(run) == metrics(undisturbed)
    assert {path.name for path in run.iterdir()} == {path.name for path in undisturbed.iterdir()}


def test_killed_run_ends_with_the_same_metrics(
    tiny_run: Path, tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    kills, draw = 2, random.Random(2)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "llmrec", "run", "--run", str(run), *tiny_flags]
    while kills:
        # A whole run logs 30 lines; what stands logs one line a stage, so later kills fall into later stages.
        if killed(command, environment, draw.randrange(26), draw.uniform(0, 0.5)):
            kills -= 1
        else:  # it came to its end: that must be right as well, and the next kills need something to do
            check(run, tiny_run)
            shutil.rmtree(run)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    check(run, tiny_run)
