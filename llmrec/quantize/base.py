"""The interface of every quantizer: item embeddings [N, D] to codes [N, L] and back.

A method is a subclass of `Quantizer` that implements the abstract methods, and has one line in `methods.py`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np

from llmrec.errors import UserError
from llmrec.quantize.config import TokenizeConfig

BLOCK = 16_384
"""The number of rows quantized at a time. It limits the distance table to BLOCK x C floats."""


class Rows(Protocol):
    """N vectors of D dimensions: an array (possibly memory-mapped), or an object that computes rows on request."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Some:
    """The given `rows`, ints [n], of `x` [N, D]; read as float32 when asked for, so that they are not copied whole."""

    def __init__(self, x: Rows, rows: np.ndarray) -> None:
        self._x, self._rows = x, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return as_matrix(self._x[self._rows[rows]])


@dataclass(frozen=True)
class LikelyWord:
    """A word of the text that codes stand for.

    Attributes:
        word: in lower case.
        probability: that a word of such a text is this one; over the whole vocabulary, the probabilities sum to 1.
    """

    word: str
    probability: float


class Quantizer(ABC):
    """Base class: `fit` learns from embeddings, `encode` turns each into L codes, `decode` turns codes back."""

    def __init__(self, config: TokenizeConfig) -> None:
        self._config = config

    @property
    def levels(self) -> int:
        """L, the number of codes per item."""
        return self._config.levels

    @property
    def codes(self) -> int:
        """C, the size of the largest codebook."""
        return max(self.level_sizes)

    @property
    def level_sizes(self) -> list[int]:
        """Size of each level's codebook [L]."""
        return self._config.level_sizes

    @property
    def least_distinct(self) -> int:
        """Number of distinct rows that `fit` needs; a method that does not need one item per code overrides this."""
        return self.codes

    @property
    def training(self) -> dict[str, Any] | None:
        """What `fit` measured while it trained, as JSON values for the report; None for a method that measures nothing.

        `epochs`, `loss` and `collision_rate`, lists of equal length, and `kept`, the epoch whose weights are kept.
        """
        return None

    @property
    def word_perplexity(self) -> list[float] | None:
        """How well the codes tell the words of the fitted texts; None for a method without a text decoder.

        1 + L perplexities of a word: by the words' frequencies alone, and by the first 1, 2, ... L codes.
        """
        return None

    def fit(self, x: np.ndarray, collaborative: np.ndarray | None = None, texts: Sequence[str] | None = None) -> Self:
        """Learn from the embeddings `x` and return self.

        Args:
            x: floats [N, D], may be memory-mapped. If N is above `fit_rows`, `fit` learns from a seeded sample of
                `fit_rows` rows.
            collaborative: float32 [N, F], a row of zeros for each cold item; only for a method whose loss uses it.
            texts: N texts, empty for an item without one; only for a method with a text decoder.

        Returns:
            The fitted quantizer itself.

        Raises:
            UserError: `x` contains NaN or infinity, or has fewer distinct rows than `least_distinct`; or the method
                needs collaborative vectors or texts, and they are missing or unfit.
        """
        rows = sample(np.arange(len(x)), self._config.fit_rows, self._config.seed)
        require_finite_rows(x)
        learned_from = as_matrix(x if len(rows) == len(x) else x[rows])
        _require_distinct(learned_from, self.least_distinct, len(x))
        vectors = collaborative if collaborative is None else collaborative[rows]
        self._fit(learned_from, vectors, texts if texts is None else [texts[row] for row in rows])
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of the embeddings `x` (floats [N, D]).

        Each row is encoded alone and need not be one of the rows of `fit`.

        Raises:
            UserError: `x` contains NaN or infinity, or its D differs from that of `fit`.
        """
        self._require_dims(x)
        codes = np.empty((len(x), self.levels), np.int32)
        for start in range(0, len(x), BLOCK):
            codes[start : start + BLOCK] = self._encode(as_matrix(x[start : start + BLOCK], start))
        return codes

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of a whole catalogue `x` (floats [N, D]).

        Here the same as `encode`. A balanced method overrides it and assigns all rows together.
        """
        return self.encode(x)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions (float32 [N, D]) of `codes` (integers [N, L]).

        Raises:
            ValueError: a code is outside its level's codebook, or the number of levels is not L.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ValueError(f"codes have shape {codes.shape}, expected [N, {self.levels}]")
        self._require_in_range(codes)
        x = np.empty((len(codes), self.dims), np.float32)
        for start in range(0, len(codes), BLOCK):
            x[start : start + BLOCK] = self._decode(codes[start : start + BLOCK])
        return x

    def decode_first(self, codes: np.ndarray) -> np.ndarray | None:
        """Reconstructions (float32 [B, D]) from the first m levels only, `codes` (integers [B, m], m <= L).

        None if the method can't reconstruct from a part of the levels.
        """
        return None

    def words_of(self, codes: np.ndarray, most: int) -> list[list[LikelyWord]] | None:
        """The words that best distinguish the texts of `codes` (integers [n, m], m <= L) from all texts.

        The score of a word is p log(p / q), as in `telling_words`, with p its probability under the codes, and q its
        share of the words of all fitted texts. A word needs a score above 0.

        Returns:
            Per tuple at most `most` words, best first; None for a method without a text decoder.

        Raises:
            ValueError: a code is outside its level's codebook.
        """
        return None

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Squared error (float32 [N, C]) of `x` [N, D] for each code of the last level after `codes` [N, L-1].

        This is the error of the reconstruction. A method that quantizes in a latent space overrides it and measures
        the error there.
        """
        size = self.level_sizes[-1]
        costs = np.empty((len(x), size), np.float32)
        step = max(1, BLOCK // size)
        for start in range(0, len(x), step):
            block, prefix = x[start : start + step], codes[start : start + step]
            every = np.column_stack([np.repeat(prefix, size, axis=0), np.tile(np.arange(size), len(prefix))])
            errors = ((np.repeat(block, size, axis=0) - self._decode(every)) ** 2).sum(axis=1)
            costs[start : start + step] = errors.reshape(len(block), size)
        return costs

    def _require_in_range(self, codes: np.ndarray) -> None:
        """Raise ValueError if one of `codes` [n, m], m <= L, is outside its level's codebook."""
        if ((codes < 0) | (codes >= self.level_sizes[: codes.shape[1]])).any():
            raise ValueError(f"a code lies outside its level's range; the level sizes are {self.level_sizes}")

    def _require_dims(self, x: np.ndarray) -> None:
        """Raise UserError if `x` [N, D] does not have the D of `fit`."""
        if x.shape[1] != self.dims:
            raise UserError(
                f"the embeddings have {x.shape[1]} dimensions, this quantizer was fitted on {self.dims}; "
                "embed with the encoder it was fitted with"
            )

    def config(self) -> dict[str, Any]:
        """The settings that `from_state` needs in addition to the tensors, as JSON values."""
        return asdict(self._config)

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        """The fitted quantizer that returned this `config()` and these `tensors()`."""
        quantizer = cls(TokenizeConfig.from_dict(config))
        quantizer._restore(tensors)
        return quantizer

    @property
    @abstractmethod
    def dims(self) -> int:
        """D, the number of dimensions of the embeddings that the quantizer was fitted on."""

    @abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that `fit` learned, as named arrays."""

    @abstractmethod
    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        """Learn from `x` (float32 [N, D]), which is finite and has at least `least_distinct` distinct rows."""

    @abstractmethod
    def _encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [B, L] of the block `x`, float32 [B, D]."""

    @abstractmethod
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions [B, D] of the block `codes`, integers [B, L]."""

    @abstractmethod
    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Set the learned state from the arrays that `tensors()` returned."""


