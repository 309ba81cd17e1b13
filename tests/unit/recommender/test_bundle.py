"""The bundle's header and index, and what is said when they are damaged."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.recommender import bundle

HEADER = bundle.Header(bundle.SCHEMA, "0.1.0", 2, [4, 2], "", "vocab", "base", "model", 20)


def test_header_round_trip(tmp_path: Path) -> None:
    bundle.write_header(HEADER, tmp_path)
    assert bundle.read_header(tmp_path) == HEADER


def test_what_was_measured_is_recorded_in_a_file_of_its_own(tmp_path: Path) -> None:
    """The bundle's files are hard links of the training stage's, which must stay as they are."""
    bundle.write_header(HEADER, tmp_path)
    (tmp_path / "linked.json").hardlink_to(tmp_path / bundle.HEADER)
    before = (tmp_path / "linked.json").read_text()
    bundle.write_header(replace(HEADER, scoring="catalogue"), tmp_path)
    assert bundle.read_header(tmp_path) == replace(HEADER, scoring="catalogue")
    assert (tmp_path / "linked.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"linked.json", bundle.HEADER}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no llmrec bundle"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"schema": 99}', "schema 99"),
        (json.dumps({"schema": bundle.SCHEMA}), "missing"),
        (json.dumps(asdict(replace(HEADER, scoring="best"))), "scoring 'best', expected one of auto, vocab"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / bundle.HEADER).write_text(content)
    with pytest.raises(UserError, match=words):
        bundle.read_header(tmp_path)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / bundle.INDEX).write_bytes(b"not parquet")
    with pytest.raises(UserError, match=bundle.INDEX):
        bundle.read_index(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_a_hub(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        bundle.locate(name)
