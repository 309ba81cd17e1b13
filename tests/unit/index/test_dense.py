"""The dense index: scores by hand, items that come and go, and files that are whole, damaged or another's."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import SCORES, SUMS

from llmrec.errors import UserError
from llmrec.index import dense as module
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import TEMPERATURE, DenseHead

N, HIDDEN, TEXT, DIM = 9, 6, 5, 4


def texts(n=N, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, TEXT)).astype(np.float32)


@pytest.fixture
def head() -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(HIDDEN, TEXT, DIM)


def own_vectors() -> torch.Tensor:
    return torch.randn((N, DIM), generator=torch.Generator().manual_seed(4))


@pytest.fixture(params=[False, True], ids=["texts", "own vectors"])
def index(head, request) -> DenseIndex:
    return DenseIndex.of(head, texts(), own_vectors() if request.param else None)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn((3, HIDDEN), generator=torch.Generator().manual_seed(1))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def logits_by_hand(index: DenseIndex, hidden: torch.Tensor, vectors: np.ndarray) -> np.ndarray:
    """Cosines over the temperature, float64 [B, N], from the head's weights."""
    head, own = index.head, 0 if index.own is None else index.own.double().numpy()
    weights = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    query = unit(hidden.double().numpy() @ weights["query.weight"].T + weights["query.bias"])
    inner = np.maximum(vectors @ weights["item.0.weight"].T + weights["item.0.bias"], 0)
    item = inner @ weights["item.2.weight"].T + weights["item.2.bias"] + vectors @ weights["straight.weight"].T
    return query @ unit(item + own).T / TEMPERATURE


def test_log_probabilities_by_hand(index, hidden):
    logits = logits_by_hand(index, hidden, texts())
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(index.log_probabilities(hidden), expected, atol=SCORES)
    torch.testing.assert_close(index.log_probabilities(hidden).exp().sum(1), torch.ones(3))


def test_log_probabilities_among_items_that_are_not_new(index, hidden):
    new = np.arange(N) % 3 == 0
    logits = logits_by_hand(index, hidden, texts())
    expected = logits - np.log(np.exp(logits[:, ~new]).sum(axis=1, keepdims=True))
    found = index.log_probabilities(hidden, torch.from_numpy(new))
    np.testing.assert_allclose(found, expected, atol=SCORES)
    np.testing.assert_allclose(np.exp(found.numpy()[:, ~new]).sum(axis=1), 1, atol=SUMS)


@pytest.mark.parametrize("new", [None, np.zeros(N, bool), np.ones(N, bool)], ids=["unknown", "none", "all"])
def test_where_none_or_all_are_new_all_share(index, hidden, new):
    found = index.log_probabilities(hidden, None if new is None else torch.from_numpy(new))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))


def test_new_items_change_no_old_items_score(index, hidden):
    more = index.with_items(texts(20, seed=5))
    new = torch.arange(N + 20) >= N
    before = index.log_probabilities(hidden)
    torch.testing.assert_close(more.log_probabilities(hidden, new)[:, :N], before, rtol=0, atol=SCORES)
    assert (more.log_probabilities(hidden)[:, :N] < before).all(), "as they would, were they not new"


def test_items_are_made_in_blocks(head, monkeypatch):
    for own in (None, own_vectors()):
        whole = DenseIndex.of(head, texts(), own)
        with monkeypatch.context() as patch:
            patch.setattr(module, "BLOCK", 4)
            torch.testing.assert_close(DenseIndex.of(head, texts(), own).vectors, whole.vectors)


def test_vectors_and_texts_have_unit_length(index):
    for rows in (index.vectors, index.texts):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(N))
    np.testing.assert_allclose(index.texts, unit(texts()), atol=SUMS)


def assert_same(one: DenseIndex, other: DenseIndex, atol=SUMS) -> None:
    torch.testing.assert_close(one.vectors, other.vectors, rtol=0, atol=SUMS)
    torch.testing.assert_close(one.texts, other.texts, rtol=0, atol=atol)
    assert (one.own is None) == (other.own is None)
    if one.own is not None:
        assert torch.equal(one.own, other.own)


def test_items_come_change_and_go(head, index):
    more, other = texts(3, seed=7), texts(2, seed=8)
    whole = np.concatenate([texts(), more])
    grown = index.with_items(more)
    assert (len(index), len(grown)) == (N, N + 3)
    own = None if index.own is None else torch.cat([own_vectors(), torch.zeros(3, DIM)])
    assert_same(grown, DenseIndex.of(head, whole, own))
    rows = np.array([10, 2])
    whole[rows] = other
    changed = grown.with_texts(rows, other)
    assert_same(changed, DenseIndex.of(head, whole, own))
    assert_same(grown, DenseIndex.of(head, np.concatenate([texts(), more]), own))
    keep = np.array([11, 0, 2, 5])
    assert_same(changed.rows(keep), DenseIndex.of(head, whole[keep], None if own is None else own[keep]))
    assert_same(index.with_items(texts(0)), index)
    assert_same(index.with_texts(np.empty(0, np.int64), texts(0)), index)


def test_a_file_gives_back_the_same_index(index, hidden, tmp_path):
    path = tmp_path / "dense.safetensors"
    index.save(path)
    again = DenseIndex.load(path)
    assert torch.equal(again.vectors, index.vectors)
    assert_same(again, index, atol=1e-3)  # texts are kept with 11 bits
    assert torch.equal(again.log_probabilities(hidden), index.log_probabilities(hidden))
    assert not any(parameter.requires_grad for parameter in again.head.parameters())
    assert_same(again.with_items(texts(3, seed=7)), index.with_items(texts(3, seed=7)), atol=1e-3)


def test_the_index_moves_without_taking_the_head_along(index):
    moved = index.to("cpu")
    assert_same(moved, index)
    assert moved.head is not index.head


@pytest.mark.parametrize("shape", [(3, TEXT + 1), (3, TEXT, 1), (TEXT,)])
def test_text_vectors_of_other_dimensions_are_refused(head, index, shape):
    wrong = np.zeros(shape, np.float32)
    for attempt in (
        lambda: DenseIndex.of(head, wrong),
        lambda: index.with_items(wrong),
        lambda: index.with_texts(np.arange(3), wrong),
    ):
        with pytest.raises(UserError, match=r"text vectors of shape \(.*\) for a dense head of 5 dimensions; embed"):
            attempt()


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip_header(path):
    path.write_bytes(b"\xff" * 30 + path.read_bytes()[30:])


def change(**tensors):
    def edit(path):
        kept = load_file(path) | tensors
        save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, path)

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip_header,
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        change(items=None),
        change(texts=None),
        change(**{"head.query.bias": None}),
        change(**{"head.query.weight": None}),
        change(**{"head.item.0.weight": torch.zeros(3)}),
        change(**{"head.query.weight": torch.zeros(3)}),
        change(**{"head.more": torch.zeros(3)}),
        change(items=torch.zeros(N, DIM + 1)),
        change(items=torch.zeros(N + 1, DIM)),
        change(texts=torch.zeros(N, TEXT + 1)),
        change(texts=torch.zeros(N)),
        change(own=torch.zeros(N, DIM + 1)),
        change(own=torch.full((N, DIM), torch.nan)),
    ],
)
def test_a_damaged_file_is_named_in_one_line(index, tmp_path, damage):
    path = tmp_path / "dense.safetensors"
    index.save(path)
    damage(path)
    with pytest.raises(UserError, match=r"dense\.safetensors: not a dense index that llmrec saved: ") as caught:
        DenseIndex.load(path)
    assert "\n" not in str(caught.value)
