"""What an engineer passes by mistake is refused in one line; ids of any library are the ids of the catalogue."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.evaluation.systems import evaluate
from llmrec.model.config import BaseConfig
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Request


@pytest.mark.parametrize(
    "ids",
    [("i1", "i2"), iter(["i1", "i2"]), np.array(["i1", "i2"]), pl.Series(["i1", "i2"]), ["i1", np.str_("i2")]],
)
def test_ids_of_any_library(ids: Any) -> None:
    request = Request(ids)
    assert request.history == ["i1", "i2"]
    assert all(type(item) is str for item in request.history)


def test_whole_numbers_are_ids_as_in_a_catalogue() -> None:
    request = Request([7, np.int64(8), 9.0], exclude=np.array([1, 2]), allow=pl.Series([3.0]), offsets={4: 1.0})
    assert (request.history, request.exclude, request.allow) == (["7", "8", "9"], ["1", "2"], ["3"])
    assert request.offsets == {"4": 1.0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"history": {"a", "b"}}, "history: found a set, which has no order"),
        ({"history": {"a": 1}}, "history: found a dict, expected a list of item ids"),
        ({"history": 5}, "history: found 5, expected a list of item ids"),
        ({"history": [None]}, "history: entry 1 is None, expected an item id"),
        ({"history": ["a", ["b"]]}, "history: entry 2 is a list, expected an item id"),
        ({"history": [1.5]}, "history: entry 1 is 1.5, expected an item id"),
        ({"history": [True]}, "history: entry 1 is True, expected an item id"),
        ({"history": pl.DataFrame({"item_id": ["a"]})}, "history: found a polars DataFrame, expected a list"),
        ({"history": [], "where": "brand=Alba"}, "where: found the text 'brand=Alba', expected a dict"),
        ({"history": [], "where": pl.col("brand") == "Alba"}, "where: found a polars Expr, expected a dict"),
        ({"history": [], "max_per_field": "brand"}, "max_per_field: found the text 'brand', expected a dict"),
        ({"history": [], "max_per_field": {"brand": True}}, "max_per_field brand True: expected a whole number"),
    ],
)
def test_wrong_fields_of_a_request(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Request(**fields)


def test_a_series_of_pandas_may_have_another_order_than_the_catalogue(recommender: Recommender) -> None:
    pandas = pytest.importorskip("pandas")
    offsets = pandas.Series(np.arange(20.0), index=recommender.catalog.ids[::-1])
    with pytest.raises(UserError, match=r"offsets: found a pandas Series, .* to_dict\(\) or to_numpy\(\)"):
        recommender.recommend([], offsets=offsets)
    best = recommender.recommend([], offsets=offsets.to_dict(), k=1)
    assert best[0].item_id == recommender.catalog.ids[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"histroy": []}, "recommend has no parameter histroy: did you mean history"),
        ({"prompt": 3}, "prompt 3: expected text or null"),
        ({"prompt": ["soap"]}, "prompt is a list, which needs histories"),
        ({"histories": "i1"}, "histories 'i1': found one text, expected a list of histories"),
        ({"histories": {"u": ["i1"]}}, "histories: found a dict, expected a list of histories"),
        ({"histories": 3}, "histories: found 3, expected a list of histories"),
        ({"histories": [["i1"]], "prompt": 3}, "prompt: found 3, expected a list of texts"),
        ({"history": [], "offsets": {"i1": "a"}}, "offsets: found a dict with other values than numbers"),
        ({"history": [], "offsets": {"i1": [1, 2]}}, "offsets: found a dict with other values than numbers"),
        ({"history": [], "offsets": "abc"}, "offsets: found the text 'abc' with other values than numbers"),
    ],
)
def test_wrong_arguments_of_recommend(recommender: Recommender, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recommender.recommend(**fields)


def test_histories_of_a_generator(recommender: Recommender) -> None:
    wanted = recommender.recommend(histories=[["i1"], ["i2"]], prompt=["soap", None], k=2)
    prompts = (text for text in ("soap", None))
    assert recommender.recommend(histories=(np.array([item]) for item in ("i1", "i2")), prompt=prompts, k=2) == wanted


CALLS: list[tuple[Callable[[Recommender, Any], Any], str, str]] = [
    (lambda rec, split: rec.fit(split), "log: found a Split, expected Interactions", "or take split.train"),
    (lambda rec, split: rec.fit("events.csv"), "log: found the text 'events.csv'", "Interactions.from_file"),
    (lambda rec, split: rec.fit(split.train, split), "validation: found a Split", "split.validation_examples"),
    (lambda rec, split: rec.fit(split.train, train={"epochs": 1}), "train: found a dict", "TrainConfig"),
    (lambda rec, split: rec.fit(split.train, vectors=np.ones((2, 3))), "vectors of shape", "for 20 items"),
    (lambda rec, split: rec.prefer(split), "log: found a Split", "or take split.train"),
    (lambda rec, split: rec.prefer(split.train, cfg=1), "prefer has no parameter cfg", "did you mean config"),
    (lambda rec, split: rec.prefer(split.train, config={}), "config: found a dict", "PreferenceConfig"),
    (lambda rec, split: rec.calibrate(split), "cases: found a Split", "split.calibration_examples"),
    (lambda rec, split: rec.ranked_by("best"), "name best: ", "Expected one of beam"),
    (lambda rec, split: rec.answer({"history": []}), "request: found a dict", "Request"),
    (lambda rec, split: rec.add_items("new.csv"), "catalog: found the text 'new.csv'", "Catalog.from_file"),
    (lambda rec, split: rec.add_items(rec.catalog, if_exists="skip"), "if_exists skip", "refuse, update"),
    (lambda rec, split: rec.remove_items("i1"), "remove 'i1': found one text", "a list of item ids"),
    (lambda rec, split: setattr(rec, "decode_config", {"beams": 2}), "config: found a dict", "DecodeConfig"),
    (lambda rec, split: rec.save_pretrained(None), "folder None", "a path"),
    (lambda rec, split: rec.save_pretrained(__file__), "no folder can be made there", "File exists"),
    (lambda rec, split: rec.push_to_hub("a/b", datasets="x"), "datasets 'x': found one text", "a list of Hub ids"),
    (lambda rec, split: Recommender.from_pretrained(None), "name None", "a path"),
    (lambda rec, split: Recommender.from_pretrained("x", trust_remote_code="no"), "trust_remote_code 'no'", "bool"),
    (lambda rec, split: evaluate(split, rec), "recommender: found a Split", "Recommender.from_pretrained"),
    (lambda rec, split: evaluate(rec, split.train), "split: found an Interactions", "leave_one_out"),
    (lambda rec, split: evaluate(rec, split, {"k": [10]}), "config: found a dict", "EvaluateConfig"),
]


@pytest.mark.parametrize(("call", "found", "fix"), CALLS)
def test_wrong_arguments(
    recommender: Recommender, call: Callable[[Recommender, Any], Any], found: str, fix: str
) -> None:
    events = {"user_id": ["u"] * 4, "item_id": ["i1", "i2", "i3", "i4"]}
    split = Interactions.from_frame(events).leave_one_out()
    with pytest.raises(UserError) as caught:
        call(copy.copy(recommender), split)
    assert str(caught.value).startswith(found) or found in str(caught.value)
    assert fix in str(caught.value)


def test_items_of_a_generator_are_removed(recommender: Recommender) -> None:
    left = copy.copy(recommender).remove_items(item for item in ("i1", "i2"))
    assert len(left.catalog) == 18


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"item_tokenizer": None}, "item_tokenizer: found None, expected ItemTokenizer; make it with ItemTokenizer"),
        ({"catalog": pl.DataFrame()}, "catalog: found a polars DataFrame, expected Catalog"),
        ({"config": {"layers": 1}}, "config: found a dict, expected BaseConfig"),
        ({"max_histroy": 3}, "from_base has no parameter max_histroy: did you mean max_history"),
        ({"max_history": 0}, "max_history 0: expected at least 1"),
        ({"decode_config": {"beams": 2}}, "decode_config: found a dict, expected DecodeConfig"),
        ({"name": 3}, "name 3: expected text or a path or null"),
    ],
)
def test_wrong_arguments_of_from_base(recommender: Recommender, arguments: dict[str, Any], said: str) -> None:
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    with pytest.raises(UserError, match=said):
        Recommender.from_base(
            **{"name": None, "item_tokenizer": recommender.item_tokenizer, "config": config} | arguments
        )


@pytest.mark.parametrize("rows", [list(range(10)), list(range(19, -1, -1))])
def test_a_base_needs_the_items_of_its_tokenizer_in_their_order(recommender: Recommender, rows: list[int]) -> None:
    other: Catalog = recommender.catalog.take_rows(rows)
    with pytest.raises(UserError, match=rf"catalog: found {len(rows)} items, expected the 20 of the item tokenizer in"):
        Recommender.from_base(None, recommender.item_tokenizer, other)
