"""Lists rewarded as a whole: their scores against the plain model, their draws, and a hidden taste for lists."""

import numpy as np
import pytest
import torch
from tolerances import SCORES

from llmrec.decode.config import DecodeConfig
from llmrec.decode.ranker import ItemRanker, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.search import Ranking
from llmrec.errors import UserError
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.examples import PreferenceExamples
from llmrec.preference.objectives import Material
from llmrec.preference.policy import Policy
from llmrec.preference.rewards import list_hit
from llmrec.preference.sessions import SessionGRPO, judge_of_lists

HISTORIES = [[0, 5, 7], [11], [2, 4, 6]]


@pytest.fixture
def objective(deep):
    """`objective(settings)`: of three prompts, whose users took items 8, 9 and 10."""

    def make(**settings) -> SessionGRPO:
        config = PreferenceConfig("grpo", **{"session": 3, "group": 4, **settings})
        policy = Policy(deep.model, deep.vocabulary, deep.trie, DecodeConfig(dtype="float32"))
        ranker = ItemRanker(deep.renderer, policy, 160)
        histories, none = [np.array(history) for history in HISTORIES], np.empty(0, np.int64)
        examples = PreferenceExamples(histories, np.array([8, 9, 10]), [none] * 3)
        prompts = [ranker.prompt_ids(history) for history in HISTORIES]
        trained = dict(deep.model.named_parameters())
        material = Material(policy, trained, {}, prompts, examples, np.ones(20), deep.catalog, config)
        return SessionGRPO(material, judge_of_lists(material, list_hit))

    return make


@pytest.fixture
def plain(deep, exhaustive):
    """`plain(history, items)`: the log-probability of an ordered list, by plain forward passes."""

    def score(history: list[int], items: list[int]) -> float:
        total = 0.0
        for at, item in enumerate(items):
            shown = deep.renderer.history([*history, *items[:at]])
            prompt = deep.renderer.encode_prompts([deep.renderer.prompt("sequential", 0, history=shown)])
            total += exhaustive(deep, prompt, "catalogue").sum(axis=2)[0, item]
        return total

    return score


@pytest.mark.parametrize("draw", ["beams", "samples"])
def test_lists_and_their_scores_are_those_of_the_plain_model(objective, plain, draw):
    grouped, rows = objective(draw=draw), np.array([0, 1, 2])
    lists, scores = grouped.draw(0, rows)
    assert lists.shape == (3, 4, 3)
    given = grouped.scores(rows, lists)
    for row, history in enumerate(HISTORIES):
        assert len(set(lists[row, :, 0].tolist())) == 4
        for at, items in enumerate(lists[row].tolist()):
            assert len({*history, *items}) == len(history) + 3
            expected = plain(history, items)
            assert [scores[row, at].item(), given[row, at].item()] == pytest.approx([expected] * 2, abs=SCORES)
    again, _ = objective(draw=draw).draw(0, rows)
    np.testing.assert_array_equal(again, lists)
    part, _ = objective(draw=draw).draw(0, rows[1:])
    np.testing.assert_array_equal(part, lists[1:])


def test_a_list_may_end_early(objective, plain):
    grouped = objective()
    lists = np.array([[[3, 9, -1], [1, -1, -1], [-1, -1, -1]]])
    assert grouped.there(lists).tolist() == [[True, True, False]]
    expected = [plain(HISTORIES[1], [3, 9]), plain(HISTORIES[1], [1]), 0.0]
    assert grouped.scores(np.array([1]), lists)[0].tolist() == pytest.approx(expected, abs=SCORES)


def test_the_loss_is_that_of_whole_lists(objective, plain):
    """Without a divergence from the start, the loss is -advantage, its gradient that of the lists' scores."""
    grouped = objective(kl=0.0, draw="samples")
    own = grouped.material
    own.start = {name: value.detach().clone() for name, value in own.trained.items()}
    for value in own.trained.values():
        value.requires_grad_(True)
    grouped.begin(0, [np.array([0, 2])])
    grouped.advantage = torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.0, 2.0, -1.0, -1.0]])
    loss = grouped.loss(0, np.array([2, 0]))
    assert loss.item() == pytest.approx(0.0 / 4 - 0.5 / 4, abs=SCORES)
    name = next(iter(own.trained))
    (given,) = torch.autograd.grad(loss, own.trained[name])
    written = -(grouped.scores(np.array([0, 2]), grouped.items) * grouped.advantage).sum() / 4
    (expected,) = torch.autograd.grad(written, own.trained[name])
    torch.testing.assert_close(given, expected)


def test_a_hidden_taste_for_lists(aligned, supervised):
    """Customers like lists whose second item is an odd one; nothing rewards the first."""
    rows, shop = supervised.catalog.index, supervised

    def share() -> float:
        search = Policy(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32", session=2))
        facts = ItemFacts(np.zeros(20, bool), 2)
        method = make_ranking(search, facts, DecodeConfig(session=2), "session")
        prompts = [ItemRanker(shop.renderer, search, 160).prompt_ids([item]) for item in range(20)]
        ranking: Ranking = method.rank(prompts, 2)
        return float((ranking.items[:, 1] % 2).mean())

    before = share()
    settings = {"batch_size": 40, "learning_rate": 3e-3, "patience": 0, "evaluations": 1, "group": 6, "epochs": 4}
    config = PreferenceConfig("grpo", session=2, draw="samples", **settings)
    aligned(config, reward=lambda history, items, target: float(rows[items[1]] % 2))
    assert before < 0.7
    assert share() > 0.95


def test_a_session_needs_grpo():
    with pytest.raises(UserError, match=r"preference\.session 3 rewards lists, which .* s-dpo does not"):
        PreferenceConfig("s-dpo", session=3)
