"""Vectors of several sources: read from files or made by encoders, checked, and fused.

    --embed.vectors image.npy                   the vectors of image.npy, as they are
    --embed.vectors "[text, image.npy]"         the encoder's vectors and those of image.npy, fused
    --embed.vectors "[text, image]"             the encoder's vectors and those of the items' images, fused

To fuse sources, each is whitened (zero mean, the same variance in every direction), scaled so that its weight decides
its share of the squared distances, and concatenated. Items that are taken together can then be moved closer together
(`embed.align`), which QARM (arXiv 2411.11739) and OneRec (arXiv 2506.13695) do with vectors of texts and images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llmrec.checks import found
from llmrec.collaborative.behaviour import Behaviour
from llmrec.console import get_logger
from llmrec.data.catalog import Catalog
from llmrec.data.files import read_table, require_column, require_file
from llmrec.data.ids import id_column
from llmrec.data.lines import read_lines
from llmrec.embed.align import aligned, learn_head, without_log
from llmrec.embed.config import IMAGE, TEXT, EmbedConfig
from llmrec.embed.encoder import Encoder, item_texts
from llmrec.embed.image import ImageEncoder
from llmrec.errors import UserError

log = get_logger(__name__)

SUFFIXES = (".npy", ".safetensors", ".parquet")
ROWS = 16_384
"""Number of rows checked at a time."""
LEAST = 1e-6
"""A direction with less than this share of the largest variance is left out of a whitened source."""
FILE = "fusion.safetensors"


class GivenVectors(Encoder):
    """Takes the place of a text encoder for vectors that come from files or images, at least in part.

    Args:
        config: with `vectors`.
        text_encoder: makes the vectors of the source `text`; None if that is not among the sources.
    """

    def __init__(self, config: EmbedConfig, text_encoder: Encoder | None) -> None:
        super().__init__(config)
        self.text_encoder = text_encoder
        self.image_encoder = ImageEncoder(config) if config.reads_images else None
        self.maps: list[Whitening] = []
        self.head: np.ndarray | None = None

    def fit_catalog(self, catalog: Catalog, behaviour: Behaviour | None = None) -> Self:
        """Fit the text encoder on the items' texts, the whitening of each source and the alignment on their vectors.

        Args:
            catalog: N items.
            behaviour: events and co-occurrences of the same items, which only `config.align` reads.

        Raises:
            UserError: as for `of_items`; with `config.align`, there is no `behaviour`, or no item pair is frequent.
        """
        if self.text_encoder is not None:
            self.text_encoder.fit(item_texts(catalog, self.config))
        if len(self.config.sources) == 1 and not self.config.align.epochs:
            return self
        parts = self._parts(catalog, self.config.files, "--embed.vectors", report=False)
        if len(parts) > 1:
            self.maps = [
                Whitening.fit(part, weight, source)
                for part, weight, source in zip(parts, self.config.weights, self.config.sources, strict=True)
            ]
        if self.config.align.epochs:
            if behaviour is None:
                raise UserError(without_log(self.config.align))
            self.head = learn_head(self._fused(parts, "--embed.vectors"), behaviour, self.config.align)
        return self

    def of_items(self, catalog: Catalog, files: Sequence[str], flag: str) -> np.ndarray:
        """The vectors of n items, float32 [n, D].

        Args:
            catalog: n items.
            files: one file for each source that is a file, in the order of the configuration.
            flag: the setting that names the files, for messages.

        Raises:
            UserError: the number of files differs, a file can't be read, lacks an item or has other dimensions than the
                file of the fit, `text` is a source and an item has no text, or `image` is one and `ImageEncoder`
                raises it.
        """
        if len(files) != len(self.config.files):
            raise UserError(
                f"{flag}: {len(files)} files, but the catalogue's vectors came from {len(self.config.files)}: "
                f"{', '.join(self.config.files)}; give one for each, in this order."
            )
        vectors = self._fused(self._parts(catalog, files, flag, report=True), flag)
        return vectors if self.head is None else aligned(vectors, self.head, self.config.normalize)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Raise UserError: no text has a vector in this space."""
        raise UserError(
            f"the items' vectors came from {', '.join(self.config.sources)} (--embed.vectors), so texts have none; "
            "give the vectors of new items, as add-items --vectors FILE does."
        )

    def _parts(self, catalog: Catalog, files: Sequence[str], flag: str, report: bool) -> list[np.ndarray]:
        """The vectors of each source, not fused: float32 [n, D_s]; the row of an item without an image is NaN.

        `report` logs how many items have no image.
        """
        left = iter(files)
        parts = []
        for source in self.config.sources:
            if source == IMAGE:
                assert self.image_encoder is not None, "image is a source"
                parts.append(self.image_encoder.of_items(catalog, report))
            elif source == TEXT:
                assert self.text_encoder is not None, "text is a source"
                parts.append(self.text_encoder.encode(item_texts(catalog, self.config)))
            else:
                parts.append(read_vectors(next(left), catalog.ids, flag))
        return parts

    def _fused(self, parts: Sequence[np.ndarray], flag: str) -> np.ndarray:
        """The vectors float32 [n, D] of the `parts` of `_parts`."""
        if not self.maps:
            return parts[0]
        return np.concatenate(
            [each.apply(part, flag) for each, part in zip(self.maps, parts, strict=True)], axis=1, dtype=np.float32
        )

    def save(self, folder: Path) -> None:
        if self.text_encoder is not None:
            self.text_encoder.save(folder)
        tensors = {
            f"{place}.{name}": array for place, each in enumerate(self.maps) for name, array in vars(each).items()
        }
        if self.head is not None:
            tensors["head"] = self.head
        if tensors:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / FILE)

    def load(self, folder: Path) -> Self:
        if self.text_encoder is not None:
            self.text_encoder.load(folder)
        tensors = load_file(folder / FILE) if len(self.config.sources) > 1 or self.config.align.epochs else {}
        self.head = tensors.get("head")
        if len(self.config.sources) > 1:
            self.maps = [
                Whitening(tensors[f"{place}.mean"], tensors[f"{place}.matrix"])
                for place in range(len(self.config.sources))
            ]
        return self


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) matrix: on the fitted rows the mean is 0, and all directions have the same variance.

    Attributes:
        mean: float32 [D].
        matrix: float32 [D, D'], D' <= D. The variances of the D' results sum to the square of the weight.
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, weight: float, source: str) -> Self:
        """Whiten `x`, float32 [N, D], by its principal directions, without the rows that are NaN.

        `source` names it in messages.

        Raises:
            UserError: all rows of `x` are equal or NaN.
        """
        without = np.isnan(x[:, 0])
        if without.all():
            raise UserError(f"--embed.vectors {source}: no item has an image that can be read; leave this source out.")
        x = x[~without] if without.any() else x
        mean = x.mean(axis=0, dtype=np.float64)
        centred = x - mean
        variances, directions = np.linalg.eigh(centred.T @ centred / len(x))
        kept = variances > LEAST * variances[-1]
        if variances[-1] <= 0 or not kept.any():
            raise UserError(f"--embed.vectors {source}: all items have the same vector; leave this source out.")
        scale = weight / np.sqrt(variances[kept] * np.count_nonzero(kept))
        return cls(mean.astype(np.float32), (directions[:, kept] * scale).astype(np.float32))

    def apply(self, x: np.ndarray, flag: str) -> np.ndarray:
        """Whiten `x`, float32 [n, D], where a row that is NaN counts as the mean; raises UserError if D is another."""
        if x.shape[1] != len(self.mean):
            raise UserError(f"{flag}: vectors of {x.shape[1]} dimensions, those of the fit have {len(self.mean)}.")
        centred = x - self.mean
        centred[np.isnan(x[:, 0])] = 0
        return np.asarray(centred @ self.matrix, np.float32)


