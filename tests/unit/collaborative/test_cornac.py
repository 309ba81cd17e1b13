"""Cornac's models on a planted cycle whose items have their rows in another order than the one that they appear in."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from llmrec.collaborative.cornac import CornacSASRec, CornacTIGER
from llmrec.collaborative.sasrec import SASRec
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig, SASRecConfig
from llmrec.evaluation.systems import fit_baselines

needs_cornac = pytest.mark.skipif(find_spec("cornac") is None, reason="needs cornac")

ITEMS = 13
CYCLE = np.array([11, 2, 8, 12, 4, 1, 9, 6, 3, 10], np.int32)
"""Rows in the order of the cycle. Rows 0, 5 and 7 are cold, so that Cornac's numbers are not the rows."""
TRAIN = [np.roll(CYCLE, -start)[: 4 + start % 3] for start in range(10)] * 4
SMALL = SASRecConfig(hidden_size=16, layers=1, heads=2, max_history=6, epochs=100)


def cases(length):
    walks = [np.roll(CYCLE, -start) for start in range(10)]
    return EvalExamples(np.arange(10), [walk[:length] for walk in walks], np.array([walk[length] for walk in walks]))


@pytest.fixture(scope="module")
def sasrec():
    return CornacSASRec(SMALL, cases(3), seed=3).fit(TRAIN, ITEMS)


TINY = {
    "n_beams": 2,
    "rqvae_hidden_dims": (32,),
    "rqvae_latent_dim": 8,
    "rqvae_n_epochs": 30,
    "rqvae_codebook_size": 8,
    "d_model": 32,
    "d_ff": 64,
    "num_heads": 2,
    "d_kv": 16,
    "num_enc_layers": 1,
    "num_dec_layers": 1,
    "dropout": 0.0,
    "learning_rate": 5e-3,
    "warmup_steps": 10,
    "n_epochs": 60,
    "val_eval_every": 30,
    "max_len": 6,
}
TWINS = np.array([[11, 12], [2, 4], [8, 1], [9, 10], [6, 3]])
"""Rows of warm items with the same text."""


@pytest.fixture(scope="module")
def tiger():
    recipe = pytest.importorskip("cornac.models.tiger").PAISCHER_CONFIG
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 16)).astype(np.float32)
    vectors[TWINS[:, 1]] = vectors[TWINS[:, 0]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setitem(recipe, name, value)
        return CornacTIGER(vectors, 3, cases(3), seed=3).fit(TRAIN, ITEMS)


@needs_cornac
@pytest.mark.parametrize("model", ["sasrec", "tiger"])
def test_it_learns_a_cycle_and_scores_our_rows(model, request):
    system = request.getfixturevalue(model)
    assert system.name == f"cornac-{model}"
    assert (system.ranks(cases(3), filter_seen=True) == 1).sum() >= 9
    scores = system.scores(cases(3).histories)
    assert scores.shape == (10, ITEMS)
    assert scores.dtype == np.float32
    assert np.isneginf(scores[:, [0, 5, 7]]).all()


@needs_cornac
def test_cold_items_are_passed_over_in_histories(sasrec):
    plain, strewn = sasrec.scores([CYCLE[:2], np.array([0, CYCLE[0], 5, CYCLE[1], 7])])
    assert plain.tolist() == strewn.tolist()


@needs_cornac
def test_the_seed_is_cornacs_too_and_the_global_generator_is_left_alone():
    config = SASRecConfig(hidden_size=8, epochs=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (
        CornacSASRec(config, cases(3), seed=seed).fit(TRAIN, ITEMS).scores([CYCLE[:3]]).tolist() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert first == second
    assert first != other


@needs_cornac
def test_tiger_gets_the_text_of_each_row(tiger):
    codes = tiger.model.sid_table[:, :3]
    one, other = (codes[tiger.places[rows]] for rows in TWINS.T)
    assert one.tolist() == other.tolist()
    assert len(np.unique(one, axis=0)) == len(TWINS)


@needs_cornac
def test_tiger_does_not_rank_what_its_beams_do_not_find(tiger):
    assert np.isfinite(tiger.scores(cases(2).histories)).sum(axis=1).tolist() == [2 + 3] * 10


@needs_cornac
def test_sizes_and_epochs_are_those_of_the_section():
    sizes = SASRecConfig(hidden_size=6, layers=3, heads=2, max_history=4, epochs=1)
    (system,) = fit_baselines(EvaluateConfig(baselines=["cornac-sasrec"], sasrec=sizes), TRAIN, ITEMS, cases(3))
    model = system.model
    sizes_there = (model.embedding_dim, model.num_blocks, model.num_heads, model.max_len, model.n_epochs)
    assert sizes_there == (6, 3, 2, 4, 1)


@needs_cornac
def test_too_little_to_train_on_is_said():
    with pytest.raises(UserError, match=r"evaluate\.baselines cornac-sasrec: the log has no two events of one user"):
        CornacSASRec(SMALL, cases(3)).fit([CYCLE[:1], CYCLE[1:2]], ITEMS)


@pytest.mark.parametrize("name", ["cornac-sasrec", "cornac-tiger"])
def test_a_missing_package_is_said_before_anything_is_trained(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "cornac", None)
    monkeypatch.setattr(SASRec, "_learn", lambda *given: pytest.fail("trained"))
    said = rf"^evaluate.baselines {name} needs cornac: pip install 'llmrec\[benchmark\]'\.$"
    with pytest.raises(UserError, match=said):
        fit_baselines(EvaluateConfig(baselines=["sasrec", name]), TRAIN, ITEMS, cases(3), np.eye(ITEMS))


def test_tiger_needs_vectors():
    with pytest.raises(UserError, match=r"evaluate\.baselines cornac-tiger: .* need text_vectors"):
        fit_baselines(EvaluateConfig(baselines=["cornac-tiger"]), TRAIN, ITEMS, cases(3))
