import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import TEST, TRAIN, VALID, Catalog, Interactions
from llmrec.data.interactions import given_split
from llmrec.errors import UserError


def log(*rows) -> Interactions:
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


def catalog(items: str) -> Catalog:
    return Catalog.from_frame(pl.DataFrame({"item_id": list(items)}))


@pytest.fixture
def split():
    rows = [
        ("u", "a", 1),
        ("u", "b", 2),
        ("u", "c", 3),
        ("u", "d", 4),
        ("v", "d", 1),
        ("v", "a", 2),
        ("w", "b", 9),
    ]
    rows += [("x", "c", 1), ("x", "b", 2), ("x", "a", 3)]
    return log(*rows).leave_one_out()


def test_leave_one_out(split):
    assert split.protocol == {"kind": "leave-one-out", "events": {"train": 6, "valid": 2, "test": 2}}
    assert split.test.frame["item_id"].to_list() == ["d", "a"]
    assert split.valid.frame["item_id"].to_list() == ["c", "b"]
    assert split.train.frame["user_id"].to_list() == ["u", "u", "v", "v", "w", "x"], "short users only train"


def test_sequences(split):
    arrays = split.sequences(catalog("dcba"))
    assert arrays.users == ["u", "v", "w", "x"]
    assert arrays.offsets.tolist() == [0, 4, 6, 7, 10]
    assert arrays.items.tolist() == [3, 2, 1, 0, 0, 3, 2, 1, 2, 3]
    assert (arrays.offsets.dtype, arrays.items.dtype, arrays.parts.dtype) == (np.int64, np.int32, np.uint8)
    assert [items.tolist() for items in arrays.train_sequences()] == [[3, 2], [0, 3], [2], [1]]
    assert arrays.history(0, TEST).tolist() == [3, 2, 1]
    assert arrays.train_counts(5).tolist() == [1, 1, 2, 2, 0]


def test_cases_follow_their_items_into_another_catalogue(split):
    """b is gone and e is new: x has no history left, u's loses b; the catalogue is in another order."""
    cases = split.calibration_examples(catalog("dcba"))
    moved = cases.in_catalog(catalog("caed").frame["item_id"])
    assert (moved.users.tolist(), moved.targets.tolist()) == ([0], [0])
    assert [(history.tolist(), history.dtype) for history in moved.histories] == [([1], np.int32)]
    assert moved.in_catalog(catalog("dcbae").frame["item_id"]).targets.tolist() == [1], "and back"


def test_cases_stay_where_a_catalogue_only_grew(split):
    cases = split.calibration_examples(catalog("dcba"))
    assert cases.in_catalog(catalog("dcbae").frame["item_id"]) is cases
    unknown = split.sequences(catalog("dcba")).cases(VALID)
    assert unknown.in_catalog(catalog("xyz").frame["item_id"]) is unknown


def test_cases_of_removed_targets_are_left_out(split):
    cases = split.calibration_examples(catalog("dcba"))
    assert [cases.item_ids[int(row)] for row in cases.targets] == ["c", "b"]
    moved = cases.where(np.array([False, True])).in_catalog(catalog("dca").frame["item_id"])
    assert not len(moved)


def test_cases(split):
    arrays = split.sequences(catalog("dcba"))
    test, valid = arrays.cases(TEST), arrays.cases(VALID)
    assert test.users.tolist() == valid.users.tolist() == [0, 3]
    assert test.targets.tolist() == [0, 3]
    assert [items.tolist() for items in test.histories] == [[3, 2, 1], [1, 2]]
    assert [items.tolist() for items in valid.histories] == [[3, 2], [1]]
    assert (test.users.dtype, test.targets.dtype, len(test)) == (np.int32, np.int32, 2)


def test_sample_is_seeded_and_keeps_cases_whole():
    rows = [(f"{user:03}", item, time) for user in range(50) for time, item in enumerate("abc")]
    cases = log(*rows).leave_one_out().sequences(catalog("abc")).cases(TEST)
    sample = cases.sample(10, seed=1)
    assert len(sample) == 10
    assert sample.users.tolist() == cases.sample(10, seed=1).users.tolist() != cases.sample(10, seed=2).users.tolist()
    assert all(np.array_equal(h, cases.histories[u]) for u, h in zip(sample.users, sample.histories, strict=True))
    assert cases.sample(50, seed=1) is cases