def read_vectors(path: str | Path, item_ids: Sequence[str], flag: str) -> np.ndarray:
    """The vectors of the n items `item_ids`, in their order: float32 [n, D]. A file may hold further items too.

    A parquet file has a column `item_id` and one column of lists of numbers. An .npy or .safetensors file holds one
    matrix [rows, D], and the file NAME.ids.txt beside it (or item_ids.parquet, as in the folder `embed` of a run) the
    id of each row.

    Raises:
        UserError: the file is missing, unreadable or of another form, an id stands there twice, an item has no vector,
            or a vector holds NaN or infinity.
    """
    path = require_file(path, flag)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{flag} {path}: unknown kind of file; expected {', '.join(SUFFIXES)}.")
    ids, matrix = _parquet(path, flag) if path.suffix == ".parquet" else (_ids_beside(path, flag), _matrix(path, flag))
    if matrix.ndim != 2 or not matrix.shape[1] or not np.issubdtype(matrix.dtype, np.number):
        raise UserError(f"{flag} {path}: found {matrix.dtype} of shape {matrix.shape}, expected numbers [rows, D].")
    if len(ids) != len(matrix):
        raise UserError(f"{flag} {path}: {len(matrix)} rows, but {len(ids)} ids; expected one id per row.")
    rows = {item: row for row, item in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(item for row, item in enumerate(ids) if rows[item] != row)
        raise UserError(f"{flag} {path}: item {twice!r} stands there twice; keep one of its vectors.")
    missing = [item for item in item_ids if item not in rows]
    if missing:
        raise UserError(
            f"{flag} {path}: no vector for {len(missing)} of the {len(item_ids)} items, such as {missing[0]!r} (ids "
            f"there look like {ids[0]!r}); add them, or drop these items from the catalogue."
            if ids
            else f"{flag} {path}: empty; expected a vector for each of the {len(item_ids)} items."
        )
    if len(ids) > len(item_ids):
        log.info("%s: %d of its %d vectors are of other items", path, len(ids) - len(item_ids), len(ids))
    vectors = np.asarray(matrix[[rows[item] for item in item_ids]], np.float32)
    require_finite(item_ids, vectors, f"{flag} {path}: ")
    return vectors


def as_vectors(vectors: ArrayLike, name: str, item_ids: Sequence[str] | None = None) -> np.ndarray:
    """The vectors that a caller gives, as an array [N, D] of numbers; one that is mapped from a file stays so.

    Args:
        vectors: an array, or what numpy can make one of: nested lists, a tensor, a frame.
        name: what the error message calls them.
        item_ids: of the N items; None for any number of vectors.

    Raises:
        UserError: the array has another shape or type; or, with `item_ids`, NaN or infinite values.
    """
    if hasattr(vectors, "detach"):  # a tensor, perhaps of bfloat16, which numpy lacks
        vectors = vectors.detach().float().cpu().numpy()
    try:
        array = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors)
    except (TypeError, ValueError):
        raise UserError(
            f"{name}: found {found(vectors)} with rows of several lengths; expected numbers [n, D]."
        ) from None
    if array.dtype.kind in "OSUMmc":
        raise UserError(f"{name} of type {array.dtype}; expected numbers [n, D].")
    if item_ids is None and array.ndim != 2:
        raise UserError(f"{name} of shape {array.shape}; expected [n, D].")
    if item_ids is not None and (array.ndim != 2 or len(array) != len(item_ids)):
        raise UserError(f"{name} of shape {array.shape} for {len(item_ids)} items; expected one row per item.")
    if item_ids is not None:
        require_finite(item_ids, array)
    return array


