"""Click-through models on planted data: codes reach cold items, item ids do not; logits by hand."""

import numpy as np
import pytest
import torch

from llmrec.data.sequences import TEST, TRAIN, VALID, Sequences
from llmrec.evaluation.ctr import Cases, HistoryModel, ItemTable, PairModel, _Drawn, ctr_metrics
from llmrec.quantize import TokenizeConfig, quantizer_class
from llmrec.quantize.features import CodeFeatures


def cases(histories: list[list[int]], items: list[list[int]], users: list[list[int]]) -> Cases:
    return Cases(torch.tensor(histories), torch.tensor(items), torch.tensor(users))


def test_history_logit_by_hand() -> None:
    model = HistoryModel(ItemTable(np.array([[0, 1], [1, 2], [2, 0]]), 3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.random.default_rng(len(name)).normal(size=parameter.shape)))
    table = model.table.embedding.weight.detach()
    vectors = torch.stack([table[0] + table[1], table[1] + table[2], table[2] + table[0]])
    user = model.user((vectors[1, :-1] + vectors[2, :-1]) / 2)
    logits = model(cases([[-1, 1, 2]], [[0, 2]], [[0, 0]]))
    expected = torch.stack([user @ vectors[item, :-1] + vectors[item, -1] for item in (0, 2)])
    torch.testing.assert_close(logits, expected[None])


def test_one_weight_picks_one_pair_of_levels() -> None:
    codes, features = np.array([[0, 1], [2, 0]]), CodeFeatures([3, 2])
    model = PairModel(codes, features)
    with torch.no_grad():
        model.items.weight[:, -1] = 0
        model.weights.zero_()
        model.weights[1, 0] = 1
    logits = model(cases([[0]], [[0, 1]], [[2, 1]]))
    user = model.users.weight[3 + 1]
    torch.testing.assert_close(logits[0], torch.stack([user @ model.items.weight[item, :-1] for item in (0, 2)]))


@pytest.fixture(scope="module")
def shop() -> tuple[Sequences, np.ndarray]:
    """Users stay in one of four groups of 30 items, whose vectors lie close together; item 0 of a group is cold."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8))
    vectors = (np.repeat(centres, 30, axis=0) + rng.normal(scale=0.1, size=(120, 8))).astype(np.float32)
    sequences = []
    for user in range(400):
        group = user % 4
        taken = 30 * group + 1 + rng.permutation(29)[:8]
        sequences.append([*taken, 30 * group] if user % 3 == 0 else taken)
    lengths = [len(sequence) for sequence in sequences]
    parts = [[TRAIN] * (length - 2) + [VALID, TEST] for length in lengths]
    offsets = np.cumsum([0, *lengths])
    names = [f"u{user}" for user in range(400)]
    return Sequences(names, offsets, np.concatenate(sequences).astype(np.int32), np.concatenate(parts)), vectors


def test_drawn_items_are_new_to_the_user_and_of_the_same_kind(shop: tuple[Sequences, np.ndarray]) -> None:
    sequences, _ = shop
    is_warm = sequences.train_counts(120) > 0
    assert (~is_warm).sum() == 4
    examples = sequences.cases(TEST)
    drawn = _Drawn(sequences, is_warm, 0).items(examples)
    assert (drawn >= 0).all()
    assert (is_warm[drawn] == is_warm[examples.targets]).all()
    taken = {(int(user), int(item)) for user in range(400) for item in sequences.history(user, TEST + 1)}
    assert not taken & set(zip(examples.users.tolist(), drawn.tolist(), strict=True))
    assert (_Drawn(sequences, np.arange(120) != 0, 0).items(examples)[examples.targets == 0] == -1).all()


def test_codes_reach_cold_items(shop: tuple[Sequences, np.ndarray]) -> None:
    sequences, vectors = shop
    quantizer = quantizer_class("rq-kmeans")(TokenizeConfig(levels=2, codes=8)).fit(vectors)
    found = ctr_metrics(sequences, vectors, quantizer, quantizer.encode(vectors), CodeFeatures([8, 8]), last=5)
    assert found["hashed-id"]["rows"] == found["unigram"]["rows"] == 16
    assert found["item-id"]["rows"] == 120
    assert found["item-id"]["warm"]["auc"] > 0.8  # a quarter of the drawn items is as good as the taken one
    assert found["item-id"]["cold"]["auc"] < 0.75
    for name in ("unigram", "prefix", "user-tokens"):
        assert found[name]["warm"]["auc"] > 0.8
        assert found[name]["cold"]["auc"] > 0.9
        assert found[name]["warm"]["log_loss"] < 0.6
    assert found["unigram"]["warm"]["auc"] > found["hashed-id"]["warm"]["auc"]
