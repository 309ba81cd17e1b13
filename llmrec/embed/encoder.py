"""The interface of every encoder: texts to vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from llmrec.embed.config import EmbedConfig


class Encoder(ABC):
    """Turns texts into vectors; items and queries go through the same one."""

    def __init__(self, config: EmbedConfig) -> None:
        self.config = config

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn from the catalogue's texts; pretrained encoders have nothing to learn."""
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (float32 [n, D]) of `texts`, in their order.

        Raises:
            UserError: the model cannot be loaded.
        """

    def save(self, folder: Path) -> None:  # noqa: B027 - nothing to save is the common case
        """Write what `fit` learned into `folder`; the config is kept by the caller."""

    def load(self, folder: Path) -> Self:
        """Read back what `save` wrote."""
        return self
