"""Tables and LC-Rec's D.user.json, right and wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.intentions import Intentions, IntentionsConfig
from llmrec.intentions.intentions import read_file

Read = Callable[..., Intentions]


@pytest.fixture
def read(tmp_path: Path, catalog: Catalog, log: Interactions) -> Read:
    """Write a file, and read it."""

    def write_and_read(name: str, content: Any, **fields: int) -> Intentions:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_file(IntentionsConfig("file", path=str(path), **fields), catalog, log.leave_one_out().train)

    return write_and_read


def lc_rec(**changes: Any) -> dict[str, Any]:
    """u0 took i0 to i4; of these i0 to i2 are its training part."""
    entry = {"item": "i2", "inters": ["i0", "i1"], "querys": ["I water flowers", "a hose that reaches far"]}
    document = {
        "user_explicit_preference": {"u0": ["likes gardens", "", "wants a hose"]},
        "user_vague_intention": {
            "train": {"u0": entry},
            "test": {"u0": {**entry, "item": "i4", "querys": ["warm feet"]}},
        },
    }
    return document | changes


def test_lc_rec(read: Read) -> None:
    found = read("D.user.json", lc_rec(), per_user=3)
    assert found.items == {"i2": ["I water flowers", "a hose that reaches far"]}
    assert found.users == {"u0": ["likes gardens", "wants a hose"]}
    assert found.held_out == {"i4": ["warm feet"]}


@pytest.mark.parametrize("missing", [{}, {"test": {}}, {"val": {}}])
def test_lc_rec_without_test(read: Read, missing: dict) -> None:
    train = lc_rec()["user_vague_intention"]["train"]
    found = read("D.user.json", lc_rec(user_vague_intention={"train": train, **missing}))
    assert found.items
    assert found.held_out == {}


@pytest.mark.parametrize("later", [{"item": "i3"}, {"item": "i4"}, {"inters": ["i0", "i3"]}, {"inters": ["i9"]}])
def test_lc_rec_texts_about_later_events_are_left_out(read: Read, later: dict) -> None:
    document = lc_rec()
    document["user_vague_intention"]["train"]["u0"].update(later)
    found = read("D.user.json", document)
    assert found.items == found.users == {}


def test_lc_rec_numbers_are_ids(tmp_path: Path, catalog: Catalog) -> None:
    frame = catalog.frame.with_columns(item_id=catalog.frame["item_id"].str.slice(1))
    log = Interactions.from_frame(frame.select("item_id", user_id=catalog.frame["item_id"].str.slice(0, 0) + "7"))
    document = lc_rec(user_explicit_preference={"7": "likes gardens"})
    entry = {"item": 2, "inters": [0, 1], "querys": ["I water flowers"]}
    document["user_vague_intention"] = {"train": {"7": entry}, "test": {}}
    path = tmp_path / "D.user.json"
    path.write_text(json.dumps(document))
    found = read_file(IntentionsConfig("file", path=str(path)), Catalog(frame), log.leave_one_out().train)
    assert (found.items, found.users) == ({"2": ["I water flowers"]}, {"7": ["likes gardens"]})


def entry(**changes: Any) -> dict[str, Any]:
    whole = {"item": "i2", "inters": [], "querys": ["a"]} | changes
    return {"train": {"u0": whole}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "the file"),
        ("{", "malformed JSON"),
        ({}, "user_explicit_preference"),
        (lc_rec(user_vague_intention=[]), "user_vague_intention"),
        (lc_rec(user_vague_intention={"train": 3}), "user_vague_intention.train:"),
        (lc_rec(user_vague_intention={"train": {"u0": "text"}}), "user_vague_intention.train.u0:"),
        (lc_rec(user_vague_intention=entry(item=None)), "user_vague_intention.train.u0.item"),
        (lc_rec(user_vague_intention=entry(inters="i1")), "user_vague_intention.train.u0.inters"),
        (lc_rec(user_vague_intention=entry(querys=["a", 3])), "user_vague_intention.train.u0.querys"),
        (lc_rec(user_explicit_preference={"u0": {"a": 1}}), "user_explicit_preference.u0"),
    ],
)
def test_lc_rec_mistakes(read: Read, content: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        read("D.user.json", content)
    assert "D.user.json" in str(error.value)
    assert said in str(error.value)


def test_table(read: Read) -> None:
    rows = "item_id,user_id,text,held_out\ni0,,a cake for ten,\ni0,,party lights,True\n,u1,likes books,false\n"
    rows += "i0,,a cake for ten,0\nstrange,,x,\n,stranger,y,\n"
    found = read("wishes.csv", rows)
    assert found.items == {"i0": ["a cake for ten"]}
    assert found.users == {"u1": ["likes books"]}
    assert found.held_out == {"i0": ["party lights"]}


def test_table_of_items_alone(read: Read) -> None:
    rows = [{"item_id": "i0", "text": text} for text in ("a", "b", "c")]
    found = read("wishes.jsonl", "\n".join(map(json.dumps, rows)), per_item=2)
    assert found.items == {"i0": ["a", "b"]}


def test_what_another_run_saved(tmp_path: Path, catalog: Catalog, log: Interactions) -> None:
    saved = Intentions({"i1": ["for the car"]}, {"u1": ["likes cars"]}, {"i1": ["for the old van"]})
    saved.save(tmp_path)
    config = IntentionsConfig("file", path=str(tmp_path / "intentions.parquet"))
    assert read_file(config, catalog, log.leave_one_out().train) == saved


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("item_id,words\ni0,a\n", "'text'"),
        ("text\na\n", "'item_id'"),
        ("item_id,text\ni0,a\ni1,\n", "row 2 has no text"),
        ("item_id,user_id,text\ni0,u0,a\n", "row 1: expected item_id"),
        ("item_id,user_id,text\n,,a\n", "row 1: expected item_id"),
        ("user_id,text,held_out\nu0,a,true\n", "row 1: expected item_id"),
        ("item_id,text,held_out\ni0,a,perhaps\n", "row 1 has held_out 'perhaps'"),
    ],
)
def test_table_mistakes(read: Read, content: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read("wishes.csv", content)
    assert "wishes.csv" in str(error.value)
    assert said in str(error.value)


def test_no_file(catalog: Catalog, log: Interactions) -> None:
    with pytest.raises(UserError, match=r"intentions\.path"):
        read_file(IntentionsConfig("file", path="nowhere.csv"), catalog, log)
