"""Vectors read a part at a time, so that a report on a million items copies none of them whole."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from llmrec.quantize.base import BLOCK, Quantizer


class Rows(Protocol):
    """N vectors of D dimensions: an array, perhaps memory-mapped, or what makes the rows it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Reconstruction:
    """What `quantizer` decodes of `codes` [N, L], row by row when asked."""

    def __init__(self, quantizer: Quantizer, codes: np.ndarray) -> None:
        self._quantizer = quantizer
        self._codes = codes

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._quantizer.decode(self._codes[rows])


def blocks(x: Rows) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each block stands in `x` [N, D], and its rows, float32."""
    for start in range(0, len(x), BLOCK):
        where = slice(start, min(start + BLOCK, len(x)))
        yield where, np.asarray(x[where], np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """The rows of `x` [N, D] scaled to length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
