"""Experts without one user's events: against experts that were fitted without this user."""

from pathlib import Path

import numpy as np
import pytest

from llmrec.collaborative.base import popularity
from llmrec.collaborative.config import ExpertName, ExpertsConfig, SASRecExpertConfig
from llmrec.collaborative.counting import DecayedMarkov, SmoothedMarkov, centred
from llmrec.collaborative.experts import Experts
from llmrec.collaborative.folds import Folds
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.fusion import FusionWeights
from llmrec.collaborative.held_out import HeldOutExperts
from llmrec.data.sequences import EvalExamples

ITEMS = 30
NAMES: list[ExpertName] = ["popularity", "decayed-markov", "smoothed-markov", "item-knn", "text", "last-text"]
NOBODY = EvalExamples(np.empty(0, np.int32), [], np.empty(0, np.int32))
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(ITEMS, 6)).astype(np.float32)


def fused(names: list[ExpertName], sequences: list[np.ndarray], vectors: np.ndarray = VECTORS) -> FusedExperts:
    """Experts with weights of their own for warm and cold items, without any training of the weights."""
    config = ExpertsConfig(models=names)
    experts = Experts(config, vectors, NOBODY).fit(sequences, len(vectors))
    made = FusedExperts(config, experts)
    made.popularity = popularity(experts.counts)
    weights = [1.0 + 0.3 * place for place in range(len(names))]
    made.weights = FusionWeights(weights, [2 * weight for weight in weights], -0.7, {}, names)
    return made


def fitted_without(user: int, names: list[ExpertName], sequences: list[np.ndarray]) -> FusedExperts:
    """Experts that never saw a user; their text vectors and text neighbours are those of the whole log."""
    whole = fused(names, sequences)
    made = fused(names, [each if other != user else each[:0] for other, each in enumerate(sequences)])
    unit = centred(VECTORS, np.flatnonzero(whole.experts.counts))
    for name, system in made.experts.systems.items():
        if isinstance(system, SmoothedMarkov):
            system.neighbours = whole.experts.systems[name].neighbours  # type: ignore[attr-defined]
        elif not isinstance(system, DecayedMarkov) and name != "item-knn":
            system.unit = unit  # type: ignore[attr-defined]
    return made


def log() -> list[np.ndarray]:
    """Some items repeat within a user, users 0 and 4 have an item of their own, one user has no event."""
    sequences = [RNG.integers(0, ITEMS - 4, RNG.integers(4, 9)) for _ in range(25)]
    sequences[7] = np.empty(0, np.int64)
    sequences[0] = np.array([3, 5, ITEMS - 1, 3, 8])
    sequences[4] = np.array([ITEMS - 2, 1, 2])
    return sequences


@pytest.mark.parametrize("names", [[name] for name in NAMES] + [NAMES], ids=lambda names: "+".join(names))
def test_scores_are_those_of_experts_that_never_saw_the_user(names: list[ExpertName]) -> None:
    sequences = log()
    users = np.array([0, 0, 0, 4, 11, 11, 23])
    histories = [sequences[user][: 1 + place] for place, user in enumerate([0, 0, 0, 4, 11, 11, 23])]
    found = HeldOutExperts(fused(names, sequences), sequences).scores(users, histories)
    seen = fused(names, sequences)
    for row, (user, history) in enumerate(zip(users, histories, strict=True)):
        without = fitted_without(int(user), names, sequences)
        expected = without.fused(without.values([history]))[0]
        np.testing.assert_allclose(found[row], expected, atol=3e-4)
        if names[0] not in ("text", "last-text"):
            assert np.abs(found[row] - seen.fused(seen.values([history]))[0]).max() > 1e-3


