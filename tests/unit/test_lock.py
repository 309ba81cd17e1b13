"""One process at a time holds a lock, and no lock file stays."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.lock import Lock


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_a_lock_is_held_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / ".a.lock"
    first = Lock(path, "busy")
    with pytest.raises(UserError, match="busy"):
        Lock(path, "busy")
    first.release()
    assert not path.exists()
    with Lock(path):
        assert path.exists()
    second = Lock(path)
    del second
    assert not path.exists()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path, order = tmp_path / ".a.lock", []
    first = Lock(path)

    def second() -> None:
        with Lock(path, wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    order.append("first")
    first.release()
    thread.join(10)
    assert order == ["first", "second"]
    assert names(tmp_path) == set()


def _count(path: Path, times: int) -> None:
    for _ in range(times):
        with Lock(path / ".a.lock", wait=True):
            number = int((path / "number").read_text())
            (path / "number").write_text(str(number + 1))


def test_a_lock_file_that_comes_and_goes_still_keeps_processes_apart(tmp_path: Path) -> None:
    """Whoever waits on a file that its holder has removed holds nothing, and must try again."""
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(tmp_path, 300)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "900"
    assert names(tmp_path) == {"number"}


def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    lock = Lock(tmp_path / ".a.lock")
    child = multiprocessing.get_context("fork").Process(target=lock.release)
    child.start()
    child.join(10)
    assert (tmp_path / ".a.lock").exists()
    with pytest.raises(UserError, match="busy"):
        Lock(tmp_path / ".a.lock", "busy")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("theirs"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("elsewhere"),
        lambda path: os.mkfifo(path),
    ],
    ids=["a file", "a folder", "a link", "a pipe"],
)
def test_what_is_no_lock_file_of_ours_stays(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / ".a.lock"
    make(path)
    before = path.lstat()
    with pytest.raises(UserError, match=r"\.a\.lock"):
        Lock(path, "busy")
    assert os.path.samestat(before, path.lstat())
    assert names(tmp_path) == {".a.lock"}
