from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import Catalog, Interactions, Summary, filters
from llmrec.errors import UserError


def log(rows, columns=("user_id", "item_id", "timestamp")) -> Interactions:
    types = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64}
    return Interactions.from_frame(pl.DataFrame(rows, schema={name: types[name] for name in columns}, orient="row"))


def items(*rows) -> Catalog:
    return Catalog.from_frame(pl.DataFrame(rows, schema=["item_id", "title"], orient="row"))


@given(
    st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdef"), st.integers(0, 9)), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_k_core_is_the_fixed_point(rows, user_core, item_core):
    kept = filters.k_core(log(rows), user_core, item_core)
    left = log(rows).frame.rows()
    while True:  # the definition, one round after the other
        users, things = Counter(row[0] for row in left), Counter(row[1] for row in left)
        fewer = [row for row in left if users[row[0]] >= user_core and things[row[1]] >= item_core]
        if fewer == left:
            break
        left = fewer
    assert kept.frame.rows() == left


def test_exact_duplicates_need_the_same_time():
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "a", 1), ("u", "a", 2), ("v", "a", 1)]
    kept = filters.exact_duplicates(log(rows)).frame
    assert sorted(kept.rows()) == [("u", "a", 1), ("u", "a", 2), ("u", "b", 1), ("v", "a", 1)]
    untimed = log([("u", "a"), ("u", "a")], ["user_id", "item_id"])
    assert len(filters.exact_duplicates(untimed)) == 2


@pytest.mark.parametrize(("policy", "left"), [("drop-repeats", "ab" + "a"), ("drop-adjacent", "aba" + "a")])
def test_repeats(policy, left):
    rows = [("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("u", "a", 4), ("v", "a", 5)]
    assert "".join(filters.repeats(log(rows), policy).frame["item_id"]) == left


def test_min_rating_drops_low_and_unrated():
    rated = log([("u", "a", 5.0), ("u", "b", 3.0), ("u", "c", None)], ["user_id", "item_id", "rating"])
    assert filters.min_rating(rated, 4).frame["item_id"].to_list() == ["a"]
    with pytest.raises(UserError, match=r"data\.columns\.rating"):
        filters.min_rating(log([("u", "a", 1)]), 4)


def test_unknown_items():
    events, catalog = log([("u", "a", 1), ("u", "zz", 2), ("u", "zz", 3)]), items(("a", "A"))
    assert len(filters.known_items(events, catalog, "drop")) == 1
    with pytest.raises(UserError, match=r"1 items that the catalogue lacks \(2 events\), first 'zz'"):
        filters.known_items(events, catalog, "fail")


def test_items_without_text():
    catalog = items(("a", "A"), ("b", "  "))
    items_with_brand = Catalog(catalog.frame.with_columns(pl.Series("brand", ["", "B"])))
    assert filters.items_with_text(catalog, "drop").ids == ["a"]
    assert filters.items_with_text(catalog, "keep").ids == ["a", "b"]
    with pytest.raises(UserError, match=r"1 of 2 items have no text under embed\.template '\{brand\}', first 'a'"):
        filters.items_with_text(items_with_brand, "fail", "{brand}")
    assert filters.items_with_text(items_with_brand, "drop", "{brand}").ids == ["b"]
    assert filters.items_with_text(items_with_brand, "drop").ids == ["a", "b"]
    with pytest.raises(UserError, match=r"1 of 2 items .*first 'b', and .*embed\.without_text behaviour or random"):
        filters.require_text(catalog, "")
    with pytest.raises(UserError, match="1 of 2 items have no text, first 'b'"):
        filters.items_with_text(catalog, "fail")
    with pytest.raises(UserError, match=r"2 of 2 items.*data\.empty_text"):
        filters.items_with_text(items(("a", ""), ("b", "")), "drop")


def test_summary_counts_and_names_the_emptying_step():
    summary, catalog = Summary(), items(("a", "A"))
    summary.add("read", catalog, log([("u", "a", 1), ("v", "b", 1)]))
    summary.add("known", catalog, log([("u", "a", 1)]))
    assert summary.to_dict()[1] == {
        "step": "known", "users": 1, "items": 1, "interactions": 1, "dropped": 1, "catalogue": 1
    }  # fmt: skip
    assert Summary.from_dict(summary.to_dict()) == summary
    assert str(summary) == "read: 2 events; known: −1"
    with pytest.raises(UserError, match="step '5-core' left no interactions"):
        summary.add("5-core", catalog, log([]))
