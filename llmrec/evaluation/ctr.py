"""What code features are worth to a ranker: click-through models that differ in their features alone.

A log has no displayed items that were not clicked. The cases are therefore the events of the log (label 1) and, for
each, one item that the user never took (label 0), drawn uniformly among the warm items, or among the cold ones if the
event's item is cold. A model cannot tell cold from warm items by that; .5 is the AUC of chance, .693 the log-loss.

The model is a factorization machine (Rendle, ICDM 2010) of two vectors, of the item and of the user's last items:

    logit = <W mean of the history's vectors, vector of the item> + bias of the item + b

The features of a contender make the vectors and biases: one row per item, rows by a hash of the item, or rows by its
codes. UIST (arXiv 2403.08206) describes the user by codes too, and weighs the pairs of user and item levels:

    logit = sum over levels l, m of w[l, m] <vector of the user's code l, vector of the item's code m> + bias + b
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn
from torch.nn import functional as F

from llmrec.console import get_logger
from llmrec.data.sequences import TEST, TRAIN, VALID, EvalExamples, Sequences
from llmrec.errors import UserError
from llmrec.quantize.base import Quantizer
from llmrec.quantize.features import CodeFeatures, code_embedding, user_codes

Table = TypeVar("Table", nn.Embedding, nn.EmbeddingBag)

log = get_logger(__name__)

DIM = 32
"""Dimensions of the vectors."""
BATCH = 1024
"""Events per step; each brings one drawn item."""
EPOCHS = 20
"""Largest number of passes over the training events."""
PATIENCE = 2
"""Passes without a lower validation log-loss after which the training stops."""
RATE = 0.05
"""Step size of Adagrad."""
START = 0.05
"""Standard deviation of the embeddings before training."""
DRAWS = 100
"""Draws after which an event is left out: its user took nearly all items of the kind."""


@dataclass(frozen=True)
class Cases:
    """n events with one drawn item each.

    Attributes:
        histories: rows of the last items before the event, oldest first, int64 [n, H]; -1 fills the front.
        items: row of the event's item and of the drawn one, int64 [n, 2].
        user_codes: codes of the histories, int64 [n, L].
    """

    histories: torch.Tensor
    items: torch.Tensor
    user_codes: torch.Tensor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: torch.Tensor) -> "Cases":
        return Cases(self.histories[rows], self.items[rows], self.user_codes[rows])


class ItemTable(nn.Module):
    """Vectors and biases of items, each the sum of the rows of a table that the item's features select.

    Args:
        rows: of each of the N items, int64 [N, F].
        size: number of rows of the table.
    """

    rows: torch.Tensor

    def __init__(self, rows: np.ndarray, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(rows))
        self.embedding = _started(code_embedding(size, DIM + 1, sparse=True))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Float [..., DIM + 1] of `items`, catalogue rows [...]; the last number is the bias."""
        rows = self.rows[items.flatten()]
        return self.embedding(rows).unflatten(0, items.shape)


class HistoryModel(nn.Module):
    """The factorization machine over the mean of the history's vectors; see the module."""

    def __init__(self, table: ItemTable) -> None:
        super().__init__()
        self.table = table
        self.user = nn.Linear(DIM, DIM)

    def forward(self, cases: Cases) -> torch.Tensor:
        """Logits, float [n, 2]."""
        known = (cases.histories >= 0).float()[..., None]
        history = (self.table(cases.histories.clamp(min=0))[..., :DIM] * known).sum(1) / known.sum(1)
        items = self.table(cases.items)
        return (items[..., :DIM] @ self.user(history)[..., None])[..., 0] + items[..., DIM]


