"""The interface of every quantizer: item embeddings [N, D] to codes [N, L] and back.

A method subclasses `Quantizer`, fills in the five hooks at its end, and gets one line in `methods.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
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
        """Size of each level's codebook [L]; methods with uneven levels override this."""
        return [self._config.codes] * self._config.levels

    def fit(self, x: np.ndarray) -> Self:
        """Learn from the embeddings `x` (float32 [N, D]) and return self.

        Raises:
            UserError: `x` holds NaN or infinity, or fewer distinct rows than a level has codes.
        """
        x = _matrix(x)
        _require_distinct(x, self.codes)
        self._fit(x)
        return self

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of the embeddings `x` (float32 [N, D]), seen in `fit` or not.

        Raises:
            UserError: `x` holds NaN or infinity, or D is not that of `fit`.
        """
        x = _matrix(x)
        if x.shape[1] != self.dims:
            raise UserError(
                f"the embeddings have {x.shape[1]} dimensions, this quantizer was fitted on {self.dims}; "
                "embed with the encoder it was fitted with"
            )
        return _in_blocks(self._encode, x, np.empty((len(x), self.levels), np.int32))

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
        return _in_blocks(self._decode, codes, np.empty((len(codes), self.dims), np.float32))

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
    def _fit(self, x: np.ndarray) -> None:
        """Learn from `x`, float32 [N, D], finite, with at least C distinct rows."""

    @abstractmethod
    def _encode(self, x: np.ndarray) -> np.ndarray:
        """Codes [B, L] of the block `x`, float32 [B, D]."""

    @abstractmethod
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions [B, D] of the block `codes`, integers [B, L]."""

    @abstractmethod
    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Take over what `tensors()` gave."""


def _in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, out: np.ndarray) -> np.ndarray:
    for start in range(0, len(rows), BLOCK):
        out[start : start + BLOCK] = function(rows[start : start + BLOCK])
    return out


def _matrix(x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"embeddings have shape {x.shape}, expected [N, D]")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise UserError(f"row {int(finite.argmin())} of the embeddings holds NaN or infinity; embed it again")
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
