"""The bundle's header and index, and what is said when they are damaged."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
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


def test_a_run_directory_names_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    bundle.write_header(HEADER, tmp_path / "model")
    with pytest.raises(UserError, match=r"no llmrec bundle there .*; name .*/model, the one of this run\.$"):
        bundle.read_header(tmp_path)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / bundle.INDEX).write_bytes(b"not parquet")
    with pytest.raises(UserError, match=bundle.INDEX):
        bundle.read_index(tmp_path)


NAMES = [
    "codes",
    "training_events",
    "fields",
    "fields.codes",
    "score",
    "rank",
    "reason",
    "index",
    "^a$",
    "*",
    "a.b",
    "",
]
"""Names that a catalogue may use for its own columns."""


def write(names: list[str], folder: Path) -> pl.DataFrame:
    """Write an index whose catalogue has these columns; the catalogue's frame."""
    texts = {name: [f"{name} of a", f"{name} of b"] for name in names}
    frame = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], **texts})
    bundle.write_index(["a", "b"], [[0, 1], [1, 0]], [3, 0], frame, folder)
    return frame


@pytest.mark.parametrize("names", [NAMES, []])
def test_no_column_of_the_catalogue_meets_one_of_the_index(tmp_path: Path, names: list[str]) -> None:
    frame = write(names, tmp_path)
    index = bundle.read_index(tmp_path)
    assert index["codes"].to_list() == [[0, 1], [1, 0]]
    assert index["training_events"].to_list() == [3, 0]
    assert bundle.catalog_frame(index).equals(frame)


def test_an_index_of_schema_1_is_read_in_the_new_form(tmp_path: Path) -> None:
    write(["brand"], tmp_path)
    new = bundle.read_index(tmp_path)
    old = new.rename({"fields.brand": "brand"})
    old.write_parquet(tmp_path / bundle.INDEX)
    assert bundle.read_index(tmp_path).equals(new)
    old.drop("training_events").write_parquet(tmp_path / bundle.INDEX)  # of 0.1
    assert bundle.read_index(tmp_path)["training_events"].to_list() == [1, 1]


def test_an_index_with_two_titles_is_refused(tmp_path: Path) -> None:
    write(["brand"], tmp_path)
    bundle.read_index(tmp_path).rename({"fields.brand": "fields.title"}).write_parquet(tmp_path / bundle.INDEX)
    with pytest.raises(UserError, match="expected columns item_id, codes, title"):
        bundle.read_index(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_a_hub(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        bundle.locate(name)
