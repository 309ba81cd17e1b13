"""What a collaborative model is: fitted on training sequences, it scores every item after a history.

The configuration of the trained models (SASRec, BSARec, HSTU) and of the experts stands here too.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from llmrec.checks import check_fields
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass
class SASRecConfig:
    """The Transformer of the baselines sasrec and sasrec-knn, and its training."""

    section: ClassVar[str] = "evaluate.sasrec"
    named_by: ClassVar[str] = "evaluate.baselines"

    hidden_size: int = 64
    """Width of the embeddings and the layers."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 2
    """Attention heads; they divide the width."""
    dropout: float = 0.5
    """Share of the activations that training drops."""
    max_history: int = 50
    """Items of a history that it reads, the latest."""
    batch_size: int = 128
    """Users per step."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    epochs: int = 100
    """Passes over the training part at most."""
    patience: int = 5
    """Passes, and at least 1,500 steps, after which it stops when the NDCG@10 of validation has not risen."""
    start: Literal["random", "text"] = "random"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "layers", "heads", "max_history", "batch_size", "epochs", "patience")
        check_fields(self, self.section, at_least={1: sizes}, positive=("learning_rate",), shares=("dropout",))
        if self.hidden_size % self.heads:
            raise UserError(
                f"--{self.section}.heads {self.heads}: expected a divisor of hidden_size {self.hidden_size}"
            )


@dataclass
class BSARecConfig(SASRecConfig):
    """The Transformer of the baseline bsarec, which also filters a history by frequency, and its training."""

    section: ClassVar[str] = "evaluate.bsarec"

    heads: int = 1
    """Attention heads; they divide the width."""
    batch_size: int = 256
    """Prefixes per step."""
    learning_rate: float = 5e-4
    """Step size of Adam."""
    patience: int = 10
    """Passes, and at least 1,500 steps, after which it stops when the NDCG@10 of validation has not risen."""
    alpha: float = 0.7
    """Share of the frequency filter in a layer's output; attention has the rest. 0 is SASRec."""
    frequencies: int = 5
    """Lowest frequencies that the filter keeps apart, of a history as long as max_history; the mean is one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, self.section, at_least={0: ("alpha",), 1: ("frequencies",)})
        if self.alpha > 1:
            raise UserError(f"--{self.section}.alpha {self.alpha}: expected a share from 0 to 1.")


@dataclass
class HSTUConfig(SASRecConfig):
    """The network of the baseline hstu, whose attention has a gate and no softmax, and its training."""

    section: ClassVar[str] = "evaluate.hstu"

    layers: int = 4
    """HSTU layers."""
    heads: int = 2
    """Attention heads."""
    head_size: int = 4
    """Width of the queries, keys, values and gates of one head."""
    dropout: float = 0.5
    """Share of the embeddings' values that training drops."""
    layer_dropout: float = 0.1
    """Share of the gated values in a layer that training drops."""
    batch_size: int = 256
    """Users per step."""
    epochs: int = 300
    """Passes over the training part at most."""
    patience: int = 10
    """Passes, and at least 1,500 steps, after which it stops when the NDCG@10 of validation has not risen."""
    negatives: int = 512
    """Items drawn at each step; the loss is a softmax over the next item and these."""
    temperature: float = 0.1
    """Divides the cosines of states and items; the quotients are the scores."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "layers", "heads", "head_size", "max_history", "batch_size", "epochs", "patience")
        check_fields(
            self,
            self.section,
            at_least={1: (*sizes, "negatives")},
            positive=("learning_rate", "temperature"),
            shares=("dropout", "layer_dropout"),
        )


ExpertName = Literal[
    "popularity", "decayed-markov", "smoothed-markov", "item-knn", "text", "last-text", "sasrec", "bsarec", "hstu"
]
BY_TEXT: set[ExpertName] = {"smoothed-markov", "text", "last-text"}
"""Experts that go by the items' text vectors; they alone know cold items."""
NETWORKS: tuple[ExpertName, ...] = ("sasrec", "bsarec", "hstu")
"""Experts that are Transformers, trained here; each has a section of its name in the configuration."""


@dataclass
class SASRecExpertConfig(SASRecConfig):
    """The Transformer of the expert sasrec, and its training."""

    section: ClassVar[str] = "experts.sasrec"
    named_by: ClassVar[str] = "experts.models"

    patience: int = 10
    """Passes, and at least 1,500 steps, after which it stops when the NDCG@10 of validation has not risen."""
    start: Literal["random", "text"] = "text"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""


@dataclass
class BSARecExpertConfig(BSARecConfig):
    """The Transformer of the expert bsarec, which also filters a history by frequency, and its training."""

    section: ClassVar[str] = "experts.bsarec"
    named_by: ClassVar[str] = "experts.models"

    start: Literal["random", "text"] = "text"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""


