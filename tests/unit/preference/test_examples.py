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
    """`feedback(rows)`: the examples of a table of (user_id, item_id, liked), perhaps with a position."""

    def read(rows: list[tuple[object, ...]]) -> PreferenceExamples:
        path = tmp_path / "feedback.csv"
        columns = ["user_id", "item_id", "liked", "position"][: len(rows[0])]
        pl.DataFrame(rows, schema=columns, orient="row").write_csv(path)
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


def test_with_positions_only_the_disliked_items_above_count(feedback: Callable[..., PreferenceExamples]):
    """u liked c between d and e. v liked b at the top, beside the disliked e, and a below it."""
    rows = [("u", "d", 0, 2), ("u", "c", 1, 3), ("u", "e", 0, 4), ("v", "e", 0, 1), ("v", "a", 1, 2), ("v", "b", 1, 1)]
    assert triples(feedback(rows)) == [([0, 1], 2, [3]), ([2], 0, [4]), ([2], 1, [])]


def test_rows_of_unknown_users_are_counted(feedback: Callable[..., PreferenceExamples], caplog):
    """w has no history; x is not in the log."""
    assert triples(feedback([("u", "c", 1), ("w", "c", 1), ("x", "d", 0)])) == [([0, 1], 2, [])]
    assert "2 of 3 rows are of users without training events" in caplog.text


def test_an_item_that_was_liked_once_is_not_disliked(feedback: Callable[..., PreferenceExamples]):
    assert triples(feedback([("u", "c", 0), ("u", "c", 1), ("u", "d", 0)])) == [([0, 1], 2, [3])]


def test_liked_may_be_true_or_false(feedback: Callable[..., PreferenceExamples], tmp_path: Path):
    numbers = triples(feedback([("u", "c", 1), ("u", "d", 0)]))
    assert triples(feedback([("u", "c", "True"), ("u", "d", "FALSE")])) == numbers
    table = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["c", "d"], "liked": [True, False]})
    table.write_parquet(tmp_path / "feedback.parquet")
    assert triples(feedback_examples(tmp_path / "feedback.parquet", USERS, SEQUENCES, CATALOG)) == numbers


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("u", "c", 2)], r"row 1 has liked '?2'?, expected 0 or 1"),
        ([("u", "c", 1), ("u", "d", "yes")], r"row 2 has liked 'yes', expected 0 or 1"),
        ([("u", "c", "nan")], r"row 1 has liked 'nan', expected 0 or 1"),
        ([("u", "c", "")], r"row 1 has liked .*, expected 0 or 1"),
        ([("u", "c", 1, 1), ("u", "d", 0, "inf")], r"row 2 has position 'inf', expected a number"),
        ([("u", "c", 1, 1), ("u", "d", 0, "top")], r"row 2 has position 'top', expected a number"),
        ([("u", "", 1)], r"row 1 has no item_id"),
        ([("", "c", 1)], r"row 1 has no user_id"),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"preference\.feedback: .*feedback.csv: expected a file, found nothing there"),
        ("", "no line of column names"),
        ("user_id,item_id,liked\n", "no rows below the names of the columns"),
        ("u,c,1\nu,d,0\n", "the first line seems to be a row"),
    ],
)
def test_a_file_without_content(text: str | None, said: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "feedback.csv").write_text(text)
    with pytest.raises(UserError, match=said):
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
