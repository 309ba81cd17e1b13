"""TF-IDF + SVD (latent semantic analysis): vectors with no pretrained weights at all."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from llmrec.embed.encoder import Encoder
from llmrec.errors import UserError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_TERMS = 30_000
"""Most frequent words and word pairs kept."""


class TfidfEncoder(Encoder):
    """Words and word pairs, sublinear TF-IDF, projected on the leading singular vectors.

    A text of unknown words only gets the zero vector.
    """

    vocabulary: list[str]
    """Terms [V]."""
    idf: np.ndarray
    """Inverse document frequencies, float64 [V]."""
    components: np.ndarray
    """Right singular vectors, float32 [D, V]."""

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn terms and projection from the catalogue's texts.

        Raises:
            UserError: the texts hold no word, or fewer items or terms than `--embed.dim`.
        """
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _vectorizer(max_features=MAX_TERMS)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError as error:  # sklearn: empty vocabulary
            raise UserError("the items' texts hold no words; check --embed.template") from error
        if min(counts.shape) < self.config.dim:
            raise UserError(
                f"{counts.shape[0]} items with {counts.shape[1]} terms cannot give {self.config.dim} "
                f"dimensions; set --embed.dim to {min(counts.shape)} or less"
            )
        svd = TruncatedSVD(self.config.dim, random_state=0).fit(counts)
        self.vocabulary = vectorizer.get_feature_names_out().tolist()
        self.idf = vectorizer.idf_
        self.components = np.ascontiguousarray(svd.components_, np.float32)
        return self

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.asarray(self._fitted.transform(texts) @ self.components.T, np.float32)
        if self.config.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    @cached_property
    def _fitted(self) -> "TfidfVectorizer":
        vectorizer = _vectorizer(vocabulary=self.vocabulary)
        vectorizer.idf_ = self.idf
        return vectorizer

    def save(self, folder: Path) -> None:
        (folder / "encoder.json").write_text(json.dumps({"vocabulary": self.vocabulary}, ensure_ascii=False), "utf-8")
        save_file({"idf": self.idf, "components": self.components}, folder / "encoder.safetensors")

    def load(self, folder: Path) -> Self:
        self.vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))["vocabulary"]
        tensors = load_file(folder / "encoder.safetensors")
        self.idf, self.components = tensors["idf"], tensors["components"]
        return self


def _vectorizer(max_features: int | None = None, vocabulary: list[str] | None = None) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        token_pattern=r"(?u)\b\w+\b",
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=max_features,
        vocabulary=vocabulary,
    )
