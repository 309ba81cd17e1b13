"""Text of others, as it is printed: on one line, with nothing that a terminal takes for a command."""

import logging
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.cli.main import main
from llmrec.console import log_to_stderr, printable
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
    tokenizer = recommender.item_tokenizer
    before = tokenizer.item_ids
    tokenizer.item_ids = ids
    folder = tmp_path_factory.mktemp("evil") / "model"
    recommender.store = replace(store, catalog=Catalog(frame))
    try:
        recommender.save_pretrained(folder)
    finally:
        tokenizer.item_ids, recommender.store = before, store
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
