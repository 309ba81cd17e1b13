"""The interface of every quantizer: item embeddings [N, D] to codes [N, L] and back.

A method subclasses `Quantizer`, fills in the five hooks at its end, and gets one line in `methods.py`.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, Self

import numpy as np

from llmrec.errors import UserError
from llmrec.quantize.config import TokenizeConfig

BLOCK = 16_384
"""Rows quantized at a time; bounds the memory of the distance table to BLOCK x C floats."""


class Quantizer(ABC):
    """Fitted on embeddings, turns each into `levels` codes and turns codes into a reconstruction."""

    def __init__(self, config: TokenizeConfig) -> None:
        self._config = config

    @property
    def levels(self) -> int:
        """L, codes per item."""
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
        """How many different rows `fit` needs; methods whose codes need no item each override this."""
        return self.codes

    def fit(self, x: np.ndarray, collaborative: np.ndarray | None = None) -> Self:
        """Learn from the embeddings `x` and return self.

        Args:
            x: floats [N, D], perhaps memory-mapped; a seeded sample of `fit_rows` rows is learned from if N is larger.
            collaborative: float32 [N, F], rows of zeros for items without training events; only for a method whose
                loss asks for them.

        Raises:
            UserError: `x` holds NaN or infinity, or fewer distinct rows than `least_distinct`.
        """
        rows = sample(np.arange(len(x)), self._config.fit_rows, self._config.seed)
        for start in range(0, len(x), BLOCK):
            as_matrix(x[start : start + BLOCK], start)
        learned_from = as_matrix(x if len(rows) == len(x) else x[rows])
        _require_distinct(learned_from, self.least_distinct)
        self._fit(learned_from, collaborative if collaborative is None else collaborative[rows])
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of the embeddings `x` (floats [N, D]), each row alone, seen in `fit` or not.

        Raises:
            UserError: `x` holds NaN or infinity, or D is not that of `fit`.
        """
        self._require_dims(x)
        codes = np.empty((len(x), self.levels), np.int32)
        for start in range(0, len(x), BLOCK):
            codes[start : start + BLOCK] = self._encode(as_matrix(x[start : start + BLOCK], start))
        return codes

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of a whole catalogue `x` (floats [N, D]); a balanced method sees all rows at once."""
        return self.encode(x)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions (float32 [N, D]) of `codes` (integers [N, L]).

        Raises:
            ValueError: a code outside its level's codebook, or another number of levels.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.levels:
            raise ValueError(f"codes have shape {codes.shape}, expected [N, {self.levels}]")
        if ((codes < 0) | (codes >= self.level_sizes)).any():
            raise ValueError(f"a code lies outside its level's range; the level sizes are {self.level_sizes}")
        x = np.empty((len(codes), self.dims), np.float32)
        for start in range(0, len(codes), BLOCK):
            x[start : start + BLOCK] = self._decode(codes[start : start + BLOCK])
        return x

    def decode_first(self, codes: np.ndarray) -> np.ndarray | None:
        """Reconstructions (float32 [B, D]) by the first levels alone of the block `codes` (integers [B, m], m <= L).

        None for a method whose codes mean nothing without the rest.
        """
        return None

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Squared error (float32 [N, C]) that each code of the last level would give `x` [N, D] after `codes` [N, L-1].

        Here, of the reconstruction; a method that quantizes in a space of its own measures there.
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

    def _require_dims(self, x: np.ndarray) -> None:
        """Fail unless `x` [N, D] has the D of `fit`."""
        if x.shape[1] != self.dims:
            raise UserError(
                f"the embeddings have {x.shape[1]} dimensions, this quantizer was fitted on {self.dims}; "
                "embed with the encoder it was fitted with"
            )

    def config(self) -> dict[str, Any]:
        """What `from_state` needs beside the tensors, ready for JSON."""
        return asdict(self._config)

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        """The fitted quantizer whose `config()` and `tensors()` these are."""
        quantizer = cls(TokenizeConfig.from_dict(config))
        quantizer._restore(tensors)
        return quantizer

    @property
    @abstractmethod
    def dims(self) -> int:
        """D, dimensions of the embeddings it was fitted on."""

    @abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """All that was learned, as named arrays."""

    @abstractmethod
    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None) -> None:
        """Learn from `x`, float32 [N, D], finite, with at least `least_distinct` distinct rows."""

    @abstractmethod
    def _encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [B, L] of the block `x`, float32 [B, D]."""

    @abstractmethod
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions [B, D] of the block `codes`, integers [B, L]."""

    @abstractmethod
    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Take over what `tensors()` gave."""


def sample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All of `rows`, or a sorted seeded sample of `most` of them."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def as_matrix(x: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Finite contiguous float32 [B, D] of rows from `first_row` on; a torch tensor of any float type will do."""
    if hasattr(x, "detach"):  # numpy knows no bfloat16
        x = x.detach().float().cpu().numpy()
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"embeddings have shape {x.shape}, expected [N, D]")
    # A row's sum tells at a fraction of the cost; where finite values overflow it, the values themselves do.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(x.sum(axis=1)).all():
            return x
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        row = first_row + int(finite.argmin())
        raise UserError(f"row {row} of the embeddings holds NaN or infinity; embed it again")
    return x


def _require_distinct(x: np.ndarray, codes: int) -> None:
    """Fail unless `x` has at least `codes` distinct rows; stops counting once it has."""
    distinct: set[bytes] = set()
    for row in x:
        distinct.add(row.tobytes())
        if len(distinct) >= codes:
            return
    raise UserError(
        f"{len(x)} items with {len(distinct)} distinct embeddings cannot fill {codes} codes per level; "
        f"set --tokenize.codes to {max(len(distinct), 2)} or less, or embed more telling text"
    )


BYTES = 8
"""Of the hash per level; the bias of taking their remainder is C / 2^64."""


class RandomCodes(Quantizer):
    """Codes by a seeded hash of each row's float32 bytes; every reconstruction is the mean of the fitted rows."""

    mean: np.ndarray
    """float32 [D]."""

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

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None) -> None:
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        seed = self._config.seed.to_bytes(8, "little")
        rows = (x + 0.0).astype("<f4")  # -0.0 becomes 0.0; the same codes on every machine
        # SHAKE gives as many bytes as there are levels to fill
        digests = b"".join(hashlib.shake_128(seed + row.tobytes()).digest(BYTES * self.levels) for row in rows)
        numbers = np.frombuffer(digests, "<u8").reshape(len(x), self.levels)
        return (numbers % np.array(self.level_sizes, np.uint64)).astype(np.int32)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.mean, (len(codes), self.dims))
