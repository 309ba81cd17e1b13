"""Cold-start protocols on logs with known answers, and what must hold of any log under any of them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmrec.data import TEST, TRAIN, VALID, Catalog, DataConfig, Interactions, Prepared, Split, Summary, prepare
from llmrec.data.config import ColdConfig
from llmrec.data.prepare import hold_out
from llmrec.errors import UserError

NATURAL = DataConfig()
HELD_OUT = replace(NATURAL, cold=ColdConfig(items="held-out", share=0.5))


def log(**users: str) -> Interactions:
    """Events of each user, one letter per item, one second after the other."""
    rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items)]
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


def events(split: Split, *parts: int) -> dict[str, str]:
    """User -> items of the parts, in order."""
    frame = split.frame.filter(pl.col("part").is_in(parts)).group_by("user_id", maintain_order=True).agg("item_id")
    return {user: "".join(items) for user, items in frame.iter_rows()}


def catalog(items: str = "abcdefxyz") -> Catalog:
    return Catalog.from_frame(pl.DataFrame({"item_id": list(items), "title": [f"Item {item}" for item in items]}))


def prepared(split: Split, items: str = "abcdefxyz") -> Prepared:
    return Prepared(catalog(items), split, Summary())


def test_natural_leaves_the_split_as_it_is():
    split = log(u="abcd", v="dabc", w="bdax").leave_one_out()
    natural = hold_out(split, NATURAL)
    assert natural.frame.equals(split.frame)
    assert natural.protocol == split.protocol | {
        "regime": "catalogue-known",
        "cold": {"kind": "natural", "share": 0.0, "items": 0},
        "simulated_items": 0,
        "cold_users": 0,
    }
    assert prepared(natural).cold_items is None
    strict = hold_out(split, replace(NATURAL, regime="strict"))
    cold_items = prepared(strict, "xdcba").cold_items
    assert cold_items is not None
    assert cold_items.ids == ["x", "c"], "test and validation targets alone leave an item cold; in catalogue order"


def test_held_out_items_keep_their_test_events_alone():
    split = log(u="aebfx", v="xbaay", w="yxcby", q="xyx", p="xxa").leave_one_out()
    half = hold_out(split, HELD_OUT)  # targets are a, x and y: round(1.5) of them
    assert half.protocol["cold"] == {"kind": "held-out", "share": 0.5, "items": 2}
    one = hold_out(split, replace(HELD_OUT, cold=ColdConfig(items="held-out", share=0.34), seed=2))
    assert one.protocol["cold"]["items"] == 1
    (cold,) = {"a", "x", "y"} - set("".join(events(one, TRAIN, VALID).values()))
    left = {user: items.replace(cold, "") for user, items in events(split, TRAIN, VALID).items()}
    assert events(one, TRAIN, VALID) == {user: items for user, items in left.items() if items}
    assert events(one, TEST) == events(split, TEST) == {"u": "x", "v": "y", "w": "y", "q": "x", "p": "a"}
    assert one.protocol["events"] == {
        name: len("".join(events(one, part).values())) for part, name in enumerate(("train", "valid", "test"))
    }


def test_draws_depend_on_seed_and_ids_alone():
    # 200 users, each with a last item of its own
    users = {f"u{number:03}": ["a", "b", "c", f"t{number:03}"] for number in range(200)}
    rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items)]

    def cold(rows: list[tuple[str, str, int]], seed: int) -> set[str]:
        frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        split = Interactions.from_frame(frame).leave_one_out()
        config = replace(NATURAL, cold=ColdConfig(users=0.1, history=1), seed=seed)
        return set(split.frame["user_id"]) - set(hold_out(split, config).train.frame["user_id"])

    assert cold(rows, 0) == cold(rows[::-1], 0) != cold(rows, 1)
    drawn = np.random.default_rng((0, 0)).permutation(200)[:20]
    assert cold(rows, 0) == {f"u{number:03}" for number in drawn}, "a known answer, whatever polars does"


def test_timestamp_split_with_held_out_items():
    # x comes up in all three parts, y in the last one only
    rows = [(f"u{user}", "abcx"[(user + time) % 4], time) for user in range(8) for time in range(10)]
    rows += [(f"u{user}", "y", 9) for user in range(8)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    split = Interactions.from_frame(frame).timestamp_split(0.2, 0.2)
    natural = hold_out(split, replace(NATURAL, regime="strict"))
    assert natural.frame.equals(split.frame)
    assert prepared(natural, "abcxy").for_training.catalog.ids == list("abcx")
    held = hold_out(split, replace(HELD_OUT, cold=ColdConfig(items="held-out", share=0.4), regime="strict"))
    cold_items = prepared(held, "abcxy").cold_items
    assert cold_items is not None
    assert held.protocol["cold"]["items"] == 2
    assert set(cold_items.ids) == set("abcxy") - set(held.train.frame["item_id"])
    assert len(cold_items.ids) in (2, 3), "the drawn ones, and y wherever it was not drawn"
    assert held.protocol["cuts"] == split.protocol["cuts"]


def test_simulated_items_keep_their_validation_events_alone():
    split = log(u="abcxd", v="bxaxc", w="cxbxa", q="xaxb", p="abx").leave_one_out()
    config = replace(NATURAL, cold=ColdConfig(simulated_share=0.9))  # validation targets are b and x
    simulated = hold_out(split, config)
    assert simulated.protocol["simulated_items"] == 2
    assert events(simulated, TRAIN) == {"u": "ac", "v": "a", "w": "c", "q": "a", "p": "a"}
    assert events(simulated, VALID) == {"u": "x", "v": "x", "w": "x", "q": "x", "p": "b"}
    assert events(simulated, TEST) == {"u": "d", "v": "c", "w": "a"}
    assert not len(simulated.validation_examples(catalog())), "a simulated target is no matter of training"
    assert len(simulated.sequences(catalog()).cases(VALID)) == 5


def test_cold_users_have_a_short_history_and_nothing_to_train_on():
    split = log(u="abcdef", v="abcdef", w="ab", q="abc").leave_one_out()
    users = hold_out(split, replace(NATURAL, cold=ColdConfig(users=0.67, history=3), seed=3))  # 2 of u, v and q
    assert users.protocol["cold_users"] == 2
    cold = sorted(set("uvq") - set(events(users, TRAIN)))
    expected = {"u": ("abc", "d"), "v": ("abc", "d"), "q": ("ab", "c")}
    assert len(cold) == 2
    for user in cold:
        assert (events(users, VALID)[user], events(users, TEST)[user]) == expected[user]
    sequences = users.sequences(catalog())
    assert sorted(sequences.users[row] for row in sequences.cases(TEST).users) == ["q", "u", "v"]
    assert not {sequences.users[row] for row in sequences.cases(VALID).users} & set(cold)
    assert not {sequences.users[row] for row in users.validation_examples(catalog()).users} & set(cold)
    assert not {sequences.users[row] for row in users.calibration_examples(catalog()).users} & set(cold)
    assert events(users, TRAIN)["w"] == "ab", "users without a test event only train"


@pytest.mark.parametrize("history", [1, 2, 5, 9])
def test_any_length_of_a_cold_history(history):
    split = hold_out(
        log(u="abcdef", v="bacdef").leave_one_out(), replace(NATURAL, cold=ColdConfig(users=0.5, history=history))
    )
    (user,) = {"u", "v"} - set(events(split, TRAIN))
    whole = {"u": "abcdef", "v": "bacdef"}[user]
    shown = min(history, 5)
    assert (events(split, VALID)[user], events(split, TEST)[user]) == (whole[:shown], whole[shown])


def test_strict_hides_all_but_trained_items():
    split = hold_out(log(u="abcx", v="bayc", w="cabz").leave_one_out(), replace(NATURAL, regime="strict"))
    full = prepared(split, "zyxcbafed")
    assert full.for_training.catalog.ids == ["c", "b", "a"]
    assert events(full.for_training.split, TRAIN, VALID, TEST) == {"u": "abc", "v": "bac", "w": "cab"}
    assert full.for_training.split.protocol["events"] == {"train": 6, "valid": 2, "test": 1}
    assert full.cold_items is not None
    assert full.cold_items.ids == ["z", "y", "x", "f", "e", "d"]
    assert full.for_training.for_training.catalog.ids == full.for_training.catalog.ids
    assert full.for_training.cold_items is None
    open_to_all = prepared(hold_out(log(u="abcx", v="bayc").leave_one_out(), NATURAL))
    assert open_to_all.for_training is open_to_all


def test_loss_cases_are_those_of_trained_targets():
    split = log(u="abx", v="bay", w="acbz").leave_one_out()
    cases = split.validation_examples(catalog())
    assert [catalog().ids[item] for item in cases.targets] == ["b", "a", "b"]
    cold = log(u="abx", v="ayb").leave_one_out()
    assert len(cold.sequences(catalog()).cases(VALID)) == 2
    assert len(cold.validation_examples(catalog())) == 0
    assert len(cold.calibration_examples(catalog())) == 2, "cold targets are what it is for"


def test_users_who_came_after_training_count_in_validation():
    rows = [
        ("u", "a", 0),
        ("u", "b", 1),
        ("v", "a", 10),
        ("v", "b", 11),
        ("v", "c", 12),
        ("u", "x", 13),
        ("v", "d", 30),
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    split = Interactions.from_frame(frame).timestamp_split(4 / 7, 1 / 7)
    assert split.protocol["events"] == {"train": 2, "valid": 4, "test": 1}
    cases = split.calibration_examples(catalog())
    found = [(case.tolist(), target) for case, target in zip(cases.histories, cases.targets.tolist(), strict=True)]
    assert found == [([0, 1], 6), ([0], 1), ([0, 1], 2)]
    assert split.validation_examples(catalog()).targets.tolist() == [1], "the others were not trained on"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.0}, r"data\.cold\.share 0\.0: expected more than 0.*data\.cold\.items natural"),
        ({"share": 1.0}, r"data\.cold\.share 1\.0: expected at least 0 and below 1"),
        ({"share": float("nan")}, r"data\.cold\.share nan"),
        ({"simulated_share": -0.1}, r"data\.cold\.simulated_share -0\.1: expected at least 0 and below 1"),
        ({"users": 1.0}, r"data\.cold\.users 1\.0: expected at least 0 and below 1"),
        ({"history": 0}, r"data\.cold\.history 0: expected at least 1"),
    ],
)
def test_shares_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        ColdConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"items": "held-out"}, r"data\.cold\.share 0\.05: 2 items are test targets, of which .* none; raise it"),
        ({"simulated_share": 0.1}, r"data\.cold\.simulated_share 0\.1: 2 items are validation targets"),
        ({"users": 0.1}, r"data\.cold\.users 0\.1: 2 users have a test event"),
        ({"users": 0.99}, r"no training event is left after data\.cold\.items, .*data\.cold\.users"),
    ],
)
def test_draws_of_nothing_or_everything(fields, message):
    with pytest.raises(UserError, match=message) as error:
        hold_out(log(u="abc", v="bca").leave_one_out(), replace(NATURAL, cold=ColdConfig(**fields)))
    assert "\n" not in str(error.value)


def test_prepare_applies_and_accounts_for_it():
    config = DataConfig(synthetic_items=300, synthetic_users=400, cold=ColdConfig(items="held-out", users=0.1), seed=3)
    made, again = prepare(config), prepare(config)
    assert made.split.frame.equals(again.split.frame)
    assert made.split.protocol["cold"]["items"] > 0
    assert made.summary.steps[-1].step == "cold items and users set apart"
    assert made.summary.steps[-1].interactions == len(made.split.frame)
    assert made.split.protocol["seed"] == 3
    assert len(made.catalog) == len(prepare(DataConfig(synthetic_items=300, synthetic_users=400, seed=3)).catalog)


logs = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefgh"), st.integers(0, 30)), min_size=15, max_size=80
)
protocols = st.fixed_dictionaries(
    {
        "items": st.sampled_from(["natural", "held-out"]),
        "share": st.sampled_from([0.2, 0.4]),
        "simulated_share": st.sampled_from([0.0, 0.3]),
        "users": st.sampled_from([0.0, 0.3]),
        "history": st.integers(1, 4),
    }
)


Rows = dict[str, list[tuple[str, int]]]
"""User -> item and part of each event."""


def told(split: Split) -> Rows:
    groups = split.frame.group_by("user_id", maintain_order=True).agg("item_id", "part")
    assert all(parts == sorted(parts) for parts in groups["part"].to_list())
    return {user: list(zip(items, parts, strict=True)) for user, items, parts in groups.iter_rows()}


def drawn(ids: set[str], share: float, seed: int, stream: int) -> set[str]:
    order = np.random.default_rng((seed, stream)).permutation(len(ids))
    return {sorted(ids)[place] for place in order[: round(share * len(ids))]}


def targets(rows: Rows, part: int) -> set[str]:
    """What users take first in `part`, if they took anything in an earlier one."""
    firsts = [[item for item, at in events if at == part][:1] for events in rows.values() if events[0][1] < part]
    return {item for first in firsts for item in first}


def only_in(rows: Rows, items: set[str], part: int) -> Rows:
    left = {
        user: [(item, at) for item, at in events if item not in items or at == part] for user, events in rows.items()
    }
    return {user: events for user, events in left.items() if events}


@given(logs, st.booleans(), protocols, st.sampled_from(["catalogue-known", "strict"]), st.integers(0, 3))
def test_nothing_cold_leaks(rows, by_time, fields, regime, seed):
    """Any log, split and protocol against a plain account of them; cold ids are where they may be and nowhere else."""
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    config = replace(NATURAL, cold=ColdConfig(**fields), regime=regime, seed=seed)
    try:
        log = Interactions.from_frame(frame)
        before = log.timestamp_split(0.2, 0.2) if by_time else log.leave_one_out()
        split = hold_out(before, config)
    except UserError:
        assume(False)
    left = told(before)
    users = drawn({user for user, events in left.items() if events[-1][1] == TEST}, config.cold.users, config.seed, 0)
    for user in users:
        items = [item for item, _ in left[user]]
        history = min(config.cold.history, len(items) - 1)
        left[user] = [(item, VALID) for item in items[:history]] + [(items[history], TEST)]
    cold: set[str] = set()
    if config.cold.items == "held-out":
        cold = drawn(targets(left, TEST), config.cold.share, config.seed, TEST)
        left = only_in(left, cold, TEST)
    simulated = drawn(targets(left, VALID), config.cold.simulated_share, config.seed, VALID)
    left = only_in(left, simulated, VALID)
    assert told(split) == left

    assert not cold & set(split.frame.filter(pl.col("part") != TEST)["item_id"])
    assert not simulated & set(split.frame.filter(pl.col("part") != VALID)["item_id"])
    assert not users & set(split.frame.filter(part=TRAIN)["user_id"])
    sequences, ids = split.sequences(catalog("abcdefgh")), "abcdefgh"
    for part in (VALID, TEST):
        for history in sequences.cases(part).histories:
            assert not cold & {ids[item] for item in history}
    trained = set(split.train.frame["item_id"])
    assert {ids[item] for item in split.validation_examples(catalog(ids)).targets} <= trained
    if config.regime == "strict":
        known = prepared(split, ids).for_training
        assert set(known.catalog.ids) == set(known.split.frame["item_id"]) == trained
        assert not (cold | simulated) & trained
