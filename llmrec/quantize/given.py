"""Semantic IDs made elsewhere: `--tokenize.file` reads them and makes a quantizer that fits them.

{"0": ["<a_12>", "<b_7>"], "1": ["<a_3>", "<b_0>"]}    index.json of LC-Rec, LETTER or MiniOneRec
item_id,codes                                           a table; the codes are a list, or a text such as 12 7
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.files import read_json, read_table, require_column, require_file
from llmrec.data.ids import id_column
from llmrec.errors import UserError
from llmrec.quantize.base import BLOCK
from llmrec.quantize.classical.residual import Residual, RQKMeans
from llmrec.quantize.config import TokenizeConfig

FLAG = "--tokenize.file"
MOST_CODES = 2**16
"""Largest number of codes of a level."""
TOKENS = re.compile(r"(?:<[A-Za-z]+_\d+>)+")
NUMBERS = re.compile(r"\d+(?:[\s,]+\d+)*")
FAR = 10.0
"""Distance of a code without items from 0, in units of the longest residual: so far that `encode` never chooses it."""


def read_codes(path: str | Path, item_ids: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Read the semantic IDs of N items.

    Args:
        path: index.json, or a table (CSV, TSV, JSON lines, parquet) with the columns `item_id` and `codes`. It may
            hold further items.
        item_ids: the N items.

    Returns:
        The codes, int32 [N, L], and the size of each level [L]: the largest code of the file plus 1, and
        at least 2.

    Raises:
        UserError: the file can't be read, an item has no codes, or codes are not numbers from 0 on, equally many for
            each item.
    """
    path = require_file(path, FLAG)
    listed = _index(path) if path.suffix == ".json" else _table(path)
    missing = [item for item in item_ids if item not in listed]
    if missing:
        example = f" (ids there look like {next(iter(listed))!r})" if listed else ""
        raise UserError(
            f"{FLAG} {path}: no codes for {len(missing)} of the {len(item_ids)} items, such as {missing[0]!r}{example}."
        )
    codes = {item: _codes(value, f"{FLAG} {path}: item {item!r}") for item, value in listed.items()}
    lengths = {len(each): item for item, each in codes.items()}
    if len(lengths) > 1:
        (one, first), (other, second) = list(lengths.items())[:2]
        raise UserError(
            f"{FLAG} {path}: {one} codes for item {first!r}, {other} for {second!r}; expected equally many."
        )
    sizes = np.array(list(codes.values()), np.int64).max(axis=0) + 1
    return np.array([codes[item] for item in item_ids], np.int32), np.maximum(sizes, 2).tolist()


def quantizer_of(config: TokenizeConfig, x: np.ndarray, codes: np.ndarray) -> RQKMeans:
    """A residual quantizer for given codes: each code is the mean of the residuals of its items.

    It decodes and measures the given codes, and encodes further items. A code without items is never chosen.

    Args:
        config: with the number and the sizes of the levels.
        x: embeddings, floats [N, D].
        codes: int32 [N, L].
    """
    quantizer = RQKMeans(config)
    quantizer.codebooks = []
    for level, size in enumerate(config.level_sizes):
        own, residual = codes[:, level], Residual(x, codes[:, :level], quantizer.codebooks)
        counts = np.bincount(own, minlength=size)
        sums, longest = np.zeros((size, x.shape[1]), np.float64), 1.0
        for start in range(0, len(x), BLOCK):
            block = residual[start : start + BLOCK]
            np.add.at(sums, own[start : start + BLOCK], block)
            longest = max(longest, float(np.linalg.norm(block, axis=1).max()))
        codebook = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        codebook[counts == 0] = FAR * longest / np.sqrt(x.shape[1])
        quantizer.codebooks.append(codebook)
    return quantizer


def _index(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{FLAG} {path}: expected an object such as {{"0": ["<a_12>", "<b_7>"]}}.')
    return content


def _table(path: Path) -> Mapping[str, Any]:
    frame = read_table(path, FLAG)
    for name in ("item_id", "codes"):
        require_column(frame, name, path, FLAG)
    ids = id_column(frame["item_id"], f"{FLAG} {path}")
    if ids.is_duplicated().any():
        raise UserError(f"{FLAG} {path}: item {ids.filter(ids.is_duplicated())[0]!r} stands there twice; keep one row.")
    return dict(zip(ids.to_list(), frame["codes"].to_list(), strict=True))


def _codes(value: Any, where: str) -> list[int]:
    """The codes of one item: a list of numbers or item tokens, or a text of them."""
    text = "".join(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
    if isinstance(text, str) and (TOKENS.fullmatch(text) or NUMBERS.fullmatch(text.strip())):
        found = [int(number) for number in re.findall(r"\d+", text)]
    elif isinstance(value, list) and all(type(each) is int for each in value):
        found = value
    else:
        found = []
    if not found or not all(0 <= each < MOST_CODES for each in found):
        raise UserError(f"{where}: codes {value!r:.80}, expected numbers from 0 to {MOST_CODES - 1}, or item tokens.")
    return found