def test_a_chosen_part_of_the_catalogue() -> None:
    sequences = log()
    rows = np.setdiff1d(np.arange(ITEMS), np.unique(np.concatenate(sequences)))
    kept = np.setdiff1d(np.arange(ITEMS), rows[:1])[::-1]
    place = {item: row for row, item in enumerate(kept.tolist())}
    moved = [np.array([place[item] for item in sequence.tolist()], np.int64) for sequence in sequences]
    whole, users = fused(NAMES, sequences), np.array([2, 4])
    few = HeldOutExperts(whole.of_rows(kept), moved).scores(users, [moved[user][:2] for user in users])
    every = HeldOutExperts(whole, sequences).scores(users, [sequences[user][:2] for user in users])
    np.testing.assert_array_equal(few, every[:, kept])


@pytest.mark.parametrize("name", ["decayed-markov", "smoothed-markov", "item-knn"])
def test_where_each_transition_occurs_once_nothing_is_known(name: ExpertName) -> None:
    """The experts as they are know each next item; held out, they tell no two items apart."""
    walk = RNG.permutation(ITEMS)
    sequences = [walk[start : start + 3] for start in range(0, ITEMS, 3)]
    users, histories = np.arange(len(sequences)), [sequence[:2] for sequence in sequences]
    bought = [*sequences, *walk[:, None]]  # and each item once by itself, so that none becomes cold
    made = fused([name], bought, np.eye(ITEMS) if name == "smoothed-markov" else VECTORS)
    seen = made.fused(made.values(histories))
    seen[np.repeat(users, 2), np.concatenate(histories)] = -np.inf
    assert (seen.argmax(axis=1) == [sequence[2] for sequence in sequences]).all()
    found = HeldOutExperts(made, bought).scores(users, histories)
    np.testing.assert_allclose(found, np.full_like(found, np.log(1e-3)), atol=1e-3)


def test_sequences_of_another_log_are_refused() -> None:
    sequences = log()
    with pytest.raises(ValueError, match="fitted on other sequences"):
        HeldOutExperts(fused(["popularity"], sequences), sequences[1:])


SMALL = SASRecExpertConfig(hidden_size=8, layers=1, heads=1, max_history=6, epochs=2, batch_size=16, start="random")


def cases(sequences: list[np.ndarray]) -> EvalExamples:
    """Each history as it is, with a random item after it."""
    kept = [sequence for sequence in sequences if len(sequence)]
    return EvalExamples(np.arange(len(kept)), kept, RNG.integers(0, ITEMS - 4, len(kept)))


def test_a_transformer_that_teaches_a_user_never_saw_the_user(tmp_path: Path) -> None:
    """Two folds: each user's values are those of a fit on the other users; a second call takes them from the files."""
    sequences = log()
    config = ExpertsConfig(models=["sasrec"], sasrec=SMALL)
    made = FusedExperts(config, Experts(config, None, cases(sequences)))
    made.experts.fit(sequences, ITEMS)
    made.weights = FusionWeights([0.5], [0.5], 0.0, {}, made.names)
    arguments = ("sasrec", made, sequences, cases(sequences), 2, tmp_path)
    users, histories = np.array([0, 3, 4]), [sequences[user][:2] for user in (0, 3, 4)]
    found = Folds.fit(*arguments).values(users, histories)
    again = Folds.fit(*arguments[:3], cases([]), *arguments[4:]).values(users, histories)
    np.testing.assert_array_equal(again, found)
    for row, user in enumerate(users):
        changed = [sequence[::-1] if other % 2 == user % 2 else sequence for other, sequence in enumerate(sequences)]
        other_folder = tmp_path / str(user)
        other_folder.mkdir()
        unmoved = Folds.fit("sasrec", made, changed, arguments[3], 2, other_folder).values(users, histories)
        np.testing.assert_array_equal(unmoved[row], found[row])
        assert np.abs(unmoved - found).max() > 1e-3
    assert np.isfinite(found).all(), "also for items that only the user's own fold has"
    held_out = HeldOutExperts(made, sequences, {"sasrec": Folds.fit(*arguments)})
    warm = made.experts.counts > 1  # no item of one event, which may become cold
    np.testing.assert_allclose(held_out.scores(users, histories)[:, warm], 0.5 * found[:, warm], rtol=1e-6)
