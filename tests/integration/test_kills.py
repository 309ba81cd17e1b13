"""`kill -9` at random moments, as often as `LLMREC_KILLS` says (default 3).

Whatever is killed, the old state or the new one is there, and the same command ends where an undisturbed one ends.

    LLMREC_KILLS=200 pytest -m slow tests/integration/test_kills.py

`test_resume.py` and `test_add_items.py` kill between chosen steps and are quick; here the moments are drawn.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec.manifest import fault

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("LLMREC_KILLS", "3"))
STAGES = ["data", "embed", "tokenize", "base", "train", "model", "evaluate"]
CHANGED = ["--base.seed", "1", "--train.evaluations", "6"]
"""What is made anew with these: the base and all that follows; the rest stands."""


class Command:
    """`llmrec WORDS` in a process of its own, to be killed."""

    def __init__(self, environment: dict[str, str], *words: str | Path) -> None:
        command = [sys.executable, "-m", "llmrec", *map(str, words)]
        self.log: list[str] = []
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.log.extend(lines)

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> bool:
        """Whether it was still running."""
        self.process.kill()
        code = self.process.wait()
        self._reader.join()
        assert code in (0, -signal.SIGKILL), "".join(self.log)
        return code != 0

    def finish(self) -> None:
        code = self.process.wait()
        self._reader.join()
        assert code == 0, "".join(self.log)


def manifest(stage: Path) -> dict[str, Any]:
    return dict(json.loads((stage / "manifest.json").read_text()))


def keys(run: Path) -> dict[str, str]:
    return {stage: manifest(run / stage)["key"] for stage in STAGES}


def result(run: Path) -> dict[str, Any]:
    """All that a run ends with, but for what tells of its speed."""
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    del metrics["decode"]["users_per_second"], metrics["milliseconds_per_user"]
    weights = {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "model").rglob("*.safetensors"))
    }
    items = hashlib.sha256((run / "model" / "item_index.parquet").read_bytes()).hexdigest()
    names = sorted(path.name for path in run.iterdir())
    return {"metrics": metrics, "weights": weights, "items": items, "names": names, "keys": keys(run)}


@pytest.fixture(scope="module")
def undisturbed(
    tiny_run: Path, tiny_flags: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result of the changed run, and the seconds of its training."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("undisturbed") / "run"))
    Command(environment, "run", "--run", run, *tiny_flags, *CHANGED).finish()
    return {**result(run), "seconds": manifest(run / "train")["seconds"]}


def moments(draw: random.Random, seconds: float) -> Iterator[tuple[str, float]]:
    """(part of a log line, seconds after it) to kill at; every other one is in the training, which takes `seconds`."""
    while True:
        yield draw.choice([f"{stage}: {what}" for stage in STAGES for what in ("unchanged", "started")]), draw.random()
        yield "train: started", draw.uniform(0, seconds)


def killed_at(command: Command, line: str, seconds: float) -> bool:
    """Whether a command was killed so long after it logged a line; else it has ended."""
    while command.running() and not any(line in logged for logged in command.log):
        time.sleep(0.002)
    time.sleep(seconds)
    return command.kill()


def test_a_run(
    tiny_run: Path, tiny_flags: list[str], environment: dict[str, str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """A finished run is made anew with other settings, and killed again and again meanwhile."""
    old, new, copies, kills = keys(tiny_run), undisturbed["keys"], 0, 0
    assert [stage for stage in STAGES if old[stage] != new[stage]] == STAGES[3:]
    expected = {name: value for name, value in undisturbed.items() if name != "seconds"}
    draw = moments(random.Random(KILLS), undisturbed["seconds"])

    def fresh() -> Path:
        return Path(shutil.copytree(tiny_run, tmp_path / str(copies)))

    run, in_training = fresh(), 0
    while kills < KILLS or in_training < max(1, 0.3 * KILLS):
        command = Command(environment, "run", "--run", run, *tiny_flags, *CHANGED)
        if killed_at(command, *next(draw)):
            kills += 1
            for stage in STAGES:
                found = manifest(run / stage)
                assert found["key"] in (old[stage], new[stage])
                assert fault(run / stage, found, verify=True) is None
            changed = [stage for stage in STAGES[3:] if manifest(run / stage)["key"] == new[stage]]
            assert changed == STAGES[3 : 3 + len(changed)], "stages change in their order"
            in_training += (run / ".train.partial").is_dir()
        else:
            assert result(run) == expected
            shutil.rmtree(run)
            copies += 1
            run = fresh()
    Command(environment, "run", "--run", run, *tiny_flags, *CHANGED).finish()
    assert result(run) == expected
    print(f"{kills} kills, {in_training} of them in the training; {copies} runs ended before their kill")


def test_adding_items(tiny_run: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Killed while the bundle of a run changes in place: then it has the old items or the new ones, and is whole."""
    table = tmp_path / "new.csv"
    table.write_text("item_id,title\n" + "".join(f"NEW{n},A kettle of copper number {n}\n" for n in range(200)))

    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        shutil.copy(tiny_run / ".llmrec-run.json", tmp_path / name)
        return Path(shutil.copytree(tiny_run / "model", tmp_path / name / "model"))

    def state(model: Path) -> dict[str, str]:
        assert fault(model, manifest(model), verify=True) is None
        return {name: entry["sha256"] for name, entry in manifest(model)["files"].items()}

    def start(model: Path) -> Command:
        return Command(environment, "add-items", "--model", model, "--items", table, "--if-exists", "update")

    def working(command: Command, model: Path) -> float | None:
        """When it began to change the bundle; None if it ended before anybody saw it."""
        while command.running():
            if (model.parent / ".model.lock").exists():
                return time.perf_counter()
        return None

    model = copy("undisturbed")
    old, command = state(model), start(model)
    began = working(command, model)
    command.finish()
    assert began is not None
    seconds, new = time.perf_counter() - began, state(model)
    assert set(pl.read_parquet(model / "item_index.parquet")["item_id"]) >= {f"NEW{n}" for n in range(200)}
    draw, kills, copies, found = random.Random(KILLS), 0, 0, []
    while kills < KILLS:
        model = copy(str(copies))
        command = start(model)
        working(command, model)
        time.sleep(draw.uniform(0, seconds))
        if command.kill():
            kills += 1
            found.append(state(model))
            assert found[-1] in (old, new)
            start(model).finish()
        assert state(model) == new
        assert sorted(path.name for path in model.parent.iterdir()) == [".llmrec-run.json", "model"]
        shutil.rmtree(model.parent)
        copies += 1
    assert old in found or KILLS < 10, "every kill came too late"
    print(f"{kills} kills: {found.count(old)} left the old items, {found.count(new)} the new ones")
