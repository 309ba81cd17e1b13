"""CAGE: the vectors and the loss by hand, the tree, and models that learn with it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llmrec.collaborative.bsarec import BSARec
from llmrec.collaborative.cage import CageTable, cage_sizes, cage_table
from llmrec.collaborative.config import BSARecConfig, HSTUConfig, SASRecConfig, TableConfig
from llmrec.collaborative.hstu import HSTU
from llmrec.collaborative.sasrec import SASRec
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError


@pytest.fixture
def table() -> CageTable:
    torch.manual_seed(0)
    return CageTable(nn.Embedding(30, 4), [9, 3])


def test_sizes_follow_the_authors_rule() -> None:
    assert cage_sizes(12101, 2) == [23**2, 23]
    assert cage_sizes(10_000, 3) == [1000, 100, 10]
    with pytest.raises(UserError, match=r"evaluate.sasrec.table.levels 20: 100 items do not fill a tree"):
        cage_table(nn.Embedding(100, 4), 100, 20, "evaluate.sasrec")


def test_codes_are_a_tree(table: CageTable) -> None:
    codes = table.codes(table.items.weight)
    first, second = (codebook.detach() for codebook in table.codebooks)
    for vector, (low, high) in zip(table.items.weight.detach(), codes.tolist(), strict=True):
        assert low == (first - vector).norm(dim=1).argmin()
        assert high == (second - first[low]).norm(dim=1).argmin()


def test_vectors_by_hand(table: CageTable) -> None:
    codes = table.codes(table.items.weight)
    first, second = table.codebooks
    expected = table.items.weight + (first[codes[:, 0]] + second[codes[:, 1]]) / 2
    torch.testing.assert_close(table.weight, expected)
    torch.testing.assert_close(table(torch.tensor([[4, 0]])), expected[[4, 0]][None])


def test_loss_by_hand(table: CageTable) -> None:
    states, following = torch.randn(5, 4), torch.tensor([3, 0, 3, 29, 11])
    own = table.items.weight[following]
    codes = table.codes(own)
    low, high = table.codebooks[0][codes[:, 0]], table.codebooks[1][codes[:, 1]]
    found = table.transform(states)
    expected = 1.25 * (F.mse_loss(low, own) + F.mse_loss(high, low))
    expected = expected + sum(F.cross_entropy(head(found), codes[:, at]) for at, head in enumerate(table.heads))
    torch.testing.assert_close(table.loss(states, following), expected)


def test_gradients_stop_where_the_formula_says(table: CageTable) -> None:
    following = torch.tensor([3, 7])
    table.loss(torch.zeros(2, 4), following).backward()
    own = table.items.weight.detach()[following]
    codes = table.codes(own)
    low = table.codebooks[0].detach()[codes[:, 0]]
    gradient = table.items.weight.grad
    torch.testing.assert_close(gradient[following], 0.25 * 2 * (own - low) / own.numel())
    assert gradient.abs().sum(1).count_nonzero() == 2


def walk(start: int, length: int) -> np.ndarray:
    return ((start + np.arange(length)) % 20).astype(np.int32)


def cases() -> EvalExamples:
    return EvalExamples(np.arange(20), [walk(start, 3) for start in range(20)], np.array([*range(3, 20), 0, 1, 2]))


SIZES = {"hidden_size": 16, "max_history": 6, "batch_size": 16, "learning_rate": 0.02, "epochs": 30, "dropout": 0.1}
CAGE = TableConfig("cage", levels=2)
MODELS = [
    (SASRec, SASRecConfig(**SIZES, layers=1, table=CAGE)),
    (BSARec, BSARecConfig(**SIZES | {"epochs": 4}, layers=1, frequencies=2, table=CAGE)),
    (HSTU, HSTUConfig(**SIZES, layers=1, layer_dropout=0.0, table=CAGE)),
]


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_models_learn_with_categories_and_come_back_from_a_file(model: type[SASRec], config: SASRecConfig) -> None:
    train = [walk(start, 4 + start % 3) for start in range(20)] * 4
    system = model(config, cases(), seed=1).fit(train, 20)
    assert np.mean(system.ranks(cases(), filter_seen=True) <= 3) > 0.8
    assert isinstance(system.network.items, CageTable)
    again = model(config, cases(), seed=1)
    again.restore(system.arrays(), np.ones(20), None)
    histories = [walk(4, 3), walk(11, 2)]
    np.testing.assert_array_equal(again.scores(histories), system.scores(histories))
