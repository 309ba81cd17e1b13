"""SASRec on planted sequences, and its ranking with a quota of cold items on lists merged by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import SUMS

from llmrec.collaborative.sasrec import SASRec
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig, SASRecConfig
from llmrec.evaluation.systems import SASRecKNN, fit_baselines

ITEMS = 12
SMALL = SASRecConfig(hidden_size=16, layers=1, dropout=0.1, max_history=6, batch_size=16, learning_rate=0.02, epochs=30)


def walk(start, length, step):
    """Items in a cycle of ten, of which 10 and 11 are no part."""
    return ((start + step * np.arange(length)) % 10).astype(np.int32)


def cases(length):
    histories = [walk(start, length, 1) for start in range(10)]
    return EvalExamples(np.arange(10), histories, np.array([walk(start, length + 1, 1)[-1] for start in range(10)]))


@pytest.fixture(scope="module")
def system():
    train = [walk(start, 4 + start % 3, 1) for start in range(10)] * 4
    return SASRec(SMALL, cases(3), seed=3).fit(train, ITEMS)


def test_it_learns_a_cycle(system):
    assert system.name == "sasrec"
    assert system.ranks(cases(3), filter_seen=True).tolist() == [1] * 10


def test_it_reads_more_than_the_last_item():
    """Users who begin with item 10 walk up, those with 11 down, so that every item has two successors."""
    train = [np.array([begin, *walk(start, 4, step)]) for start in range(10) for begin, step in ((10, 1), (11, -1))]
    histories = [sequence[:2] for sequence in train]
    asked = EvalExamples(np.arange(20), histories, np.array([sequence[2] for sequence in train]))
    config = SASRecConfig(hidden_size=32, dropout=0.1, max_history=6, batch_size=16, learning_rate=3e-3, patience=20)
    system = SASRec(config, asked).fit(train * 4, ITEMS)
    assert system.ranks(asked, filter_seen=True).tolist() == [1] * 20


def test_items_without_training_events_cannot_be_recommended(system):
    scores = system.scores([walk(0, 3, 1), walk(4, 2, 1)])
    assert scores.shape == (2, ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores[:, :10]).all()
    assert np.isneginf(scores[:, 10:]).all()
    unknown = EvalExamples(np.array([0]), [walk(0, 3, 1)], np.array([11]))
    assert system.ranks(unknown, filter_seen=True).tolist() == [np.inf]


def test_items_without_training_events_are_passed_over_in_histories(system):
    plain, strewn = system.scores([np.array([2, 3]), np.array([10, 2, 11, 3, 10])])
    assert strewn == pytest.approx(plain, abs=SUMS)


def test_a_history_of_unknown_items_gets_what_is_popular():
    train = [walk(0, 5, 1), walk(3, 4, 1), walk(3, 3, 1)]
    few = SASRec(SASRecConfig(hidden_size=4, epochs=1), cases(2)).fit(train, ITEMS)
    (scores,) = few.scores([np.array([11, 10])])
    assert scores[few.items].tolist() == few.popularity[few.items].tolist()
    assert np.isneginf(scores[10:]).all()


def test_scores_do_not_depend_on_the_company(system):
    histories = [walk(1, 9, 1), walk(5, 1, 1), np.array([11]), walk(7, 3, 1)]
    together = system.scores(histories)
    alone = np.concatenate([system.scores([history]) for history in histories])
    assert together[:, :10] == pytest.approx(alone[:, :10], abs=0.05 if system.dtype == torch.bfloat16 else 1e-5)
    assert together.argsort(axis=1)[:, -1].tolist() == alone.argsort(axis=1)[:, -1].tolist()


def test_only_the_last_items_of_a_long_history_count(system):
    long, short = (system.scores([history]) for history in (np.append(walk(8, 20, -1), walk(0, 6, 1)), walk(0, 6, 1)))
    assert long.tolist() == short.tolist(), "to the last bit: both are the whole batch, so their shapes are the same"


def test_the_same_seed_is_the_same_model_and_the_global_generator_is_left_alone():
    train, config = [walk(start, 5, 1) for start in range(10)], SASRecConfig(hidden_size=8, epochs=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (
        SASRec(config, cases(3), seed=s).fit(train, ITEMS).scores([walk(0, 3, 1)]) for s in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert first.tolist() == second.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize(("least", "epochs"), [(0, 5), (4, 6)])
def test_training_stops_when_validation_rises_no_more(monkeypatch, least, epochs):
    """With validation ranks that are best after the second epoch, of one step, that epoch's weights come back."""
    monkeypatch.setattr("llmrec.collaborative.network.PATIENCE", least)
    system = SASRec(SASRecConfig(hidden_size=4, epochs=50, patience=3), cases(3))
    figures, states = iter([5, 2, 2, 3, 4, 5, 1]), []

    def ranks(self, asked, filter_seen):
        states.append({name: value.clone() for name, value in self.network.state_dict().items()})
        return np.full(len(asked), next(figures))

    monkeypatch.setattr(SASRec, "ranks", ranks)
    system.fit([walk(start, 5, 1) for start in range(10)], ITEMS)
    assert len(states) == epochs
    kept = system.network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in states[1].items())


