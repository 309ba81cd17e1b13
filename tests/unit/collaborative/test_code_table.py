"""Item vectors of codewords: by hand, their size, their codes, and models that learn with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.collaborative.bsarec import BSARec
from llmrec.collaborative.code_table import CodeTable, quantile_codes, with_rare_items
from llmrec.collaborative.config import BSARecConfig, HSTUConfig, SASRecConfig, TableConfig
from llmrec.collaborative.hstu import HSTU
from llmrec.collaborative.sasrec import SASRec
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_vectors_by_hand(join: str) -> None:
    codes = np.random.default_rng(0).integers(0, 3, (5, 2))
    table = CodeTable(codes, 3, 4, join, 1.0)
    words = table.codewords.detach().view(2, 3, -1)
    parts = [(words[0, first], words[1, second]) for first, second in codes]
    expected = torch.stack([torch.cat(pair) if join == "concat" else pair[0] + pair[1] for pair in parts])
    torch.testing.assert_close(table.weight, expected)
    torch.testing.assert_close(table(torch.tensor([[4, 0]])), expected[[4, 0]][None])
    # the score of a state is a sum of one looked-up product per level
    state = torch.randn(4)
    halves = state.view(2, 2) if join == "concat" else state.expand(2, 4)
    products = torch.einsum("lcd,ld->lc", words, halves)
    torch.testing.assert_close(table.weight @ state, sum(products[level, codes[:, level]] for level in range(2)))


def test_bytes() -> None:
    """float32 codewords and one byte per code: RecJPQ needs 4 C D + M L bytes, LightRec 4 L C D + M L."""
    codes = np.zeros((1000, 8), np.int64)
    assert CodeTable(codes, 256, 64, "concat", 1.0).bytes == 4 * 256 * 64 + 1000 * 8
    assert CodeTable(codes, 256, 64, "sum", 1.0).bytes == 4 * 8 * 256 * 64 + 1000 * 8
    assert CodeTable(codes, 300, 64, "concat", 1.0).bytes == 4 * 300 * 64 + 4 * 1000 * 8


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_vectors_start_with_the_given_spread(join: str) -> None:
    torch.manual_seed(0)
    codes = np.random.default_rng(0).integers(0, 256, (4000, 8))
    assert CodeTable(codes, 256, 64, join, 0.02).weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_codes_split_groups_of_users() -> None:
    """Two groups of users take two groups of items: one level tells the groups apart, and all its groups are equal."""
    rng = np.random.default_rng(0)
    sequences = [rng.choice(10, 6, replace=False) + 10 * (user % 2) for user in range(60)]
    codes = quantile_codes(sequences, 20, 2, 4, seed=0)
    assert codes.shape == (20, 2)
    assert (np.stack([np.bincount(codes[:, level], minlength=4) for level in range(2)]) == 5).all()
    halves = codes // 2
    assert any(len(set(halves[:10, level])) == 1 and len(set(halves[:, level])) == 2 for level in range(2))


def test_rare_items_use_the_first_codes_only() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (100, 3))
    counts = np.arange(100)
    found = with_rare_items(codes, counts, 256, 64)
    assert (found[90:] == codes[90:]).all()
    assert found[:90].max() < 64
    assert (found[:90] == codes[:90] // 4).all()
    assert (with_rare_items(codes, counts, 256, 256) == codes).all()


def walk(start: int, length: int) -> np.ndarray:
    return ((start + np.arange(length)) % 20).astype(np.int32)


def cases() -> EvalExamples:
    return EvalExamples(np.arange(20), [walk(start, 3) for start in range(20)], np.array([*range(3, 20), 0, 1, 2]))


SIZES = {"hidden_size": 16, "max_history": 6, "batch_size": 16, "learning_rate": 0.02, "epochs": 30, "dropout": 0.1}
TABLE = TableConfig("concat", levels=2, codes=10, rare_codes=10)
MODELS = [
    (SASRec, SASRecConfig(**SIZES, layers=1, table=TABLE)),
    (SASRec, SASRecConfig(**SIZES, layers=1, table=replace(TABLE, join="sum"))),
    (BSARec, BSARecConfig(**SIZES | {"epochs": 4}, layers=1, frequencies=2, table=TABLE)),
    (HSTU, HSTUConfig(**SIZES, layers=1, layer_dropout=0.0, table=TABLE)),
]


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_models_learn_with_codewords_and_come_back_from_a_file(model: type[SASRec], config: SASRecConfig) -> None:
    train = [walk(start, 4 + start % 3) for start in range(20)] * 4
    system = model(config, cases(), seed=1).fit(train, 20)
    ranks = system.ranks(cases(), filter_seen=True)
    assert np.mean(ranks <= 3) > 0.8
    assert isinstance(system.network.items, CodeTable)
    again = model(config, cases(), seed=1)
    again.restore(system.arrays(), np.ones(20), None)
    histories = [walk(4, 3), walk(11, 2)]
    np.testing.assert_array_equal(again.scores(histories), system.scores(histories))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"table": TableConfig("concat", levels=6)}, "table.levels 6: expected a divisor of hidden_size 64"),
        ({"table": TableConfig("sum"), "start": "text"}, "add evaluate.sasrec.start random"),
        ({"table": TableConfig("sum", rare_codes=300)}, "table.rare_codes 300: expected 1 to"),
        ({"table": TableConfig("cage", codes=64)}, "table.join cage: codes and rare_codes do nothing"),
        ({"table": TableConfig("sum", levels=0)}, "table.levels"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SASRecConfig(**changes)


def test_too_many_levels_for_the_log() -> None:
    config = SASRecConfig(**SIZES, table=TableConfig("sum", levels=20))
    with pytest.raises(UserError, match="at most 19 levels"):
        SASRec(config, cases()).fit([walk(start, 4) for start in range(20)] * 2, 20)