def require_finite(item_ids: Sequence[str], vectors: np.ndarray, where: str = "") -> None:
    """Raise UserError, which names an item, if `vectors` (floats [N, D]) contains NaN or infinity.

    `where` begins the message.
    """
    finite = np.empty(len(vectors), bool)
    for start in range(0, len(vectors), ROWS):
        finite[start : start + ROWS] = np.isfinite(vectors[start : start + ROWS]).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{where}the embedding of item {item_ids[int(finite.argmin())]!r} holds NaN or infinity "
            f"({int((~finite).sum())} such items); embed it again or drop it"
        )


def _parquet(path: Path, flag: str) -> tuple[list[str], np.ndarray]:
    frame = read_table(path, flag)
    require_column(frame, "item_id", f"{flag} {path}", "the column of item ids")
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array)]
    if len(lists) != 1:
        raise UserError(f"{flag} {path}: {len(lists)} columns of lists, expected one, with the vectors.")
    values = frame[lists[0]]
    values = values.arr.to_list() if isinstance(values.dtype, pl.Array) else values
    lengths = values.list.len().unique().sort().to_list()
    if len(lengths) > 1:
        raise UserError(f"{flag} {path}: vectors of {lengths[:3]} numbers, expected one length for all rows.")
    numbers = values.explode()
    if not numbers.dtype.is_numeric():
        raise UserError(f"{flag} {path}: lists of {numbers.dtype}, expected lists of numbers.")
    matrix = numbers.cast(pl.Float32).to_numpy().reshape(len(values), -1)  # a gap in a list becomes NaN
    return id_column(frame["item_id"], f"{flag} {path}").to_list(), matrix


def _matrix(path: Path, flag: str) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        tensors = load_file(path)
    except (OSError, ValueError, EOFError, TypeError, KeyError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{flag} {path}: can't be read as {path.suffix}: {reason}.") from None
    if len(tensors) != 1:
        raise UserError(f"{flag} {path}: {len(tensors)} tensors, expected one, [rows, D].")
    return next(iter(tensors.values()))


def _ids_beside(path: Path, flag: str) -> list[str]:
    beside = _beside(path, flag)
    if beside.suffix == ".txt":
        return [line for _, line in read_lines(beside)]
    frame = read_table(beside, flag)
    require_column(frame, "item_id", f"{flag} {beside}", "the column of item ids")
    return id_column(frame["item_id"], f"{flag} {beside}").to_list()


def _beside(path: Path, flag: str) -> Path:
    """The file with the ids of the rows of `path`."""
    texts, table = path.with_suffix(".ids.txt"), path.with_name("item_ids.parquet")
    if not texts.is_file() and not table.is_file():
        raise UserError(f"{flag} {path}: no {texts.name} beside it; write the item id of each row there, one per line.")
    return texts if texts.is_file() else table


def vector_files(config: EmbedConfig) -> list[Path]:
    """All files that the sources of `config` consist of.

    Raises:
        UserError: one is missing.
    """
    flag = "--embed.vectors"
    paths = [require_file(source, flag) for source in config.files]
    return [*paths, *(_beside(path, flag) for path in paths if path.suffix != ".parquet")]
