"""Semantic IDs as categorical features for any ranker, such as a model of click-through rates (CTR).

A ranker usually learns one embedding per item, which says nothing about a cold item. Features made of codes are shared
by items with similar content, so that a cold item starts from the embeddings of the warm items that share its codes
(Singh et al., arXiv 2306.08121). For codes (4, 7, 1):

    unigram: one feature per level: level 0 is 4, level 1 is 7, level 2 is 1
    prefix:  one feature per prefix: (4), (4, 7), (4, 7, 1)        (Zheng et al., arXiv 2504.02137)

A user gets codes as well: the mean vector of the user's history, quantized by the same codebooks (UIST, Liu et al.,
WWW 2024, arXiv 2403.08206).

    features = CodeFeatures([256, 256, 256])
    rows = features.rows_of("prefix", codes)                          # codes [n, 3] -> rows [n, 3]
    embedding = code_embedding(features.size("prefix"), dim=32)
    embedding(torch.from_numpy(rows))                                 # -> [n, 32], the sum of three embeddings
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from torch import nn

from llmrec.atomic import write_file, write_text
from llmrec.errors import UserError
from llmrec.quantize.base import BLOCK, Quantizer
from llmrec.quantize.tokenizer import ItemTokenizer

Kind = Literal["unigram", "prefix"]
KINDS: tuple[Kind, ...] = ("unigram", "prefix")

SCHEMA = 1


@dataclass(frozen=True)
class CodeFeatures:
    """The rows of one embedding table that the codes of an item or a user select.

    The features of one kind share a table. Each level has its own part of the table, one part after the other.

    Attributes:
        level_sizes: number of codes of each of the L levels.
        most: largest number of rows of one part; a level with more different prefixes is hashed into so many rows.
    """

    level_sizes: Sequence[int]
    most: int = 65_536

    def parts(self, kind: Kind) -> list[int]:
        """Number of rows of each of the L parts of the table."""
        if kind == "unigram":
            return list(self.level_sizes)
        return [min(math.prod(self.level_sizes[: level + 1]), self.most) for level in range(len(self.level_sizes))]

    def size(self, kind: Kind) -> int:
        """Number of rows of the table."""
        return sum(self.parts(kind))

    def rows_of(self, kind: Kind, codes: np.ndarray) -> np.ndarray:
        """The L rows of each of n semantic IDs.

        Args:
            kind: of features.
            codes: integers [n, L].

        Returns:
            int64 [n, L], from 0 to `size(kind)` - 1.
        """
        codes = np.asarray(codes, np.int64)
        parts = self.parts(kind)
        offsets = np.cumsum([0, *parts[:-1]])
        if kind == "unigram":
            return codes + offsets
        rows, state = np.empty_like(codes), np.zeros(len(codes), np.uint64)
        for level, (size, part) in enumerate(zip(self.level_sizes, parts, strict=True)):
            known = math.prod(self.level_sizes[:level]) <= self.most  # the state is the number of the prefix
            state = (state if known else _mixed(state)) * np.uint64(size) + codes[:, level].astype(np.uint64)
            hashed = math.prod(self.level_sizes[: level + 1]) > self.most
            rows[:, level] = (_mixed(state) % np.uint64(part) if hashed else state).astype(np.int64)
        return rows + offsets


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A hash of each number, uint64 [n]: the last step of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def code_embedding(size: int, dim: int, sparse: bool = False) -> nn.EmbeddingBag:
    """An embedding of `dim` dimensions per row of a table of `size` rows; a semantic ID gets the sum over its rows.

    Args:
        size: `CodeFeatures.size` of a kind, or the field `rows` of it in features.json.
        dim: dimensions.
        sparse: sparse gradients, which cost the rows in use alone; SGD, Adagrad and SparseAdam take them.
    """
    return nn.EmbeddingBag(size, dim, mode="sum", sparse=sparse)


def user_codes(histories: Sequence[np.ndarray], vectors: np.ndarray, quantizer: Quantizer, last: int) -> np.ndarray:
    """Codes of users: the mean vector of the last items of each history, quantized as an item is (UIST).

    Args:
        histories: n arrays of catalogue rows, none empty.
        vectors: of the catalogue's items, floats [N, D].
        quantizer: of these vectors.
        last: number of items of a history that count.

    Returns:
        int32 [n, L].
    """
    from scipy.sparse import csr_array

    codes = np.empty((len(histories), quantizer.levels), np.int32)
    for start in range(0, len(histories), BLOCK):
        recent = [history[-last:] for history in histories[start : start + BLOCK]]
        lengths = np.array([len(history) for history in recent])
        weights = np.repeat(1 / lengths, lengths).astype(np.float32)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        means = csr_array((weights, np.concatenate(recent), ends), shape=(len(recent), len(vectors))) @ vectors
        codes[start : start + BLOCK] = quantizer.encode(means)
    return codes


def item_codes(tokenizer: ItemTokenizer, item_ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Codes of N items without the dedup level, int32 [N, L]; those that the tokenizer lacks are quantized.

    Args:
        tokenizer: a fitted tokenizer.
        item_ids: N ids.
        vectors: of the items, floats [N, D].
    """
    levels = tokenizer.quantizer.levels
    known = {item: row for row, item in enumerate(tokenizer.item_ids)}
    rows = np.array([known.get(item, -1) for item in item_ids])
    codes = tokenizer.codes[rows, :levels].astype(np.int32)
    codes[rows < 0] = tokenizer.encode(vectors[rows < 0])
    return codes


def save_features(
    folder: Path,
    features: CodeFeatures,
    items: tuple[Sequence[str], np.ndarray],
    users: tuple[Sequence[str], np.ndarray],
) -> None:
    """Write items.parquet, users.parquet (an id, `codes`, and the rows of each kind) and features.json.

    Args:
        folder: a new or an empty one.
        features: the tables.
        items: ids and codes, integers [N, L].
        users: ids and codes, integers [U, L].

    Raises:
        UserError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: exists already; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (ids, codes) in (("item", items), ("user", users)):
        columns: dict[str, np.ndarray] = {"codes": codes}
        columns |= {kind: features.rows_of(kind, codes) for kind in KINDS}
        lists = [pl.Series(kind, array).arr.to_list() for kind, array in columns.items()]
        frame = pl.DataFrame([pl.Series(f"{name}_id", ids, pl.String), *lists])
        write_file(folder / f"{name}s.parquet", frame.write_parquet)
    header: dict[str, object] = {"schema": SCHEMA, "level_sizes": list(features.level_sizes)}
    header |= {kind: {"rows": features.size(kind), "parts": features.parts(kind)} for kind in KINDS}
    write_text(folder / "features.json", json.dumps(header, indent=2) + "\n")
