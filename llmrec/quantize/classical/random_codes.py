"""Random codes: the control that every quantizer must beat.

A hash of the embedding, so that unseen items have codes too and equal embeddings share theirs; nothing is alike
between the codes of items that are alike.
"""

import hashlib

import numpy as np

from llmrec.quantize.base import Quantizer

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
