"""Text of others, as it is printed: on one line, with nothing that a terminal takes for a command. Progress bars."""

import copy
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.cli.main import main
from llmrec.console import _Bar, log_to_stderr, printable, progress_bar, rate, track
from llmrec.data import Catalog
from llmrec.recommender.recommender import Recommender

EVIL = "\x1b[31mred\x1b[0m\r\nnext\x9b2J \u202egnp\u2066 \x07\ud800"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\tb\nc\r\nd\u2028e", "a b c  d e"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\udcff", "\\udcff"),
        ("Pérdida 日本語 עברית 👩\u200d👩\u200d👧 e\u0301", "Pérdida 日本語 עברית 👩\u200d👩\u200d👧 e\u0301"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_any_text_is_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)
    shown.encode("utf-8")
    assert printable(shown) == shown


@pytest.fixture(scope="module")
def bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose titles, brands and ids are a stranger's."""
    store = recommender.store
    ids = [f"{item}{EVIL}".encode("utf-8", "replace").decode() for item in store.catalog.ids]
    evil = EVIL.encode("utf-8", "replace").decode()
    frame = store.catalog.frame.with_columns(item_id=pl.Series(ids), title=pl.col("title") + evil, brand=pl.lit(evil))
    tokenizer = copy.copy(recommender.item_tokenizer)
    tokenizer.ids = pl.Series("item_id", ids)
    folder = tmp_path_factory.mktemp("evil") / "model"
    recommender.store = replace(store, catalog=Catalog(frame), item_tokenizer=tokenizer)
    try:
        recommender.save_pretrained(folder)
    finally:
        recommender.store = store
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["recommend", "--prompt", "soap", "--k", "3"],
        ["recommend", "--prompt", "soap", "--where", f"brand={EVIL}", "--k", "99"],
        ["recommend", "--history", EVIL],
        ["inspect"],
        ["explain", "--prefix", "<a_0>"],
        ["discover", "--prompt", "soap", "--k", "2", "--beams", "20"],
        ["add-items", "--remove", EVIL],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_commands_print_no_controls(words: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([words[0], "--model", str(bundle), *words[1:]])
    captured = capsys.readouterr()
    for line in [*captured.out.split("\n"), *captured.err.split("\n")]:
        assert line == printable(line)
    assert "\\x1b[31mred" in captured.out + captured.err or words[:2] == ["explain", "--prefix"]


def test_log_lines_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("llmrec")
    before, logger.handlers = logger.handlers, []
    try:
        log_to_stderr()
        logging.getLogger("llmrec.x").info("item %s", EVIL)
    finally:
        logger.handlers = before
        logger.propagate = True
    assert "item \\x1b[31mred" in capsys.readouterr().err


class Terminal(io.StringIO):
    """Takes what is written to a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Stderr, as a terminal. A fixture could not do it: pytest takes stderr back between a fixture and its test."""
    with patch.dict("os.environ", {"TERM": "xterm", "COLUMNS": "120"}), redirect_stderr(Terminal()) as stderr:
        yield stderr


def seen(stderr: Terminal) -> list[str]:
    """The lines written to a terminal, without its commands."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stderr.getvalue()))]


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(0, 10, 4), "counting", unit="things")) == [0, 4, 8]
    bar = progress_bar("counting", 3, unit="things")
    bar.advance()
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_range_counts_in_its_own_numbers() -> None:
    counted = []
    with terminal() as stderr:
        for start in track(range(2, 12, 4), "counting", unit="things"):
            [task] = _Bar._screen.tasks
            counted.append((start, task.completed, task.total))
            _Bar._screen.refresh()
    assert counted == [(2, 0, 10), (6, 4, 10), (10, 8, 10)]
    assert _Bar._screen is None
    assert any(re.match(r"counting .* +8/10 .*things/(s|min)", line) for line in seen(stderr)), seen(stderr)


def test_items_without_a_length_have_no_end() -> None:
    with terminal():
        for _ in track(iter("ab"), "reading"):
            assert _Bar._screen.tasks[0].total is None
        for _ in track(["a", "b"], "reading"):
            assert _Bar._screen.tasks[0].total == 2


def test_bars_share_the_screen_and_log_lines_stand_above() -> None:
    with terminal() as stderr:
        log_to_stderr()
        outer = progress_bar("evaluating [all]", 2, done=1, unit="systems")
        for _ in track(range(3), "decoding\x1b[31m", unit="users"):
            assert [task.description for task in _Bar._screen.tasks] == ["evaluating [all]", "decoding\\x1b[31m"]
            _Bar._screen.refresh()
        logging.getLogger("llmrec.x").info("half done")
        assert [task.completed for task in _Bar._screen.tasks] == [1]
        outer.close()
        outer.close()
    lines = seen(stderr)
    assert any(line.endswith("half done") and "evaluating" not in line for line in lines), lines
    assert any(line.startswith("evaluating [all]") for line in lines), "square brackets are text"
    assert _Bar._screen is None


def test_a_bar_ends_with_the_loop_that_fails() -> None:
    with terminal():
        steps = track(range(3), "failing")
        next(steps)
        assert _Bar._screen is not None
        steps.close()
    assert _Bar._screen is None


@pytest.mark.parametrize(
    ("speed", "unit", "words"),
    [
        (None, "users", ""),
        (0.0, "users", ""),
        (1234.4, "users", "1,234 users/s"),
        (12.34, "users", "12.3 users/s"),
        (0.1, "levels", "6.0 levels/min"),
        (2.0, "", "2.0/s"),
    ],
)
def test_rate(speed: float | None, unit: str, words: str) -> None:
    assert rate(speed, unit) == words
