"""What an alignment learns from, by hand: a log, a file of feedback, and random negatives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.preference.examples import PreferenceExamples, easy_negatives, feedback_examples, training_examples

CATALOG = Catalog.from_frame(pl.DataFrame({"item_id": list("abcde"), "title": list("abcde")}))
USERS = ["u", "v", "w"]
SEQUENCES = [np.array([0, 1]), np.array([2]), np.array([], np.int64)]


@pytest.fixture
def feedback(tmp_path: Path) -> Callable[..., PreferenceExamples]:
    """`feedback(rows)`: the examples of a table of (user_id, item_id, liked)."""

    def read(rows: list[tuple[object, object, object]]) -> PreferenceExamples:
        path = tmp_path / "feedback.csv"
        pl.DataFrame(rows, schema=["user_id", "item_id", "liked"], orient="row").write_csv(path)
        return feedback_examples(path, USERS, SEQUENCES, CATALOG)

    return read


def triples(examples: PreferenceExamples) -> list[tuple[list[int], int, list[int]]]:
    parts = zip(examples.histories, examples.preferred, examples.disliked, strict=True)
    return [(history.tolist(), int(item), bad.tolist()) for history, item, bad in parts]


def test_each_event_after_a_history_unless_it_repeats_an_item():
    examples = training_examples([np.array([3, 1, 3, 2]), np.array([4]), np.array([], np.int64)])
    assert triples(examples) == [([3], 1, []), ([3, 1, 3], 2, [])]


def test_liked_items_against_those_that_the_same_user_disliked(feedback: Callable[..., PreferenceExamples]):
    """Left out: a liked item of the history (b), a user without a history (w), and one who liked nothing."""
    rows = [("u", "c", 1), ("u", "b", 1), ("u", "e", 0), ("u", "d", 0), ("v", "a", 1), ("w", "c", 1), ("x", "a", 0)]
    assert triples(feedback(rows)) == [([0, 1], 2, [3, 4]), ([2], 0, [])]


def test_an_item_that_was_liked_once_is_not_disliked(feedback: Callable[..., PreferenceExamples]):
    assert triples(feedback([("u", "c", 0), ("u", "c", 1), ("u", "d", 0)])) == [([0, 1], 2, [3])]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("u", "c", 2)], r"row 1 has liked '?2'?, expected 0 or 1"),
        ([("u", "c", 1), ("u", "d", "yes")], r"row 2 has liked 'yes', expected 0 or 1"),
        ([("u", "nope", 1)], r"the catalogue has no item 'nope'"),
        ([("u", "a", 1), ("w", "c", 1)], r"no user with a history liked an item outside of it"),
    ],
)
def test_wrong_feedback(rows: list, said: str, feedback: Callable[..., PreferenceExamples]):
    with pytest.raises(UserError, match=said) as caught:
        feedback([tuple(map(str, row)) for row in rows])
    assert str(caught.value).startswith("preference.feedback ")


def test_a_column_is_missing(tmp_path: Path):
    (tmp_path / "feedback.csv").write_text("user_id,item_id\nu,c\n")
    with pytest.raises(UserError, match="no column 'liked'"):
        feedback_examples(tmp_path / "feedback.csv", USERS, SEQUENCES, CATALOG)


def test_a_sample_keeps_the_order():
    examples = training_examples([np.arange(40)])
    sample = examples.sample(10, seed=1)
    assert len(sample) == 10
    assert (np.diff(sample.preferred) > 0).all()
    assert all(history == list(range(item)) for history, item, _ in triples(sample))
    assert len(examples.sample(100, seed=1)) == len(examples) == 39


def test_easy_negatives_follow_the_training_events():
    """Items 0 to 3 have 1, 2, 3 and 0 events; item 1 is shown."""
    found = easy_negatives([np.array([1])] * 4000, np.array([1, 2, 3, 0]), 1, seed=0)[:, 0]
    assert set(found.tolist()) == {0, 2}
    assert (found == 2).mean() == pytest.approx(3 / 4, abs=0.03)


def test_easy_negatives_differ_and_end_with_none():
    found = easy_negatives([np.array([0]), np.array([], np.int64)], np.array([5, 5, 5]), 3, seed=0)
    assert sorted(found[0].tolist()) == [-1, 1, 2]
    assert sorted(found[1].tolist()) == [0, 1, 2]
