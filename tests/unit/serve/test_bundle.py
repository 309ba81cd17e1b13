"""The bundle's header and index, and what is said when they are damaged."""

import json
from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.serve import bundle

HEADER = bundle.Header(bundle.SCHEMA, "0.1.0", 2, [4, 2], "", "vocab", "base", "model", 20)


def test_header_round_trip(tmp_path: Path) -> None:
    bundle.write_header(HEADER, tmp_path)
    assert bundle.read_header(tmp_path) == HEADER


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no llmrec bundle"),
        ("{", "not valid JSON"),
        ("[]", "schema list"),
        ('{"schema": 99}', "schema 99"),
        (json.dumps({"schema": bundle.SCHEMA}), "missing"),
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
