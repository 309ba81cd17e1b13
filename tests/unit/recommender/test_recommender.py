"""What may come out of a recommender, whatever the model thinks."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import DENSE

from llmrec.data import Catalog
from llmrec.decode.config import DecodeConfig
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig, InitRows
from llmrec.recommender import bundle
from llmrec.recommender.recommender import Recommender

ROWS = st.lists(st.integers(0, 19), max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=ROWS.filter(bool), exclude=ROWS, k=st.integers(1, 25), include_seen=st.booleans())
def test_k_distinct_allowed_items_come_out_whenever_there_are_k(
    recommender: Recommender, history: list[int], exclude: list[int], k: int, include_seen: bool
) -> None:
    ids = recommender.catalog.ids
    gone = set(exclude) | (set() if include_seen else set(history))
    left_out = [ids[i] for i in exclude]
    items = recommender.recommend([ids[i] for i in history], k=k, exclude=left_out, include_seen=include_seen)
    found = [item.item_id for item in items]
    assert len(found) == len(set(found)) == min(k, 20 - len(gone))
    assert not {ids[i] for i in gone} & set(found)
    assert [item.rank for item in items] == list(range(1, len(items) + 1))
    assert all(a.score >= b.score for a, b in pairwise(items))


def test_where_keeps_items_with_that_value_only(recommender: Recommender) -> None:
    items = recommender.recommend(prompt="soap", where={"brand": "alba"}, k=20)
    assert sorted(item.item_id for item in items) == [f"i{row}" for row in range(5)]
    assert all(item.fields["brand"] == "Alba" for item in items)


def test_fields_of_the_catalogue_never_take_the_place_of_the_answer(recommender: Recommender, tmp_path: Path) -> None:
    """A column may have the name of any field of an answer or of the bundle, before and after saving and adding."""
    names = ["score", "rank", "codes", "training_events", "fields", "items", "notes", "title_", "item_id_"]
    frame = recommender.catalog.frame.with_columns(pl.lit(f"own {name}").alias(name) for name in names)
    catalog, new = Catalog(frame), frame[:1].with_columns(item_id=pl.lit("n0"))
    copy = Recommender(
        recommender.model,
        recommender.tokenizer,
        replace(recommender.store, catalog=catalog),
        recommender.base,
        recommender.base_model,
    )
    copy.save_pretrained(tmp_path / "bundle")
    loaded = Recommender.from_pretrained(tmp_path / "bundle").add_items(Catalog(new))
    loaded.save_pretrained(tmp_path / "grown")
    for each in (copy, loaded, Recommender.from_pretrained(tmp_path / "grown")):
        [first] = each.recommend(["i1"], k=1)
        answer = first.to_dict()
        assert list(answer) == ["rank", "item_id", "score", "title", "fields"]
        assert (answer["rank"], answer["score"]) == (1, first.score)
        assert {name: answer["fields"][name] for name in names} == {name: f"own {name}" for name in names}
        assert each.recommend(["i1"], k=1, where={"codes": "own codes"}, max_per_field={"rank": 1}) == [first]


def test_too_few_answers_come_with_the_reason(recommender: Recommender) -> None:
    assert recommender.recommend(prompt="soap", k=20).reason is None
    none = recommender.recommend(prompt="soap", where={"brand": "nobody"})
    assert none == []
    assert none.reason == "No item passes the filters: the catalogue has 20 items, where brand=nobody leaves 0"
    few = recommender.recommend(["i1"], "soap", allow=["i1", "i2", "i6", "i7"], exclude=["i7"], where={"brand": "alba"})
    assert [item.item_id for item in few] == ["i2"]
    assert few.reason == (
        "1 of the 10 asked for: the catalogue has 20 items, where brand=alba leaves 5, allow leaves 2, "
        "exclude leaves 2, the history leaves 1"
    )
    assert recommender.recommend(prompt="soap", k=21).reason == "20 of the 21 asked for: the catalogue has 20 items"


def test_only_allowed_items_come_out(recommender: Recommender) -> None:
    items = recommender.recommend(prompt="soap", allow=["i3", "i8", "i19"], k=3)
    assert sorted(item.item_id for item in items) == ["i19", "i3", "i8"]
    assert recommender.recommend(prompt="soap", allow=[]) == []


def test_offsets_are_added_to_the_scores(recommender: Recommender) -> None:
    plain = {item.item_id: item.score for item in recommender.recommend(prompt="soap", k=20)}
    by_name = {"i4": 30.0, "i9": -30.0}
    boosted = recommender.recommend(prompt="soap", k=20, offsets=by_name)
    assert boosted[0].item_id == "i4"
    assert boosted[-1].item_id == "i9"
    for item in boosted:
        assert item.score == pytest.approx(plain[item.item_id] + by_name.get(item.item_id, 0), abs=1e-4)
    by_row = np.array([by_name.get(item_id, 0.0) for item_id in recommender.catalog.ids])
    assert recommender.recommend(prompt="soap", k=20, offsets=by_row) == boosted


@pytest.mark.parametrize("exact", [False, True])
def test_no_more_than_so_many_of_a_brand(recommender: Recommender, exact: bool) -> None:
    """Brands have 5 items each; those without a brand are of none, and all of them may come out."""
    ranking = recommender.recommend(prompt="soap", k=20)
    expected: list[str] = []
    brands: list[str] = []
    for item in ranking:
        brand = item.fields["brand"]
        if not brand or brands.count(brand) < 2:
            expected.append(item.item_id)
            brands.append(brand)
    items = recommender.recommend(prompt="soap", k=20, max_per_field={"brand": 2}, exact=exact)
    assert [item.item_id for item in items] == expected
    assert len(items) == 3 * 2 + 5
    assert (
        items.reason == "11 of the 20 asked for: the catalogue has 20 items, max_per_field brand=2 lets no more through"
    )


def test_no_more_than_so_many_of_a_first_code(recommender: Recommender) -> None:
    firsts = dict(zip(recommender.catalog.ids, recommender.item_tokenizer.codes[:, 0].tolist(), strict=True))
    items = recommender.recommend(prompt="soap", k=20, max_per_code=1)
    assert sorted(firsts[item.item_id] for item in items) == sorted(set(firsts.values()))
    assert items.reason is not None
    assert "max_per_code 1" in items.reason


def test_exact_gives_the_head_of_the_whole_ranking(recommender: Recommender) -> None:
    whole = recommender.recommend(prompt="soap", k=20)
    exact = recommender.recommend(prompt="soap", k=4, exact=True)
    assert [item.item_id for item in exact] == [item.item_id for item in whole[:4]]
    assert [item.score for item in exact] == pytest.approx([item.score for item in whole[:4]], abs=DENSE)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "history"),
        ({"prompt": "  "}, "empty"),
        ({"history": ["i0", "x9"], "unknown": "fail"}, "history x9"),
        ({"history": ["i0"], "histories": [["i1"]]}, "both given"),
        ({"prompt": "tea \ud83d cup"}, r"prompt: holds \ud83d, half of a surrogate pair"),
        ({"history": ["\udfff"]}, r"history: holds \udfff"),
        ({"prompt": "tea", "where": {"\ud83d": "x"}}, r"where: holds \ud83d"),
        ({"prompt": "tea", "where": {"brand": "\ud83d"}}, r"where: holds \ud83d"),
        ({"prompt": "tea", "exclude": ["\ud83d"]}, r"exclude: holds \ud83d"),
        ({"prompt": "tea", "offsets": {"\ud83d": 1.0}}, r"offsets: holds \ud83d"),
        ({"prompt": "tea", "max_per_field": {"\ud83d": 1}}, r"max_per_field: holds \ud83d"),
        ({"history": ["i0"], "exclude": ["y"]}, "exclude y"),
        ({"prompt": "soap", "where": {"colour": "red"}}, "where colour=red"),
        ({"prompt": "soap", "k": 0}, "k 0"),
        ({"prompt": "soap", "allow": ["z"]}, "allow z"),
        ({"prompt": "soap", "offsets": {"i1": 1.0, "z": 2.0}}, "offsets z"),
        ({"prompt": "soap", "offsets": {"i1": float("nan")}}, "offsets i1: offset nan"),
        ({"prompt": "soap", "offsets": np.zeros(3)}, r"offsets: shape (3,), expected one per item"),
        ({"prompt": "soap", "max_per_field": {"colour": 2}}, "max_per_field colour=2: no such field"),
        ({"prompt": "soap", "max_per_field": {"brand": 0}}, "max_per_field brand=0: expected at least 1"),
        ({"prompt": "soap", "max_per_code": -1}, "max_per_code -1: expected at least 1"),
        ({"prompt": "word " * 400}, "context"),
    ],
)
def test_mistakes_are_named(recommender: Recommender, request_: dict, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        recommender.recommend(**request_)


def test_item_tokens_in_a_prompt_are_only_words(recommender: Recommender) -> None:
    token = recommender.renderer.item_text[3]
    assert recommender.ranker.prompt_ids(query=f"soap {token}") == recommender.ranker.prompt_ids(query="soap")


@pytest.fixture(scope="module")
def saved(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "model"
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture
def bundle_copy(saved: Path, tmp_path: Path, unsized: Callable[[Path], Path]) -> Path:
    return unsized(Path(shutil.copytree(saved, tmp_path / "model")))


def test_saved_and_loaded_answers_are_the_same(recommender: Recommender, saved: Path) -> None:
    request = {"history": ["i1", "i7"], "prompt": "hand balm", "k": 20}
    assert Recommender.from_pretrained(saved).recommend(**request) == recommender.recommend(**request)


def test_the_bundle_says_how_it_scores(bundle_copy: Path) -> None:
    """Recorded by an evaluation, used by whoever loads it, overruled by a configuration."""
    assert Recommender.from_pretrained(bundle_copy).decode_config.scoring == "auto"
    bundle.write_header(replace(bundle.read_header(bundle_copy), scoring="level"), bundle_copy)
    loaded = Recommender.from_pretrained(bundle_copy)
    assert loaded.ranker.search.config.scoring == "level"
    loaded.save_pretrained(bundle_copy)
    assert bundle.read_header(bundle_copy).scoring == "level"
    assert Recommender.from_pretrained(bundle_copy, DecodeConfig(scoring="vocab")).decode_config.scoring == "vocab"


def test_parts_that_do_not_belong_together_are_refused(bundle_copy: Path) -> None:
    quantizer = bundle_copy / bundle.QUANTIZER
    path = quantizer / "item_codes.parquet"
    table = pl.read_parquet(path)
    table.reverse().write_parquet(path)
    with pytest.raises(UserError, match=r"item_index\.parquet and quantizer/item_codes\.parquet list other items"):
        Recommender.from_pretrained(bundle_copy)
    table.write_parquet(path)
    header = json.loads((quantizer / "quantizer.json").read_text())
    header["level_sizes"][1] += 1
    (quantizer / "quantizer.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="belong to different tokenizers"):
        Recommender.from_pretrained(bundle_copy)


def test_a_header_of_more_codes_than_the_tokenizer_has_is_refused(bundle_copy: Path) -> None:
    header = json.loads((bundle_copy / bundle.HEADER).read_text())
    header["level_sizes"][0] += 3
    (bundle_copy / bundle.HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match="tokenizer lacks 3 item tokens"):
        Recommender.from_pretrained(bundle_copy)


@pytest.mark.parametrize("method", ["gaussian", "mean"])
def test_new_rows_start_as_the_configuration_says(recommender: Recommender, method: InitRows) -> None:
    base = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=320, context=160, init_rows=method)
    made = Recommender.from_base(None, recommender.item_tokenizer, recommender.catalog, base)
    rows = made.model.get_input_embeddings().weight.detach()
    new = made.renderer.vocabulary.all_ids
    old = np.setdiff1d(np.arange(len(rows)), new)
    spread = (rows[new] - rows[old].mean(0)).std() / rows[old].std()
    assert (spread < 0.05) == (method == "mean")
    assert spread < 1.5
