"""The synthetic shop: the same every time, and really ordered as it says."""

import numpy as np
import polars as pl
import pytest

from llmrec.collaborative.base import ranks_from_scores
from llmrec.collaborative.counting import Markov
from llmrec.data.sequences import TEST
from llmrec.data.synthetic import JUMP, MAIN_SUCCESSOR, SyntheticShop, synthetic
from llmrec.errors import UserError


@pytest.fixture(scope="module")
def shop():
    return SyntheticShop()


@pytest.fixture(scope="module")
def steps(shop):
    """Catalogue rows of each event and the one after it: int64 [2, pairs]."""
    rows = shop.interactions.frame["item_id"].replace_strict(shop.catalog.index).to_numpy()
    users = shop.interactions.frame["user_id"].to_numpy()
    together = users[:-1] == users[1:]
    return np.stack([rows[:-1][together], rows[1:][together]])


def test_the_same_seed_gives_the_same_shop():
    catalog, log = synthetic(n_items=300, n_users=50, seed=3)
    again, log_again = synthetic(n_items=300, n_users=50, seed=3)
    other, _ = synthetic(n_items=300, n_users=50, seed=4)
    assert catalog.frame.equals(again.frame)
    assert log.frame.equals(log_again.frame)
    assert not catalog.frame.equals(other.frame)


@pytest.mark.parametrize("items", [50, 99, 250, 1000])
def test_sizes_are_as_asked(items):
    catalog, log = synthetic(n_items=items, n_users=30)
    assert len(catalog) == items
    assert log.frame["user_id"].n_unique() == 30
    assert catalog.frame["title"].n_unique() == items


@pytest.mark.parametrize(("items", "users"), [(49, 10), (50_001, 10), (100, 0)])
def test_sizes_out_of_range_are_refused(items, users):
    with pytest.raises(UserError, match="expected"):
        SyntheticShop(items, users)


def test_texts_are_complete_and_titles_unique(shop):
    frame = shop.catalog.frame
    assert frame["title"].n_unique() == len(frame)
    assert all(frame[name].str.len_chars().min() > 0 for name in frame.columns)
    assert not frame["description"].str.contains(r"[{}]|  ").any()
    named = frame.select(
        pl.col("title").str.starts_with(pl.col("brand")) & pl.col("title").str.ends_with(pl.col("color"))
    )
    assert named.to_series().all()
    assert not shop.interactions.frame["review"].str.contains(r"[{}]").any()


def test_users_have_six_to_twelve_events_and_never_repeat_one(shop):
    frame = shop.interactions.frame
    per_user = frame.group_by("user_id").agg(pl.len().alias("events"), pl.col("item_id").n_unique().alias("items"))
    assert per_user["events"].min() >= 6
    assert per_user["events"].max() <= 12
    assert (per_user["events"] == per_user["items"]).all()
    assert frame["rating"].is_between(1, 5).all()


def test_times_grow_with_the_order_of_purchase(shop):
    gaps = shop.interactions.frame.select(pl.col("timestamp").diff().over("user_id").drop_nulls())
    assert gaps.to_series().min() > 0


def test_nearly_all_items_have_five_events(shop):
    counts = shop.interactions.frame["item_id"].value_counts()["count"]
    assert (counts >= 5).sum() >= 0.9 * len(shop.catalog)


def test_the_log_follows_the_successor_graph_at_the_stated_rates(shop, steps):
    before, after = shop.categories[steps]
    first, second = (shop.successors[before] == after[:, None]).mean(axis=0)
    # Jumps land on a successor by chance now and then, hence the tolerance.
    assert first == pytest.approx((1 - JUMP) * MAIN_SUCCESSOR, abs=0.02)
    assert second == pytest.approx((1 - JUMP) * (1 - MAIN_SUCCESSOR), abs=0.02)


def test_buyers_stay_with_their_brand(shop, steps):
    before, after = steps
    brands = shop.catalog.frame["brand"].to_numpy()
    main = shop.successors[shop.categories[before], 0] == shop.categories[after]
    assert (brands[before] == brands[after])[main].mean() > 0.75


def test_probabilities_are_a_distribution_that_leaves_out_the_history(shop):
    histories = [np.array([5]), np.array([7, 9, 11, 2])]
    probabilities = shop.next_item_probabilities(histories)
    assert probabilities.shape == (2, len(shop.catalog))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities[1, histories[1]].max() < 1e-6
    np.testing.assert_allclose(shop.next_item_probabilities(histories[1:]), probabilities[1:])


def test_probabilities_are_calibrated(shop):
    """The stated probability of the most likely ten items is how often one of them comes next."""
    cases = shop.interactions.leave_one_out().sequences(shop.catalog).cases(TEST)
    probabilities = shop.next_item_probabilities(cases.histories)
    best = np.argsort(-probabilities, axis=1)[:, :10]
    stated = np.take_along_axis(probabilities, best, axis=1).sum(axis=1).mean()
    observed = (best == cases.targets[:, None]).any(axis=1).mean()
    assert observed == pytest.approx(stated, abs=0.03)
    assert observed > 0.44


def test_counting_item_pairs_stays_far_below_the_oracle(shop):
    """The gap is what reading the text can win."""
    sequences = shop.interactions.leave_one_out().sequences(shop.catalog)
    cases = sequences.cases(TEST).sample(1000, seed=0)
    markov = Markov().fit(sequences.train_sequences(), len(shop.catalog))
    probabilities = shop.next_item_probabilities(cases.histories)
    oracle_ranks = ranks_from_scores(probabilities, cases.targets, cases.histories)
    assert (oracle_ranks <= 10).mean() > 2.5 * (markov.ranks(cases, filter_seen=True) <= 10).mean()