def test_timestamp_split_cuts_all_users_at_the_same_moments():
    rows = [("a" if time % 2 else "b", "x", time) for time in range(10)] + [
        ("late", "y", 9),
        ("late", "y", 10),
    ]
    split = log(*rows).timestamp_split(valid_share=0.25, test_share=0.25)
    assert split.protocol["cuts"] == [6_000_000, 9_000_000]
    assert split.train.frame["timestamp"].max() == 5_000_000
    assert sorted(split.valid.frame["timestamp"] // 10**6) == [6, 7, 8]
    assert sorted(split.test.frame["timestamp"] // 10**6) == [9, 9, 10]
    cases = split.sequences(catalog("xy")).cases(TEST)
    assert cases.users.tolist() == [0], "a user without a history asks nothing"
    assert len(cases.histories[0]) == 4, "the history holds training and validation events"


@pytest.mark.parametrize(("valid", "test"), [(0, 0.1), (0.5, 0.5), (0.1, -1)])
def test_bad_shares(valid, test):
    with pytest.raises(UserError, match=r"data\.valid_share"):
        log(("a", "x", 1), ("a", "y", 2)).timestamp_split(valid, test)


def test_timestamp_split_needs_times_that_differ():
    untimed = Interactions.from_frame(pl.DataFrame({"user_id": ["a"], "item_id": ["x"]}))
    with pytest.raises(UserError, match=r"no timestamps; use data\.split leave-one-out"):
        untimed.timestamp_split()
    with pytest.raises(UserError, match="part empty"):
        log(("a", "x", 1), ("a", "y", 1), ("b", "x", 1)).timestamp_split()


def test_timestamp_split_cuts_within_a_second():
    rows = [("u", item, f"2024-05-01T12:00:00.{at}00") for at, item in enumerate("abcdefghij")]
    split = log(*rows).timestamp_split(0.2, 0.2)
    assert ["".join(part.frame["item_id"]) for part in (split.train, split.valid, split.test)] == ["abcdef", "gh", "ij"]


def published(*rows) -> Interactions:
    columns = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "part": pl.UInt8}
    return Interactions.from_frame(pl.DataFrame(rows, schema=columns, orient="row"))


def test_given_split_keeps_the_parts(caplog):
    split = given_split(published(("u", "a", 1, 0), ("u", "b", 2, 1), ("u", "c", 3, 2), ("v", "c", 1, 0)))
    assert split.protocol == {"kind": "given", "events": {"train": 2, "valid": 1, "test": 1}}
    assert [part.frame["item_id"].to_list() for part in (split.train, split.valid, split.test)] == [
        ["a", "c"],
        ["b"],
        ["c"],
    ]
    assert not caplog.records


def test_given_split_of_mixed_times_is_said(caplog):
    split = given_split(published(("u", "a", 9, 0), ("u", "b", 2, 1), ("u", "c", 3, 2), ("v", "c", 1, 0)))
    assert split.test.frame["item_id"].to_list() == ["c"]
    assert "for 1 users, an event of a later part is before one of an earlier part" in caplog.text


def test_given_split_says_whose_first_event_is_a_target(caplog):
    split = given_split(published(("u", "a", 1, 0), ("u", "b", 2, 1), ("v", "c", 3, 2), ("u", "c", 4, 2)))
    assert split.sequences(catalog("abc")).cases(TEST).users.tolist() == [0]
    assert "1 users have no training event" in caplog.text


def test_given_split_needs_every_part():
    with pytest.raises(UserError, match="no event of the valid part is left"):
        given_split(published(("u", "a", 1, 0), ("u", "c", 3, 2)))


def test_item_outside_the_catalogue(split):
    with pytest.raises(UserError, match="names 1 items that the catalogue lacks, such as 'd'"):
        split.sequences(catalog("abc"))


events = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 20)), min_size=4, max_size=40
)


@given(events, st.booleans())
def test_no_case_sees_its_future(rows, by_time):
    try:
        split = log(*rows).timestamp_split(0.2, 0.2) if by_time else log(*rows).leave_one_out()
    except UserError:
        return
    arrays = split.sequences(catalog("abc"))
    assert sum(map(len, arrays.train_sequences())) == arrays.train_counts(3).sum() == len(split.train)
    for part in (VALID, TEST):
        cases = arrays.cases(part)
        for user, history, target in zip(cases.users, cases.histories, cases.targets, strict=True):
            start, stop = arrays.offsets[user : user + 2]
            place = start + len(history)
            assert len(history) > 0
            assert arrays.parts[place] == part
            assert (arrays.parts[start:place] < part).all()
            assert arrays.items[place] == target
            assert (np.diff(arrays.parts[start:stop].astype(int)) >= 0).all()
    assert TRAIN == 0


@given(events, st.booleans())
def test_every_event_of_a_part_is_a_case(rows, by_time):
    """All but a user's very first, after all that came before it; the first of each user are the ordinary cases."""
    try:
        split = log(*rows).timestamp_split(0.2, 0.2) if by_time else log(*rows).leave_one_out()
    except UserError:
        return
    arrays = split.sequences(catalog("abc"))
    for part in (VALID, TEST):
        expected = [
            (user, arrays.items[start:at].tolist(), arrays.items[at])
            for user, (start, stop) in enumerate(itertools.pairwise(arrays.offsets))
            for at in range(start + 1, stop)
            if arrays.parts[at] == part
        ]
        cases = arrays.cases(part, every=True)
        found = zip(cases.users, map(np.ndarray.tolist, cases.histories), cases.targets, strict=True)
        assert list(found) == expected
        firsts = np.unique(cases.users, return_index=True)[1]
        after_training = [at for at in firsts if arrays.history(cases.users[at], part).size == len(cases.histories[at])]
        assert arrays.cases(part).targets.tolist() == cases.targets[after_training].tolist()
