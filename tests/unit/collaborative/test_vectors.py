import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

from llmrec.collaborative.behaviour import Behaviour, positive_information
from llmrec.data import Interactions
from llmrec.embed import collaborative_vectors
from llmrec.errors import UserError

GROUPS, SIZE = 4, 8
ITEMS = [f"i{row}" for row in range(GROUPS * SIZE)]


def shopping(seed: int, users: int = 120, noise: float = 0.1) -> Interactions:
    """Users who stay within one of four groups of eight items, but for some noise."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(rng.integers(GROUPS, size=users), 8)
    wandering = rng.random(len(groups)) < noise
    groups[wandering] = rng.integers(GROUPS, size=wandering.sum())
    items = groups * SIZE + rng.integers(SIZE, size=len(groups))
    names = [f"u{user}" for user in np.repeat(np.arange(users), 8)]
    return Interactions.from_frame(pl.DataFrame({"user_id": names, "item_id": [ITEMS[item] for item in items]}))


def behaviour_of(pairs: np.ndarray) -> Behaviour:
    return Behaviour(pairs.sum(axis=1), csr_array(pairs))


def test_information_of_every_pair():
    pairs = np.array([[0, 3, 1, 0], [3, 0, 1, 0], [1, 1, 0, 6], [0, 0, 6, 0]])
    shares, expected = pairs.sum(axis=1) / pairs.sum(), np.zeros((4, 4))
    for one in range(4):
        for other in range(4):
            if pairs[one, other]:
                ratio = pairs[one, other] / pairs.sum() / (shares[one] * shares[other])
                expected[one, other] = max(0, np.log(ratio))
    assert (expected[0, 2], expected[0, 1] > 0) == (0, True)  # both sides of the cut are there
    np.testing.assert_allclose(positive_information(behaviour_of(pairs)).toarray(), expected, atol=1e-12)


def test_planted_communities_are_found():
    vectors = collaborative_vectors(Behaviour.from_log(shopping(0), ITEMS), dim=6, seed=0)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    groups = np.arange(len(ITEMS)) // SIZE
    nearest = cosines.argsort(axis=1)[:, -3:]
    assert (groups[nearest] == groups[:, None]).mean() > 0.9


def test_equal_seeds_equal_vectors():
    behaviour = Behaviour.from_log(shopping(1), ITEMS)
    np.testing.assert_array_equal(collaborative_vectors(behaviour, 5, 3), collaborative_vectors(behaviour, 5, 3))


def test_only_training_events_are_used():
    def trained(log: Interactions) -> np.ndarray:
        return collaborative_vectors(Behaviour.from_log(log, ITEMS), 5, 0)

    split = shopping(2).leave_one_out()
    last = split.frame["part"] > 0
    elsewhere = split.frame.with_columns(
        pl.when(last).then(pl.col("item_id").reverse()).otherwise(pl.col("item_id")).alias("item_id")
    )
    changed = Interactions(elsewhere.drop("part")).leave_one_out()
    np.testing.assert_array_equal(trained(split.train), trained(changed.train))
    whole, whole_changed = Interactions(split.frame.drop("part")), Interactions(elsewhere.drop("part"))
    assert not np.array_equal(trained(whole), trained(whole_changed))


def test_items_without_company_get_zeros():
    pairs = np.zeros((6, 6), np.int64)
    pairs[:3, :3] = 2 - 2 * np.eye(3, dtype=np.int64)
    pairs[3, 4] = pairs[4, 3] = 1
    vectors = collaborative_vectors(behaviour_of(pairs), 4, 0)
    assert not vectors[5].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[:5], axis=1), 1, rtol=1e-5)


def test_company_outside_the_leading_dimensions_gives_zeros_not_noise():
    pairs = np.zeros((6, 6), np.int64)
    pairs[:4, :4] = 1 - np.eye(4, dtype=np.int64)
    pairs[4, 5] = pairs[5, 4] = 8
    vectors = collaborative_vectors(behaviour_of(pairs), 1, 0)
    lengths = np.linalg.norm(vectors, axis=1)
    assert sorted(set(lengths.round(5))) == [0, 1]


def test_a_log_without_pairs_gives_zeros():
    assert not collaborative_vectors(behaviour_of(np.zeros((5, 5), np.int64)), 2, 0).any()


@pytest.mark.parametrize("dim", [4, 5])
def test_too_many_dimensions_are_refused(dim):
    with pytest.raises(UserError, match=rf"latent {dim}: 4 items have .* of fewer dimensions; set it below 4"):
        collaborative_vectors(behaviour_of(np.ones((4, 4), np.int64)), dim, 0)
