"""Stages are skipped, redone and resumed as they should, and no kill at any moment leaves half a stage."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.manifest import CHANGED, note_change
from llmrec.rundir import LOCK, MANIFEST, RUN, RunDirectory
from llmrec.stage import Stage, file_hashes


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
    run.build(Stage("a", {"x": first}, writer("a", calls), files=files or {}))
    run.build(Stage("b", {"x": second}, writer("b", calls), reads=["a"]))
    run.build(Stage("c", {}, writer("c", calls), reads=["b"]))


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
    assert run.build(Stage("a", {"seed": 7}, writer("a"), files=file_hashes([source])))
    manifest = json.loads((tmp_path / "run" / "a" / MANIFEST).read_text())
    assert set(manifest) == {
        "schema", "stage", "key", "config", "inputs", "packages", "seed", "seconds", "peak_memory_gib",
        "files", "spare",
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
        RunDirectory(tmp_path).build(Stage("b", {}, writer("b"), reads=["a"]))


def test_exception_leaves_the_old_stage(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.build(Stage("a", {"x": 0}, writer("old")))

    def fail(out: Path) -> None:
        (out / "first").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.build(Stage("a", {"x": 1}, fail))
    assert content(run.path("a")) == {"old"}
    assert not run.build(Stage("a", {"x": 0}, writer("again")))


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
        run.build(Stage("a", {"x": 0}, stop, resumable=resumable))
    seen: list[str] = []

    def go_on(out: Path) -> None:
        seen.extend(path.name for path in out.iterdir() if not path.name.startswith("."))

    run.build(Stage("a", {"x": 0 if same_key else 1}, go_on, resumable=resumable))
    assert seen == found


KILLED = """
import os, sys
from pathlib import Path
from llmrec import atomic
from llmrec.rundir import RunDirectory
from llmrec.stage import Stage

folder, resumable, fatal = Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3])
if sys.argv[4] == "False":
    atomic._swap_of_the_system = lambda: None
steps = 0

def die(event, args):
    # Audit events come before the deed, so this stops between any two changes on the disk.
    global steps
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    writes = event == "open" and (args[1] not in (None, "r") or args[2] & (os.O_WRONLY | os.O_RDWR))
    # The exchange of two folders is a call of the C library, which is looked up just before.
    changes = changes or (event == "ctypes.dlsym" and args[1] == "renameat2")
    if changes or writes:
        if steps == fatal:
            os._exit(9)
        steps += 1

def make(out):
    (out / "first").write_text("new")
    (out / "second").write_text("new")

run = RunDirectory(folder)
sys.addaudithook(die)
if sys.argv[5] == "build":
    run.build(Stage("a", {"x": 1}, make, resumable=resumable))
else:
    run.amend("a", {"first": "new", "second": "new"})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="knows the names of Linux's calls")
@pytest.mark.parametrize(("resumable", "exchange"), [(False, True), (True, True), (True, False)])
def test_kill_between_any_two_changes_on_the_disk(tmp_path: Path, resumable: bool, exchange: bool) -> None:
    """Where the file system can't exchange folders, there is a moment without the stage, which the next call ends."""
    outcomes = set()
    for step in range(100):
        folder = tmp_path / str(step)
        RunDirectory(folder).build(Stage("a", {"x": 0}, writer("old")))
        command = [sys.executable, "-c", KILLED, str(folder), str(resumable), str(step), str(exchange), "build"]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, 9)
        if (folder / "a").exists():
            left = content(folder / "a")
            assert left in ({"old"}, {"new"})
            outcomes.add(*left)
        else:  # between the two renames; the new one is whole and the next call puts it in place
            outcomes.add("between")
        run = RunDirectory(folder)
        run.build(Stage("a", {"x": 1}, writer("new"), resumable=resumable))
        assert content(run.path("a")) == {"new"}
        del run
        assert {path.name for path in folder.iterdir()} == {RUN, "a"}
        if code == 0:
            break
    assert code == 0, "the stage never came to its end"
    assert outcomes == ({"old", "new"} if exchange else {"old", "between", "new"})