@dataclass
class HSTUExpertConfig(HSTUConfig):
    """The network of the expert hstu, whose attention has a gate and no softmax, and its training."""

    section: ClassVar[str] = "experts.hstu"
    named_by: ClassVar[str] = "experts.models"

    start: Literal["random", "text"] = "text"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""


@dataclass
class ExpertsConfig:
    """Collaborative models and text neighbours that rank beside the language model."""

    models: list[ExpertName] = field(default_factory=list)
    """The experts. popularity: training events; decayed-markov: transitions over five steps; smoothed-markov: the same
    between text neighbours; item-knn: users in common; text, last-text: cosine of the text with the texts of the
    history, or with that of its last item; sasrec, bsarec, hstu: Transformers over items, trained here."""
    sasrec: SASRecExpertConfig = field(default_factory=SASRecExpertConfig)
    """The Transformer of the expert sasrec."""
    bsarec: BSARecExpertConfig = field(default_factory=BSARecExpertConfig)
    """The Transformer of the expert bsarec."""
    hstu: HSTUExpertConfig = field(default_factory=HSTUExpertConfig)
    """The network of the expert hstu."""
    candidates: int = 50
    """The weights of the fusion are learnt among so many best items of each expert, warm and cold items apart."""
    examples: int = 6000
    """Largest number of validation examples with a warm target that the weights are learnt from, drawn by the seed."""
    learned: bool = False
    """Order the best hundred items of the fused ranking by LambdaRank, trained on validation examples (the extra
    `ranker`)."""
    warm_floor: float = 0.97
    """Least recall@10 of warm targets when cold items rank too, as a share of the recall@10 without cold items."""
    seed: int = 0
    """Seed of the trained experts and of the draw of validation examples."""

    def __post_init__(self) -> None:
        check_fields(self, "experts", at_least={0: ("seed",), 1: ("candidates", "examples")}, positive=("warm_floor",))
        if len(set(self.models)) < len(self.models):
            raise UserError(f"--experts.models {self.models}: expected each expert at most once.")
        if self.learned and not self.models:
            raise UserError("--experts.learned true: there are no experts; name some with --experts.models.")

    @property
    def by_text(self) -> bool:
        """Whether one of the experts goes by the items' text vectors, or starts from them."""
        starts = {name for name in NETWORKS if getattr(self, name).start == "text"}
        return not (BY_TEXT | starts).isdisjoint(self.models)


