"""Answers on disk survive kills and threads."""

from pathlib import Path
from threading import Thread

import pytest

from llmrec.intentions.answers import Answers


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = Answers(path, "model")
    first.keep("a\nprompt {}", "an\nanswer “✓”")
    again = Answers(path, "model")  # the first was killed: never closed
    assert "a\nprompt {}" in again
    assert again["a\nprompt {}"] == "an\nanswer “✓”"
    assert "another" not in again
    assert "a\nprompt {}" not in Answers(path, "another model")


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_that_a_kill_cut_short_is_asked_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    answers = Answers(path, "model")
    for prompt in ("one", "two"):
        answers.keep(prompt, "yes")
    answers.close()
    path.write_bytes(path.read_bytes()[:-cut])
    answers = Answers(path, "model")
    assert "one" in answers
    assert "two" not in answers
    answers.keep("two", "again")
    answers.close()
    answers = Answers(path, "model")
    assert (answers["one"], answers["two"]) == ("yes", "again")


def test_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers = Answers(path, "model")
    threads = [Thread(target=answers.keep, args=(str(n), "x" * 9000)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Answers(path, "model")
    assert all(str(n) in again for n in range(40))