def sample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All of `rows` [N] if N <= `most`; otherwise a sorted, seeded sample of `most` of them."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def require_finite_rows(x: np.ndarray) -> None:
    """Raise UserError if `x` [N, D], which is read in blocks, contains NaN or infinity."""
    for start in range(0, len(x), BLOCK):
        as_matrix(x[start : start + BLOCK], start)


def as_matrix(x: np.ndarray, first_row: int = 0) -> np.ndarray:
    """`x` as a contiguous float32 array [B, D].

    Args:
        x: floats [B, D], an array or a torch tensor of any float type.
        first_row: the catalogue row of `x[0]`, for the error message.

    Raises:
        UserError: `x` contains NaN or infinity.
        ValueError: `x` does not have two dimensions.
    """
    if hasattr(x, "detach"):  # numpy has no bfloat16
        x = x.detach().float().cpu().numpy()
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"embeddings have shape {x.shape}, expected [N, D]")
    # Check the row sums first: this is much cheaper. A sum of finite values can overflow; then check every value.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(x.sum(axis=1)).all():
            return x
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        row = first_row + int(finite.argmin())
        raise UserError(f"row {row} of the embeddings holds NaN or infinity; embed it again")
    return x


def _require_distinct(x: np.ndarray, codes: int, items: int) -> None:
    """Raise UserError if `x` [n, D] has fewer than `codes` distinct rows; the count stops at `codes`.

    `x` is a sample of `items` rows, or all of them.
    """
    distinct: set[bytes] = set()
    for row in x:
        distinct.add(row.tobytes())
        if len(distinct) >= codes:
            return
    if len(x) < min(codes, items):
        raise UserError(
            f"--tokenize.fit_rows {len(x)}: so few of the {items} items cannot fill {codes} codes per level; set it to "
            f"{codes} or more (many times --tokenize.codes is best), or --tokenize.codes to {max(len(x), 2)} or less"
        )
    if len(distinct) == 1:
        raise UserError(
            f"{len(x)} items with 1 distinct embedding: no codes can tell them apart; name fields in which the items "
            "differ in --embed.template, or choose another --embed.encoder"
        )
    raise UserError(
        f"{len(x)} items with {len(distinct)} distinct embeddings cannot fill {codes} codes per level; "
        f"set --tokenize.codes to {len(distinct)} or less, or embed more telling text"
    )


BYTES = 8
"""Bytes of the hash per level. The code is their remainder modulo C, with a bias of C / 2^64."""


class RandomCodes(Quantizer):
    """Codes are a seeded hash of each row's float32 bytes; every reconstruction is the mean of the fitted rows."""

    mean: np.ndarray
    """Mean of the fitted rows, float32 [D]."""

    @property
    def dims(self) -> int:
        return len(self.mean)

    @property
    def least_distinct(self) -> int:
        return 2

    def tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.mean = tensors["mean"]

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        seed = self._config.seed.to_bytes(8, "little")
        rows = (x + 0.0).astype("<f4")  # -0.0 becomes 0.0, so the codes are the same on every machine
        # SHAKE gives a digest of any length: BYTES bytes for each level
        digests = b"".join(hashlib.shake_128(seed + row.tobytes()).digest(BYTES * self.levels) for row in rows)
        numbers = np.frombuffer(digests, "<u8").reshape(len(x), self.levels)
        return (numbers % np.array(self.level_sizes, np.uint64)).astype(np.int32)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.mean, (len(codes), self.dims))