def ranks_from_scores(scores: np.ndarray, targets: np.ndarray, seen: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Rank of each target among all N items: 1 + the number of other items that score at least as high.

    Args:
        scores: float [B, N], higher is better; -inf marks an item that the system cannot recommend.
        targets: int [B], catalogue rows.
        seen: B int arrays of items to leave out of the ranking; a target is never left out.

    Returns:
        float64 [B], from 1; inf for a target that scores -inf.

    Raises:
        ValueError: a score is NaN, or the lengths differ.
    """
    if len(scores) != len(targets) or (seen is not None and len(seen) != len(targets)):
        raise ValueError(f"{len(scores)} rows of scores for {len(targets)} targets")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so its item has no place in a ranking")
    rows = np.arange(len(targets))
    own = scores[rows, targets]
    ahead = scores >= own[:, None]
    ahead[rows, targets] = False
    if seen is not None and len(seen):
        ahead[np.repeat(rows, [len(items) for items in seen]), np.concatenate(seen)] = False
    return np.where(own == -np.inf, np.inf, 1.0 + ahead.sum(axis=1))


BATCH = 256
TEXT_DIRECTION = 0.6
"""Weight of a history item relative to the one after it in the sum of the history's text vectors."""


@dataclass(frozen=True)
class Answers:
    """What a system answers in n cases.

    Attributes:
        ranks: rank of each case's target, float64 [n] from 1; inf if the system does not rank it.
        items: the items that it ranks first, int64 [n, K] catalogue rows, best first; -1 where it ranks no more.
    """

    ranks: np.ndarray
    items: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """The answers of all parts, one after the other; at least one part."""
        return cls(np.concatenate([each.ranks for each in parts]), np.concatenate([each.items for each in parts]))


class System(ABC):
    """Anything that ranks items; a system that decodes may also have `decode_stats() -> dict`."""

    name: str
    """In the report; no two systems share one."""

    @abstractmethod
    def answers(
        self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None, listed: int = 0
    ) -> Answers:
        """Rank the items after the history of each case.

        Args:
            cases: n cases.
            filter_seen: whether the items of a history are left out of its ranking; the target never is.
            among: int [E], catalogue rows of the items that compete, which include all targets; None: all items.
            listed: K, how many items the answers list.
        """

    def ranks(self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
        """The ranks of `answers`, float64 [n]."""
        return self.answers(cases, filter_seen, among).ranks


class BaselineSystem(System):
    """What training sequences teach, and how it turns histories into scores [B, N].

    A system that is an expert can be written into a file, and it can take in items that are added later.
    """

    matrices: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are item-to-item matrices, sparse float32 [N, N]."""

    def fit(self, train_sequences: list[np.ndarray], n_items: int) -> Self:
        """Learn from U int arrays of catalogue rows (oldest first, some perhaps empty); returns itself.

        Raises:
            ValueError: no events at all.
        """
        items = np.concatenate(train_sequences) if train_sequences else np.empty(0, np.int64)
        if not len(items):
            raise ValueError(f"{self.name}: the training part has no events")
        counts = np.bincount(items, minlength=n_items)
        self.popularity = popularity(counts)
        self._learn(train_sequences, n_items)
        return self

    def answers(
        self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None, listed: int = 0
    ) -> Answers:
        parts = [Answers(np.empty(0), np.empty((0, listed), np.int64))]
        for start in range(0, len(cases), BATCH):
            histories, targets = cases.histories[start : start + BATCH], cases.targets[start : start + BATCH]
            scores = self.scores(histories)
            if among is not None:
                scores = only(scores, among)
            seen = histories if filter_seen else None
            ranks = ranks_from_scores(scores, targets, seen)
            if listed and seen is not None:
                scores = without(scores, seen, targets)
            parts.append(Answers(ranks, top(scores, listed)))
        return Answers.joined(parts)

    @abstractmethod
    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of all items after each of B non-empty histories, float32 [B, N]."""

    @abstractmethod
    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        """Keep what `scores` needs beside popularity, which is there."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learnt beside popularity and the text vectors, by its names in a file."""
        parts = ("data", "indices", "indptr")
        return {f"{name}.{part}": getattr(getattr(self, name), part) for name in self.matrices for part in parts}

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        """Take back what `arrays` gave.

        Args:
            arrays: by their names.
            counts: int [N], training events of each item.
            unit: float32 [N, D], the text vectors as `centred` gives them, if the system goes by them.

        Raises:
            KeyError, ValueError, RuntimeError: an array is missing, or has another shape or values out of range.
        """
        from scipy.sparse import csr_matrix

        self.popularity = popularity(counts)
        for name in self.matrices:
            parts = [arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr")]
            matrix = csr_matrix(tuple(parts), shape=(len(counts), len(counts)))
            matrix.check_format(full_check=True)
            setattr(self, name, matrix)

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        """A copy that knows cold items from its last row up to `n_items`; `unit` [n_items, D] as in `restore`."""
        grown = copy.copy(self)
        grown.popularity = np.append(self.popularity, np.zeros(n_items - len(self.popularity), np.float32))
        for name in self.matrices:
            matrix = getattr(self, name).copy()
            matrix.resize((n_items, n_items))
            setattr(grown, name, matrix)
        return grown

    def with_texts(self, unit: np.ndarray) -> Self:
        """A copy for other text vectors of the same items; `unit` as in `restore`."""
        return copy.copy(self)


def popularity(counts: np.ndarray) -> np.ndarray:
    """Training events int [N] as shares below 1, the smallest count, so that they only ever break ties: float32 [N]."""
    return (counts / (counts.max() + 1)).astype(np.float32)


def only(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The scores [B, N] of the columns `among` (int [E]); -inf in all others."""
    kept = np.full_like(scores, -np.inf)
    kept[:, among] = scores[:, among]
    return kept


def without(scores: np.ndarray, seen: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The scores [B, N] in which what each user has seen is -inf, except the target."""
    rows, kept = np.arange(len(targets)), scores.copy()
    kept[np.repeat(rows, [len(items) for items in seen]), np.concatenate(seen)] = -np.inf
    kept[rows, targets] = scores[rows, targets]
    return kept


def top(scores: np.ndarray, most: int) -> np.ndarray:
    """The items with the largest scores [B, N], int64 [B, most], best first; -1 where fewer score more than -inf."""
    found = np.full((len(scores), most), -1, np.int64)
    kept = min(most, scores.shape[1])
    if kept:
        best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        values = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best, values = (np.take_along_axis(each, order, axis=1) for each in (best, values))
        found[:, :kept] = np.where(np.isneginf(values), -1, best)
    return found


def incidence(sequences: list[np.ndarray], weights: list[np.ndarray], n_items: int) -> "csr_matrix":
    """Rows of weights over items, float32 [len(sequences), N]; repeated items add up."""
    from scipy.sparse import csr_matrix

    rows = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    entries = (np.concatenate(weights).astype(np.float32), (rows, np.concatenate(sequences)))
    return csr_matrix(entries, shape=(len(sequences), n_items))


def recent(histories: list[np.ndarray], recency: float, n_items: int) -> "csr_matrix":
    """Histories as rows of weights, float32 [B, N]: 1 for the last item, `recency` times less for each one before."""
    return incidence(histories, [recency ** np.arange(len(history))[::-1] for history in histories], n_items)