@pytest.mark.skipif(sys.platform != "linux", reason="knows the names of Linux's calls")
def test_kill_while_a_stage_is_amended(tmp_path: Path) -> None:
    outcomes = set()
    for step in range(100):
        folder = tmp_path / str(step)
        RunDirectory(folder).build(Stage("a", {"x": 0}, writer("old")))
        command = [sys.executable, "-c", KILLED, str(folder), "False", str(step), "True", "amend"]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, 9)
        left = content(folder / "a")
        assert left in ({"old"}, {"new"})
        outcomes.add(*left)
        run = RunDirectory(folder, verify=True)
        assert not run.build(Stage("a", {"x": 0}, writer("never")))
        run.amend("a", {"first": "new", "second": "new"})
        assert content(run.path("a")) == {"new"}
        assert not run.build(Stage("a", {"x": 0}, writer("never")))
        del run
        assert {path.name for path in folder.iterdir()} == {RUN, "a"}
        if code == 0:
            break
    assert code == 0, "it never came to its end"
    assert outcomes == {"old", "new"}


def test_two_at_once(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path)
    code = "import sys; from llmrec.rundir import RunDirectory; RunDirectory(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "UserError: run" in second.stderr
    assert "another llmrec is at work there" in second.stderr
    del first
    assert subprocess.run(command, check=False).returncode == 0


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """All below a folder: the content of files, the target of links, None for folders."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        ("a/events.csv", "a"),
        ("a", "a"),
        ("b/deep/notes", "b"),
        (".a.partial/notes", ".a.partial"),
        (".a.old/notes", ".a.old"),
        ("config.yaml", "config.yaml"),
        (".llmrec.lock", ".llmrec.lock"),
        ("a/manifest.json", "a"),
    ],
)
def test_what_is_in_the_way_in_a_folder_of_the_user_stays(tmp_path: Path, theirs: str, what: str) -> None:
    (tmp_path / theirs).parent.mkdir(parents=True, exist_ok=True)
    # Even a manifest of ours says nothing in a folder that is no run directory: a bundle that was copied has one.
    (tmp_path / theirs).write_text(json.dumps({"stage": "a", "key": "k", "schema": 1}))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}/{what}"):
        RunDirectory(tmp_path).claim(["a", "b", "config.yaml"])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_a_link_in_the_way_is_neither_followed_nor_replaced(tmp_path: Path, leads: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").symlink_to(tmp_path / leads)
    if leads == "somewhere":
        RunDirectory(tmp_path / "other").build(Stage("a", {}, writer("theirs")))
        (tmp_path / "other" / "a").rename(tmp_path / leads)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="run/a is there already"):
        RunDirectory(tmp_path / "run").build(Stage("a", {}, writer("ours")))
    assert snapshot(tmp_path) == before


def test_a_folder_of_the_user_gets_stages_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "a").mkdir()  # empty
    run = RunDirectory(tmp_path)
    run.claim(["a", "b", "config.yaml"])
    run.build(Stage("a", {}, writer("ours")))
    assert content(run.path("a")) == {"ours"}
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_stage_folder_that_the_user_made_in_a_run_directory_stays(tmp_path: Path) -> None:
    RunDirectory(tmp_path).build(Stage("a", {}, writer("a")))
    for name in ("b", ".c.partial", ".d.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"/b holds no manifest\.json of this stage, so llmrec does not replace it"):
        RunDirectory(tmp_path).build(Stage("b", {}, writer("b")))
    for name, place in (("c", r"\.c\.partial"), ("d", r"\.d\.old")):
        with pytest.raises(UserError, match=f"{place}: a folder that llmrec did not make is in the way"):
            RunDirectory(tmp_path).build(Stage(name, {}, writer(name)))
        with pytest.raises(UserError, match=f"{place}: a folder that llmrec did not make is in the way"):
            RunDirectory(tmp_path).rehearsal().build(Stage(name, {}, writer(name)))
    assert snapshot(tmp_path) == before


def older(folder: Path) -> None:
    """A run directory as versions without a mark left it: manifests without files, and an empty lock file."""
    run = RunDirectory(folder)
    run.build(Stage("a", {"x": 0}, writer("a")))
    del run
    manifest = json.loads((folder / "a" / MANIFEST).read_text())
    del manifest["files"], manifest["spare"]
    (folder / "a" / MANIFEST).write_text(json.dumps({**manifest, "schema": 1}))
    (folder / RUN).unlink()
    (folder / ".lock").touch()
    (folder / "config.yaml").write_text("data:\n  format: synthetic\n")


def test_a_run_directory_without_a_mark_goes_on(tmp_path: Path) -> None:
    older(tmp_path)
    run = RunDirectory(tmp_path)
    run.claim(["a", "b", "config.yaml"])
    assert not run.build(Stage("a", {"x": 0}, writer("never")))
    assert run.build(Stage("a", {"x": 1}, writer("new")))
    assert content(run.path("a")) == {"new"}
    del run
    assert {path.name for path in tmp_path.iterdir()} == {RUN, "a", "config.yaml"}


def test_a_run_directory_without_a_mark_that_is_in_use(tmp_path: Path) -> None:
    older(tmp_path)
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match="another llmrec is at work there"):
            RunDirectory(tmp_path)
        process.kill()
    assert RunDirectory(tmp_path).build(Stage("a", {"x": 0}, writer("never"))) is False


@pytest.mark.parametrize(
    ("damage", "said", "verify"),
    [
        (lambda path: path.unlink(), "is missing", False),
        (lambda path: path.write_text(""), "has 0 bytes, expected 3", False),
        (lambda path: path.write_text("olds"), "has 4 bytes, expected 3", False),
        (lambda path: path.write_text("odd"), "has other content than the stage wrote", True),
    ],
)
def test_a_damaged_file_is_named_and_the_stage_made_again(
    tmp_path: Path, damage: Callable[[Path], object], said: str, verify: bool, caplog: pytest.LogCaptureFixture
) -> None:
    RunDirectory(tmp_path).build(Stage("a", {}, writer("old")))
    damage(tmp_path / "a" / "first")
    if verify:
        assert not RunDirectory(tmp_path).build(Stage("a", {}, writer("new")))
    assert RunDirectory(tmp_path, verify=verify).build(Stage("a", {}, writer("new")))
    assert content(tmp_path / "a") == {"new"}
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == f"a: {tmp_path / 'a' / 'first'} {said}; the stage is made again"


def test_spare_files_may_go(tmp_path: Path) -> None:
    spare = ("first*",)
    RunDirectory(tmp_path).build(Stage("a", {}, writer("old"), spare=spare))
    (tmp_path / "a" / "first").unlink()
    assert not RunDirectory(tmp_path, verify=True).build(Stage("a", {}, writer("new"), spare=spare))
    (tmp_path / "a" / "second").unlink()
    assert RunDirectory(tmp_path).build(Stage("a", {}, writer("new"), spare=spare))


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda path: (path / "notes").write_text("mine"), "a/notes is not a file of the stage"),
        (lambda path: (path / "link").symlink_to("elsewhere"), "a/link is not a file of the stage"),
        (lambda path: (path / "first").write_text("new"), "a/first was changed since the stage wrote it"),
        (lambda path: note_change(path, [], by="add-items"), "a was changed by llmrec add-items"),
    ],
)
@pytest.mark.parametrize("rehearsed", [True, False])
def test_what_the_user_put_into_a_stage_is_not_lost(
    tmp_path: Path, add: Callable[[Path], object], said: str, rehearsed: bool
) -> None:
    precious = ("first", "no such file")
    RunDirectory(tmp_path).build(Stage("a", {"x": 0}, writer("old"), precious=precious))
    add(tmp_path / "a")
    assert not RunDirectory(tmp_path).build(Stage("a", {"x": 0}, writer("never"), precious=precious))
    before = snapshot(tmp_path)
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=f"{said}.* move {tmp_path}/a elsewhere"):
        (run.rehearsal() if rehearsed else run).build(Stage("a", {"x": 1}, writer("new"), precious=precious))
    del run
    assert snapshot(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "kept")
    assert RunDirectory(tmp_path).build(Stage("a", {"x": 1}, writer("new"), precious=precious))
    assert content(tmp_path / "a") == {"new"}


def test_what_the_user_puts_into_a_stage_while_it_is_made_is_not_lost(tmp_path: Path) -> None:
    """Nor what was made: it takes its place when there is one."""
    RunDirectory(tmp_path).build(Stage("a", {"x": 0}, writer("old")))

    def make(out: Path) -> None:
        writer("new")(out)
        (tmp_path / "a" / "notes").write_text("mine")

    with pytest.raises(UserError, match="a/notes is not a file of the stage"):
        RunDirectory(tmp_path).build(Stage("a", {"x": 1}, make))
    assert content(tmp_path / "a") == {"old"}
    with pytest.raises(UserError, match="a/notes is not a file of the stage"):
        RunDirectory(tmp_path).rehearsal().build(Stage("a", {"x": 1}, make))
    (tmp_path / "a").rename(tmp_path / "kept")
    assert not RunDirectory(tmp_path).build(Stage("a", {"x": 1}, writer("never")))
    assert content(tmp_path / "a") == {"new"}


def test_a_stage_that_is_a_link_is_read_and_not_made(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "shared").build(Stage("a", {"x": 0}, writer("shared")))
    run = RunDirectory(tmp_path / "run")
    run.claim(["a"])
    (tmp_path / "run" / "a").symlink_to(tmp_path / "shared" / "a")
    assert not run.build(Stage("a", {"x": 0}, writer("never")))
    before = snapshot(tmp_path / "shared")
    with pytest.raises(UserError, match=r"run/a is a link to .*shared/a, and the stage is to be made again"):
        run.build(Stage("a", {"x": 1}, writer("new")))
    assert snapshot(tmp_path / "shared") == before
    assert (tmp_path / "run" / "a").is_symlink()


def test_a_rehearsal_makes_nothing_and_knows_what_would_be_made(tmp_path: Path) -> None:
    flow(tmp_path, [])
    before = snapshot(tmp_path)

    def due(second: int) -> list[bool]:
        run = RunDirectory(tmp_path)
        rehearsal, calls = run.rehearsal(), []
        answers = [
            rehearsal.build(Stage("a", {"x": 0}, writer("a", calls))),
            rehearsal.build(Stage("b", {"x": second}, writer("b", calls), reads=["a"])),
            rehearsal.build(Stage("c", {}, writer("c", calls), reads=["b"])),
        ]
        assert calls == []
        return answers

    assert due(0) == [False, False, False]
    assert due(1) == [False, True, True]
    (tmp_path / "a" / "first").write_text("")
    assert due(0) == [True, False, False]
    (tmp_path / "a" / "first").write_text("a")
    assert snapshot(tmp_path) == before


def test_amended_files_belong_to_the_stage(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, verify=True)
    run.build(Stage("a", {}, writer("old")))
    (tmp_path / "linked").hardlink_to(tmp_path / "a" / "first")
    run.amend("a", {"first": "new", "second": "new", "third": "more"})
    assert content(tmp_path / "a") == {"new"}
    assert (tmp_path / "linked").read_text() == "old"
    assert not run.build(Stage("a", {}, writer("never")))
    assert set(json.loads((tmp_path / "a" / MANIFEST).read_text())["files"]) == {"first", "second", "third"}
    before = (tmp_path / "a").stat().st_ino
    run.amend("a", {"first": "new"})
    assert (tmp_path / "a").stat().st_ino == before, "nothing to do, so nothing was done"
    note_change(tmp_path / "a", ["third"], by="add-items")
    run.amend("a", {"first": "newer"})
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())[CHANGED] == "add-items"


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_no_name(name: str) -> None:
    with pytest.raises(UserError, match=r"run .*: no name of a folder; name one, such as run runs/mine"):
        RunDirectory(name)


@pytest.mark.skipif(sys.platform != "linux", reason="knows the files of Linux")
@pytest.mark.parametrize("name", ["/etc/passwd", "/etc/passwd/run", "/proc/x", "/dev/null", "/dev/null/x", "a" * 300])
def test_no_place_for_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=f"^run {name}: ") as error:
        RunDirectory(name)
    assert "\n" not in str(error.value)


def test_a_run_that_was_refused_leaves_no_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert (tmp_path / "run").is_dir()
    del run
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", ["mkdir", "open", "replace"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EPERM])
def test_a_run_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Told by the system, as it would be to someone who is not root; what was there is still there."""
    RunDirectory(tmp_path / "run").build(Stage("a", {"x": 0}, writer("old")))

    def refuse(path: object, *words: object, **named: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(UserError, match=rf"run .*{os.strerror(number)}"):
            RunDirectory(tmp_path / "run").build(Stage("a", {"x": 1}, writer("new")))
    run = RunDirectory(tmp_path / "run")
    assert content(run.path("a")) == {"old"}
    assert run.build(Stage("a", {"x": 1}, writer("new")))


class Told(Exception):
    """What a library in another language makes of an error of the system."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EIO, "Input/output error"),
        Told("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0: "),
    ],
    ids=lambda error: str(error)[:24],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_refuses_is_one_line_and_the_work_is_kept(tmp_path: Path, error: Exception, wrapped: bool) -> None:
    run = RunDirectory(tmp_path)
    run.build(Stage("a", {"x": 0}, writer("old")))

    def make(out: Path) -> None:
        (out / "half").touch()
        if not wrapped:
            raise error
        try:
            raise error
        except Exception as cause:
            raise ValueError("while saving") from cause

    with pytest.raises(UserError, match=f"run {tmp_path}: .*; the finished stages are as they were") as told:
        run.build(Stage("a", {"x": 1}, make, resumable=True))
    assert "\n" not in str(told.value)
    assert content(tmp_path / "a") == {"old"}
    found: list[str] = []
    run.build(Stage("a", {"x": 1}, lambda out: found.extend(map(str, out.glob("half"))), resumable=True))
    assert len(found) == 1


def test_a_file_that_may_not_be_written_is_the_users_in_the_run_directory_alone(tmp_path: Path) -> None:
    def denied(path: Path) -> Callable[[Path], None]:
        def make(out: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        return make

    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=r"run .*Permission denied"):
        run.build(Stage("a", {}, denied(tmp_path / "run" / ".a.partial" / "file")))
    for elsewhere in (tmp_path / "running" / "file", tmp_path / "file"):
        with pytest.raises(PermissionError):
            run.build(Stage("a", {}, denied(elsewhere)))


def test_folders_that_vanish_while_at_work(tmp_path: Path) -> None:
    """Removed by someone else: the user's mistake. A file of ours that we forgot to write: a defect."""
    run = RunDirectory(tmp_path)
    run.build(Stage("a", {}, writer("a")))

    def removes(path: Path) -> Callable[[Path], None]:
        def make(out: Path) -> None:
            for file in [*path.iterdir()] if path.is_dir() else [path]:
                file.unlink()
            if path.is_dir():
                path.rmdir()
            (out / "first").write_text((tmp_path / "a" / "first").read_text())

        return make

    with pytest.raises(UserError, match=r"\.b\.partial was removed while llmrec wrote into it"):
        run.build(Stage("b", {}, removes(tmp_path / ".b.partial"), reads=["a"]))
    with pytest.raises(UserError, match=r"a/first is missing, after llmrec began to read it"):
        run.build(Stage("b", {}, removes(tmp_path / "a" / "first"), reads=["a"]))
    run.build(Stage("a", {}, writer("a")))
    with pytest.raises(UserError, match=r"/a was removed or changed while llmrec read it"):
        run.build(Stage("b", {}, removes(tmp_path / "a"), reads=["a"]))
    run.build(Stage("a", {}, writer("a")))
    with pytest.raises(FileNotFoundError):
        run.build(Stage("b", {}, lambda out: (out / "never written").read_text() and None, reads=["a"]))


def test_it_is_unlocked_at_the_end_of_a_with_also_after_an_error(tmp_path: Path) -> None:
    held = []

    def fail() -> None:
        with RunDirectory(tmp_path / "run") as run:
            held.append(run)
            assert (tmp_path / "run" / LOCK).exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "run").exists(), "it was made for nothing"
    with RunDirectory(tmp_path / "run"):
        pass
    assert held, "the object itself lives on"
