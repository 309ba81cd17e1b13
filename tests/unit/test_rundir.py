"""Stages are skipped, redone and resumed as they should, and no kill at any moment leaves half a stage."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.rundir import MANIFEST, RunDirectory, file_hashes


def writer(text: str, calls: list[str] | None = None) -> Callable[[Path], None]:
    """A stage's `make` that writes two files and notes its call."""

    def make(out: Path) -> None:
        if calls is not None:
            calls.append(text)
        (out / "first").write_text(text)
        (out / "second").write_text(text)

    return make


def content(folder: Path) -> set[str]:
    """The texts in a finished stage; one alone if it is whole."""
    return {(folder / name).read_text() for name in ("first", "second")}


def flow(folder: Path, calls: list[str], first: int = 0, second: int = 0, files: dict[str, str] | None = None) -> None:
    """Three stages, each reading the one before, with settings for two of them."""
    run = RunDirectory(folder)
    run.build("a", {"x": first}, writer("a", calls), files=files)
    run.build("b", {"x": second}, writer("b", calls), reads=["a"])
    run.build("c", {}, writer("c", calls), reads=["b"])


def test_stage_is_skipped_when_unchanged(tmp_path: Path) -> None:
    calls: list[str] = []
    flow(tmp_path, calls)
    flow(tmp_path, calls)
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"first": 1}, ["a", "b", "c"]),
        ({"second": 1}, ["b", "c"]),
        ({"files": {"log.csv": "another hash"}}, ["a", "b", "c"]),
    ],
)
def test_change_redoes_what_follows(tmp_path: Path, change: dict, redone: list[str]) -> None:
    flow(tmp_path, [])
    calls: list[str] = []
    flow(tmp_path, calls, **change)
    assert calls == redone


def test_manifest_keys(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("abc")
    run = RunDirectory(tmp_path / "run")
    assert run.build("a", {"seed": 7}, writer("a"), files=file_hashes([source]))
    manifest = json.loads((tmp_path / "run" / "a" / MANIFEST).read_text())
    assert set(manifest) == {
        "schema", "stage", "key", "config", "inputs", "packages", "seed", "seconds", "peak_memory_gib",
    }  # fmt: skip
    assert manifest["stage"] == "a"
    assert manifest["seed"] == 7
    assert manifest["config"] == {"seed": 7}
    sha256_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["inputs"] == {str(source): sha256_of_abc}
    assert manifest["seconds"] >= 0
    assert manifest["peak_memory_gib"] > 0
    assert sorted(path.name for path in (tmp_path / "run" / "a").iterdir()) == ["first", MANIFEST, "second"]


def test_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 'a' is missing"):
        RunDirectory(tmp_path).build("b", {}, writer("b"), reads=["a"])


def test_exception_leaves_the_old_stage(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.build("a", {"x": 0}, writer("old"))

    def fail(out: Path) -> None:
        (out / "first").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.build("a", {"x": 1}, fail)
    assert content(run.path("a")) == {"old"}
    assert not run.build("a", {"x": 0}, writer("again"))


@pytest.mark.parametrize(("resumable", "same_key", "found"), [
    (True, True, ["half"]), (True, False, []), (False, True, []),
])  # fmt: skip
def test_interrupted_work_is_kept_only_if_resumable_and_the_same(
    tmp_path: Path, resumable: bool, same_key: bool, found: list[str]
) -> None:
    run = RunDirectory(tmp_path)

    def stop(out: Path) -> None:
        (out / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.build("a", {"x": 0}, stop, resumable=resumable)
    seen: list[str] = []

    def go_on(out: Path) -> None:
        seen.extend(path.name for path in out.iterdir() if not path.name.startswith("."))

    run.build("a", {"x": 0 if same_key else 1}, go_on, resumable=resumable)
    assert seen == found


KILLED = """
import os, sys
from pathlib import Path
from llmrec.rundir import RunDirectory

folder, resumable, fatal = Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3])
steps = 0

def die(event, args):
    # Audit events come before the deed, so this stops between any two changes on the disk.
    global steps
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    writes = event == "open" and isinstance(args[1], str) and args[1] != "r"
    if changes or writes:
        if steps == fatal:
            os._exit(9)
        steps += 1

def make(out):
    (out / "first").write_text("new")
    (out / "second").write_text("new")

run = RunDirectory(folder)
sys.addaudithook(die)
run.build("a", {"x": 1}, make, resumable=resumable)
"""


@pytest.mark.parametrize("resumable", [False, True])
def test_kill_between_any_two_changes_on_the_disk(tmp_path: Path, resumable: bool) -> None:
    outcomes = set()
    for step in range(100):
        folder = tmp_path / str(step)
        RunDirectory(folder).build("a", {"x": 0}, writer("old"))
        command = [sys.executable, "-c", KILLED, str(folder), str(resumable), str(step)]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, 9)
        if (folder / "a").exists():
            left = content(folder / "a")
            assert left in ({"old"}, {"new"})
            outcomes.add(*left)
        else:  # between the two renames; the new one is whole and the next call puts it in place
            outcomes.add("between")
        run = RunDirectory(folder)
        run.build("a", {"x": 1}, writer("new"), resumable=resumable)
        assert content(run.path("a")) == {"new"}
        assert [path.name for path in folder.iterdir() if path.name not in (".lock", "a")] == []
        if code == 0:
            break
    assert code == 0, "the stage never came to its end"
    assert outcomes == {"old", "between", "new"}


def test_two_at_once(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path)
    code = "import sys; from llmrec.rundir import RunDirectory; RunDirectory(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "UserError: run" in second.stderr
    assert "another llmrec is at work there" in second.stderr
    del first
    assert subprocess.run(command, check=False).returncode == 0
