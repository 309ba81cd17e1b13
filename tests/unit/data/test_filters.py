import logging
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
    seconds = kept.with_columns(pl.col("timestamp") // 10**6)
    assert sorted(seconds.rows()) == [("u", "a", 1), ("u", "a", 2), ("u", "b", 1), ("v", "a", 1)]
    untimed = log([("u", "a"), ("u", "a")], ["user_id", "item_id"])
    assert len(filters.exact_duplicates(untimed)) == 2


@pytest.mark.parametrize(("policy", "left"), [("drop-repeats", "ab" + "a"), ("drop-adjacent", "aba" + "a")])
def test_repeats(policy, left):
    rows = [("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("u", "a", 4), ("v", "a", 5)]
    assert "".join(filters.repeats(log(rows), policy).frame["item_id"]) == left


def test_min_rating_drops_low_and_unrated(caplog):
    caplog.set_level(logging.INFO)
    rows = [("u", "a", 5.0), ("u", "b", 3.0), ("u", "c", None), ("u", "d", float("nan"))]
    rated = log(rows, ["user_id", "item_id", "rating"])
    assert filters.min_rating(rated, 4).frame["item_id"].to_list() == ["a"]
    assert "--data.min_rating 4: 2 events have no rating and are dropped." in caplog.text
    with pytest.raises(UserError, match=r"data\.columns\.rating"):
        filters.min_rating(log([("u", "a", 1)]), 4)


def test_unknown_items():
    events, catalog = log([("u", "a", 1), ("u", "zz", 2), ("u", "zz", 3)]), items(("a", "A"))
    assert len(filters.known_items(events, catalog, "drop")) == 1
    with pytest.raises(UserError, match=r"1 items that the catalogue lacks \(2 events\), first 'zz'"):
        filters.known_items(events, catalog, "fail")


def test_many_unknown_items_are_refused_with_examples_of_both_sides():
    events = log([("u", item, at) for at, item in enumerate(["x1", "x2", "x2", "x3", "x4", "a"])])
    catalog = items(*((item, item) for item in "abcd"))
    message = (
        r"5 of 6 events name items that the catalogue lacks, such as 'x1', 'x2', 'x3', where the catalogue has items "
        r"such as 'a', 'b', 'c'; correct the ids, or add the items; to drop these events, raise data\.unknown_share"
    )
    with pytest.raises(UserError, match=message):
        filters.known_items(events, catalog, "drop", 0.1)
    assert len(filters.known_items(events, catalog, "drop", 0.9)) == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (" B1", "white space or Unicode form"),
        ("b1", "upper and lower case"),
        ("B1.0", "zeros after the point"),
        ("00B1", "leading zeros"),
    ],
)
def test_ids_that_almost_meet_are_said(item, reason, caplog):
    events, catalog = log([("u", item, 1), ("u", "C", 2)]), items(("B1", "A"), ("C", "C"))
    with pytest.raises(UserError, match=f"the ids differ in {reason}, so write them alike"):
        filters.known_items(events, catalog, "drop", 0.1)
    assert len(filters.known_items(events, catalog, "drop", 0.5)) == 1
    assert f"differ from ids of the catalogue in {reason}" in caplog.text


def test_look_alikes_are_said(caplog):
    filters.warn_of_look_alikes(pl.Series(["a", "b "]), "users")
    assert not caplog.records
    filters.warn_of_look_alikes(pl.Series(["b", "é", "e\u0301", "b "]), "users")
    assert (
        "2 pairs of users have ids that differ only in white space or Unicode form, such as 'b' and 'b '" in caplog.text
    )


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
    with pytest.raises(UserError, match=r"^the log has no events; expected one per row"):
        Summary().add("read", catalog, log([]))
