"""Nothing of ours is ever seen half-written, and nothing that is not ours is replaced or removed."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from llmrec import atomic
from llmrec.atomic import BUNDLE, KEY, MANIFEST, MARK
from llmrec.errors import UserError

STAGE = json.dumps({"stage": "a", "key": "0" * 64})
HEADER = json.dumps({"schema": 1, "llmrec": "0.1.0", "level_sizes": [4]})


def folder(path: Path, **files: str) -> Path:
    """A folder with these files; `_` in a name stands for `.`."""
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# Files.


@pytest.mark.parametrize("name", ["plain.json", "odd [1]*?.json", ".hidden"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    atomic.write_text(path, "old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic.write_file(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == {name}
    atomic.write_text(path, "neu \N{SNOWMAN}")
    assert path.read_text(encoding="utf-8") == "neu \N{SNOWMAN}"


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from llmrec.atomic import write_file\n"
        "write_file(Path(sys.argv[1]), lambda file: (file.write(b'half'), file.flush(), os._exit(9)))"
    )
    path = tmp_path / "a.json"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert len(names(tmp_path)) == 1
    assert not path.exists()
    (tmp_path / ".a.json.mine.tmp").write_text("of the user, who has odd names")
    atomic.write_text(path, "whole")
    assert names(tmp_path) == {"a.json", ".a.json.mine.tmp"}


def test_another_process_keeps_its_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    def interrupted(file: BinaryIO) -> None:
        file.write(b"first")
        atomic.write_text(path, "second")  # as another process would, in the meantime

    atomic.write_file(path, interrupted)
    assert path.read_text() == "first"
    assert names(tmp_path) == {"a.json"}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a").symlink_to("theirs")
    atomic.write_text(tmp_path / "a", "ours")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_gives_the_mode(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        atomic.write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


# Whose a folder is.


@pytest.mark.parametrize(
    ("files", "marks", "ours"),
    [
        ({}, (), True),
        ({"notes": "mine"}, (MARK, KEY, MANIFEST, BUNDLE), False),
        ({"_llmrec": ""}, (MARK,), True),
        ({"_llmrec": "mine"}, (MARK,), False),
        ({"_llmrec": ""}, (KEY,), False),
        ({"_key": "0" * 64}, (KEY,), True),
        ({"_key": ""}, (KEY,), True),
        ({"_key": "of my house"}, (KEY,), False),
        ({"_key": "0" * 65}, (KEY,), False),
        ({"manifest_json": STAGE}, (KEY, MANIFEST), True),
        ({"manifest_json": '{"name": "an app", "icons": []}'}, (MANIFEST,), False),
        ({"manifest_json": "[]"}, (MANIFEST,), False),
        ({"manifest_json": "{"}, (MANIFEST,), False),
        ({"manifest_json": "[" * 100_000}, (MANIFEST,), False),
        ({"llmrec_json": HEADER}, (BUNDLE,), True),
        ({"llmrec_json": "{}"}, (BUNDLE,), False),
        ({"llmrec_json": "7"}, (BUNDLE,), False),
    ],
)
def test_whose_a_folder_is(tmp_path: Path, files: dict[str, str], marks: tuple[str, ...], ours: bool) -> None:
    path = folder(tmp_path / "a", **files)
    assert atomic.is_ours(path, marks) == ours
    if ours:
        atomic.require_ours(path, marks)
    else:
        with pytest.raises(UserError, match="a folder that llmrec did not make is in the way; move or rename it"):
            atomic.require_ours(path, marks)
    atomic.require_ours(tmp_path / "nothing there", marks)


def test_neither_a_link_nor_a_mark_that_is_a_link_makes_a_folder_ours(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", _llmrec="")
    (tmp_path / "link").symlink_to(ours)
    assert not atomic.is_ours(tmp_path / "link", (MARK,))
    theirs = folder(tmp_path / "theirs", notes="mine")
    (theirs / MARK).symlink_to(ours / MARK)
    assert not atomic.is_ours(theirs, (MARK,))


# Folders.


@pytest.mark.parametrize("how", ["their folder", "a link to ours", "a file"])
def test_what_is_not_ours_is_not_removed(tmp_path: Path, how: str) -> None:
    ours, path = folder(tmp_path / "ours", _key="0"), tmp_path / "a"
    if how == "their folder":
        folder(path, notes="mine")
    elif how == "a file":
        path.write_text("mine")
    else:
        path.symlink_to(ours)
    before = path.lstat()
    attempts: list[Callable[[], None]] = [
        lambda: atomic.remove_folder(path, (KEY,)),
        lambda: atomic.discard_folder(path, tmp_path / "trash", (KEY,)),
        lambda: atomic.discard_folder(ours, path, (KEY,)),
        lambda: atomic.replace_folder(ours, path, tmp_path / "trash", (KEY,)),
        lambda: atomic.replace_folder(ours, tmp_path / "new", path, (KEY,)),
        lambda: atomic.put_in_place(ours, path),
        lambda: atomic.remove_inside(path, tmp_path, (KEY,)),
        lambda: atomic.mark(path),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match="did not make"):
            attempt()
    assert os.path.samestat(before, path.lstat())
    assert names(tmp_path) == {"ours", "a"}
    assert names(ours) == {KEY}


def test_a_folder_goes_and_what_its_links_lead_to_stays(tmp_path: Path) -> None:
    theirs = folder(tmp_path / "theirs", notes="mine")
    ours = folder(tmp_path / "ours" / "deep").parent
    (ours / KEY).write_text("0")
    (ours / "link").symlink_to(theirs)
    (ours / "deep" / "link").symlink_to(theirs)
    (ours / "file").symlink_to(theirs / "notes")
    atomic.remove_folder(ours, (KEY,))
    assert names(tmp_path) == {"theirs"}
    assert (theirs / "notes").read_text() == "mine"


def test_a_removal_that_was_cut_short_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = folder(tmp_path / "ours", _key="0", first="1", second="2", manifest_json=STAGE)
    unlink, left = os.unlink, [1]

    def dies(path: str) -> None:
        if not left.pop():
            raise KeyboardInterrupt
        left.append(0)
        unlink(path)

    for cut in range(1, 4):
        left[:] = [cut]
        monkeypatch.setattr("os.unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            atomic.remove_folder(ours, (KEY, MANIFEST))
        monkeypatch.setattr("os.unlink", unlink)
        assert atomic.is_ours(ours, (KEY, MANIFEST))
    atomic.remove_folder(ours, (KEY, MANIFEST))
    assert not ours.exists()


def test_remove_inside_takes_only_what_lies_directly_in_a_folder_of_ours(tmp_path: Path) -> None:
    ours, theirs = folder(tmp_path / "ours", _key="0"), folder(tmp_path / "theirs", notes="mine")
    folder(ours / "sub" / "deeper", file="1")
    (ours / "link").symlink_to(theirs)
    (ours / "file").write_text("1")
    for path in (ours / "link", ours / "file", ours / "sub" / "deeper", ours / ".." / "theirs", theirs):
        with pytest.raises(UserError, match="llmrec did not make it"):
            atomic.remove_inside(path, ours, (KEY,))
    atomic.remove_inside(ours / "sub", ours, (KEY,))
    atomic.remove_inside(ours / "nothing", ours, (KEY,))
    assert names(ours) == {KEY, "link", "file"}
    assert names(theirs) == {"notes"}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", ["none", "empty", "ours"])
def test_a_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, old: str) -> None:
    if not exchange:
        monkeypatch.setattr("llmrec.atomic._swap_of_the_system", lambda: None)
    new, final = folder(tmp_path / "new", manifest_json=STAGE, file="new"), tmp_path / "final"
    if old != "none":
        folder(final, **({"manifest_json": STAGE, "file": "old"} if old == "ours" else {}))
    atomic.replace_folder(new, final, tmp_path / "trash", (MANIFEST,))
    assert names(tmp_path) == {"final"}
    assert (final / "file").read_text() == "new"


def test_a_sibling_that_is_not_ours_stops_the_change_of_a_bundle(tmp_path: Path) -> None:
    theirs = folder(tmp_path / ".model.new", notes="mine")
    with (
        pytest.raises(UserError, match=r"\.model\.new: a folder that llmrec did not make is in the way"),
        atomic.replacing(tmp_path / "model"),
    ):
        raise AssertionError("must not get here")
    assert names(theirs) == {"notes"}
    assert names(tmp_path) == {".model.new"}


@pytest.mark.parametrize("killed", ["marked", "copied"])
def test_a_sibling_that_a_killed_call_left_goes(tmp_path: Path, killed: str) -> None:
    folder(tmp_path / ".model.new", **({"_llmrec": "", "half": ""} if killed == "marked" else {"llmrec_json": HEADER}))
    with atomic.replacing(tmp_path / "model") as sibling:
        assert names(sibling) == {MARK}
        (sibling / BUNDLE).write_text(HEADER)
        atomic.put_in_place(sibling, tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == {BUNDLE}


def test_a_lock_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """A temporary file that another process holds locked is in use."""
    path = tmp_path / ".a.0123abcd.tmp"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        atomic.write_text(tmp_path / "a", "")
        assert path.exists()
    atomic.write_text(tmp_path / "a", "")
    assert names(tmp_path) == {"a"}