def test_embeddings_start_from_the_texts():
    """Before the first step, items with one text have one vector, and the spread is that of a random start."""
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 12))
    vectors[3] = vectors[7]
    system = SASRec(replace(SMALL, start="text", hidden_size=4), cases(3), vectors=vectors)
    system.items, system.places = np.arange(ITEMS), np.arange(ITEMS)
    system.network = system._make_network(ITEMS)
    before = system.network.items.weight.detach().clone()
    system._start_from_texts(system.network)
    found = system.network.items.weight.detach()[:ITEMS]
    assert torch.allclose(found[3], found[7], atol=1e-6)
    assert found.std().item() == pytest.approx(0.02, rel=0.05)
    centred = vectors - vectors.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)
    expected = np.abs(components[0][:, :4] * components[1][:4])
    assert np.allclose(np.abs(found.numpy()) / np.abs(found.numpy()).max(), expected / expected.max(), atol=1e-4)
    assert not torch.allclose(before[:ITEMS], found)
    with pytest.raises(UserError, match=r"evaluate\.sasrec\.start text: needs the vectors"):
        SASRec(replace(SMALL, start="text"), cases(3)).fit([walk(start, 5, 1) for start in range(10)], ITEMS)


@pytest.mark.parametrize(
    ("train", "validation", "missing"),
    [
        ([walk(0, 1, 1), walk(1, 1, 1)], cases(3), "two events of one user"),
        ([walk(0, 2, 1)], cases(5).where(np.zeros(10, bool)), "validation case"),
        ([walk(0, 2, 1)], EvalExamples(np.array([0]), [walk(0, 1, 1)], np.array([7])), "validation case"),
    ],
)
def test_too_little_to_train_on_is_said(train, validation, missing):
    with pytest.raises(UserError, match=rf"sasrec: the log has no {missing}"):
        SASRec(SMALL, validation).fit(train, ITEMS)


class Given:
    """Scores what it was given, whatever the history."""

    def __init__(self, *scores):
        self.given = np.array(scores, np.float32)

    def scores(self, histories):
        return np.tile(self.given, (len(histories), 1))


NO = -np.inf
WARM, COLD = Given(9, 8, 7, 6, 5, NO, NO, NO), Given(0, 0, 0, 0, 0, 0.1, 0.3, 0.2)


def places(quota, history=(), depth=8, among=None, warm=WARM, cold=COLD, filter_seen=True):
    """Where each of the eight items is in the merged ranking of one history."""
    merged = SASRecKNN(warm, cold, np.array([5, 6, 7]), quota, depth)
    asked = np.arange(8) if among is None else among
    everyone = EvalExamples(np.zeros(len(asked)), [np.array(history, int)] * len(asked), asked)
    return merged.ranks(everyone, filter_seen, among).tolist()


def test_every_second_slot_is_the_next_cold_item():
    # 0 6 1 7 2 5 3 4
    assert places(0.5) == [1, 3, 5, 7, 8, 6, 2, 4]


@pytest.mark.parametrize("quota", [0.3, 0.5])
def test_the_merged_list_has_its_items_where_they_rank(quota):
    merged = SASRecKNN(WARM, COLD, np.array([5, 6, 7]), quota, 8)
    everyone = EvalExamples(np.zeros(8), [np.empty(0, int)] * 8, np.arange(8))
    found = merged.answers(everyone, True, listed=6)
    ranked = found.items[0].tolist()
    assert all((row == ranked).all() for row in found.items)
    assert [found.ranks[item] for item in ranked] == [1, 2, 3, 4, 5, 6]


def test_a_smaller_quota_and_a_short_list():
    # 0 1 2 6 3: floor(.3 s) rises at 4
    assert places(0.3, depth=5) == [1, 2, 3, 5, np.inf, np.inf, 4, np.inf]


def test_seen_items_leave_their_places_except_to_targets():
    # Without 0 and 6: 1 7 2 5 3 4; a target comes back where it was.
    assert places(0.5, history=[0, 6]) == [1, 1, 3, 5, 6, 4, 2, 2]
    assert places(0.5, history=[0, 6], filter_seen=False) == places(0.5)


def test_among_cold_items_they_stand_in_their_own_order():
    assert places(0.1, among=np.array([5, 6, 7])) == [3, 1, 2]


def test_ties_count_against_the_target():
    # Items 5, 6 and 7 tie: each would be the last of them, in slot 6; so would 0 to 2 be in slot 5.
    tied = places(0.5, warm=Given(9, 9, 9, 6, 5, NO, NO, NO), cold=Given(0, 0, 0, 0, 0, 1, 1, 1))
    assert tied == [5, 5, 5, 7, 8, 6, 6, 6]


def test_all_baselines_come_in_their_order_and_sasrec_is_trained_once(monkeypatch):
    trained, learn = [], SASRec._learn
    monkeypatch.setattr(SASRec, "_learn", lambda self, *given: trained.append(self.config) or learn(self, *given))
    config = EvaluateConfig(
        baselines=["sasrec-knn", "markov", "sasrec", "text-knn"],
        quotas=[0.1, 0.25],
        sasrec=SASRecConfig(hidden_size=4, epochs=1),
    )
    train = [walk(start, 5, 1) for start in range(10)]
    systems = fit_baselines(config, train, ITEMS, cases(3), np.eye(ITEMS))
    assert [system.name for system in systems] == [
        "sasrec-knn@10%",
        "sasrec-knn@25%",
        "markov",
        "sasrec",
        "text-knn",
    ]
    assert trained == [config.sasrec]
    cold = EvalExamples(np.array([0]), [walk(0, 3, 1)], np.array([11]))
    assert [system.ranks(cold, True).item() for system in systems[:2]] == [
        9,
        8,
    ]  # both cold items are like nothing; 7 warm ones are left


@pytest.mark.parametrize("name", ["text-knn", "sasrec-knn"])
def test_text_baselines_need_vectors(name):
    config = EvaluateConfig(baselines=[name], sasrec=SASRecConfig(hidden_size=4, epochs=1))
    with pytest.raises(UserError, match=rf"evaluate\.baselines {name}: .* need text_vectors"):
        fit_baselines(config, [walk(start, 5, 1) for start in range(10)], ITEMS, cases(3))