class PairModel(nn.Module):
    """UIST's model: pairs of user and item codes, weighed by their levels; see the module.

    Args:
        item_codes: of the N items, integers [N, L].
        features: the tables of the codes; user and item have a table each.
    """

    item_codes: torch.Tensor

    def __init__(self, item_codes: np.ndarray, features: CodeFeatures) -> None:
        super().__init__()
        levels, size = item_codes.shape[1], features.size("unigram")
        self.features = features
        self.register_buffer("item_codes", torch.from_numpy(features.rows_of("unigram", item_codes)))
        self.users = _started(nn.Embedding(size, DIM, sparse=True))
        self.items = _started(nn.Embedding(size, DIM + 1, sparse=True))
        self.weights = nn.Parameter(torch.full((levels, levels), 1 / levels))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, cases: Cases) -> torch.Tensor:
        """Logits, float [n, 2]."""
        users = self.users(torch.from_numpy(self.features.rows_of("unigram", cases.user_codes.numpy())))
        items = self.items(self.item_codes[cases.items])
        pairs = torch.einsum("nld,nkmd->nklm", users, items[..., :DIM])
        return (pairs * self.weights).sum((-2, -1)) + items[..., DIM].sum(-1) + self.bias


def _started(embedding: Table) -> Table:
    nn.init.normal_(embedding.weight, std=START)
    return embedding


def contenders(item_codes: np.ndarray, features: CodeFeatures) -> dict[str, Callable[[], nn.Module]]:
    """The models that are compared, by the name of their features.

    `hashed-id` has as many rows as `unigram`, so that these two differ in which items share a row.
    """
    n_items, unigrams, prefixes = len(item_codes), features.size("unigram"), features.size("prefix")
    ids, prefix = np.arange(n_items), features.rows_of("prefix", item_codes)
    both = np.column_stack([prefix, prefixes + ids])
    hashed = np.random.default_rng(0).integers(0, unigrams, n_items)
    return {
        "item-id": lambda: HistoryModel(ItemTable(ids[:, None], n_items)),
        "hashed-id": lambda: HistoryModel(ItemTable(hashed[:, None], unigrams)),
        "unigram": lambda: HistoryModel(ItemTable(features.rows_of("unigram", item_codes), unigrams)),
        "prefix": lambda: HistoryModel(ItemTable(prefix, prefixes)),
        "prefix+item-id": lambda: HistoryModel(ItemTable(both, prefixes + n_items)),
        "user-tokens": lambda: PairModel(item_codes, features),
    }


def ctr_metrics(
    sequences: Sequences,
    vectors: np.ndarray,
    quantizer: Quantizer,
    item_codes: np.ndarray,
    features: CodeFeatures,
    last: int = 20,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Train and measure a model with each kind of features, on the same cases.

    Args:
        sequences: the split log, with items as rows of the catalogue.
        vectors: of the N items, floats [N, D].
        quantizer: of these vectors, with L levels.
        item_codes: of the items, integers [N, L].
        features: the tables of the codes.
        last: number of items of a history that the models see.
        seed: of the drawn items, the embeddings and the order of training.

    Returns:
        name of the features -> `rows` of the model's tables, `seconds` of training, and `warm` and `cold` -> `auc`,
        `log_loss` and `events`; a slice without events is left out.

    Raises:
        UserError: no training or test event, or no validation event with a warm target.
    """
    counts = sequences.train_counts(len(item_codes))
    draw = _Drawn(sequences, counts > 0, seed)
    parts = {
        part: _cases(sequences.cases(part, every=True), draw, vectors, quantizer, last) for part in (TRAIN, VALID, TEST)
    }
    cold = torch.from_numpy(counts == 0)
    validation = parts[VALID][~cold[parts[VALID].items[:, 0]]]
    for name, cases in (("training", parts[TRAIN]), ("validation", validation), ("test", parts[TEST])):
        if not len(cases):
            raise UserError(f"--measure: the run has no {name} event with a history and an item to compare it with.")
    is_cold = cold[parts[TEST].items[:, 0]]
    slices = {"warm": parts[TEST][~is_cold], "cold": parts[TEST][is_cold]}
    figures: dict[str, dict[str, Any]] = {}
    for name, make in contenders(item_codes, features).items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = make()
        start = time.perf_counter()
        _train(model, parts[TRAIN], validation, seed, name)
        seconds = time.perf_counter() - start
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
        figures[name] = {"rows": sum(table.num_embeddings for table in tables), "seconds": round(seconds, 1)}
        figures[name] |= {kind: _measure(model, cases) for kind, cases in slices.items() if len(cases)}
    return figures


class _Drawn:
    """Draws items that a user never took, warm or cold ones.

    Args:
        sequences: the log, all parts of it.
        is_warm: of the N items, bool [N].
        seed: of the draws.
    """

    def __init__(self, sequences: Sequences, is_warm: np.ndarray, seed: int) -> None:
        self.n_items = len(is_warm)
        self.is_warm = is_warm
        self.pools = {kind: np.flatnonzero(is_warm == kind) for kind in (True, False)}
        users = np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
        self.taken = np.unique(users * self.n_items + sequences.items)
        self.rng = np.random.default_rng(seed)

    def items(self, cases: EvalExamples) -> np.ndarray:
        """One item for each of n cases, as warm or as cold as its target, int64 [n]; -1 if none was found."""
        drawn = np.full(len(cases), -1, np.int64)
        for kind, pool in self.pools.items():
            left = np.flatnonzero(self.is_warm[cases.targets] == kind)
            for _ in range(DRAWS):
                if not len(left):
                    break
                drawn[left] = pool[self.rng.integers(0, len(pool), len(left))]
                keys = cases.users[left].astype(np.int64) * self.n_items + drawn[left]
                left = left[np.isin(keys, self.taken)]
            drawn[left] = -1
        return drawn


def _cases(examples: EvalExamples, draw: _Drawn, vectors: np.ndarray, quantizer: Quantizer, last: int) -> Cases:
    drawn = draw.items(examples)
    examples, drawn = examples.where(drawn >= 0), drawn[drawn >= 0]
    histories = np.full((len(examples), last), -1, np.int64)
    for row, history in enumerate(examples.histories):
        recent = history[-last:]
        histories[row, last - len(recent) :] = recent
    items = np.column_stack([examples.targets.astype(np.int64), drawn])
    codes = user_codes(examples.histories, vectors, quantizer, last).astype(np.int64)
    return Cases(torch.from_numpy(histories), torch.from_numpy(items), torch.from_numpy(codes))


def _train(model: nn.Module, cases: Cases, validation: Cases, seed: int, name: str) -> None:
    """Train until the validation log-loss has not fallen for `PATIENCE` passes; keep the best weights."""
    optimizer = torch.optim.Adagrad(model.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    best, best_epoch, weights = np.inf, 0, copy.deepcopy(model.state_dict())
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(cases), generator=order).split(BATCH):
            optimizer.zero_grad()
            _loss(model(cases[rows])).backward()
            with torch.sparse.check_sparse_tensor_invariants(False):  # said explicitly, or torch warns
                optimizer.step()
        found = _measure(model, validation)["log_loss"]
        log.debug("%s, epoch %d: validation log-loss %.4f", name, epoch, found)
        if found < best:
            best, best_epoch, weights = found, epoch, copy.deepcopy(model.state_dict())
        elif epoch >= best_epoch + PATIENCE:
            break
    model.load_state_dict(weights)
    log.info("%s: %d epochs, validation log-loss %.4f after epoch %d", name, epoch, best, best_epoch)


def _loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean log-loss of logits [n, 2], the event's item first."""
    return F.binary_cross_entropy_with_logits(logits, _labels(len(logits)))


def _labels(n: int) -> torch.Tensor:
    return torch.tensor([1.0, 0.0]).expand(n, 2)


@torch.inference_mode()
def _measure(model: nn.Module, cases: Cases) -> dict[str, float]:
    """AUC over all cases together, mean log-loss, and the number of events."""
    logits = torch.cat([model(cases[rows]) for rows in torch.arange(len(cases)).split(BATCH)])
    scores = logits.flatten().double().sigmoid().numpy()
    labels = _labels(len(cases)).flatten().numpy()
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "log_loss": float(log_loss(labels, scores)),
        "events": len(cases),
    }
