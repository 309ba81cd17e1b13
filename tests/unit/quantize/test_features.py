"""Codes as features: which ids share which rows, and a user's codes."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.errors import UserError
from llmrec.quantize import ItemTokenizer
from llmrec.quantize.features import CodeFeatures, code_embedding, item_codes, save_features, user_codes

EVERY = np.array(list(product(range(3), range(4), range(5))))


def test_rows_by_hand() -> None:
    features = CodeFeatures([3, 4, 5])
    assert features.parts("unigram") == [3, 4, 5]
    assert features.parts("prefix") == [3, 12, 60]
    codes = np.array([[2, 1, 3]])
    assert features.rows_of("unigram", codes).tolist() == [[2, 3 + 1, 3 + 4 + 3]]
    assert features.rows_of("prefix", codes).tolist() == [[2, 3 + 2 * 4 + 1, 3 + 12 + (2 * 4 + 1) * 5 + 3]]


def test_each_prefix_has_a_row_of_its_own() -> None:
    features = CodeFeatures([3, 4, 5])
    rows = features.rows_of("prefix", EVERY)
    assert np.unique(rows).tolist() == list(range(3 + 12 + 60))
    for level in range(3):
        same_prefix = (EVERY[:, None, : level + 1] == EVERY[None, :, : level + 1]).all(2)
        assert ((rows[:, None, level] == rows[None, :, level]) == same_prefix).all()


def test_long_prefixes_are_hashed_evenly() -> None:
    """Items with equal prefixes share a row at each level; else as often as chance says, in the level's part alone."""
    codes = np.random.default_rng(0).integers(0, 2048, (4000, 8))
    codes[2000:, :4] = codes[:2000, :4]
    features = CodeFeatures([2048] * 8, most=10_000)
    rows = features.rows_of("prefix", codes)
    assert (rows[2000:, :4] == rows[:2000, :4]).all()
    starts = np.cumsum([0, 2048, *[10_000] * 7])
    assert ((rows >= starts[:-1]) & (rows < starts[1:])).all()
    for level in range(4, 8):  # 4,000 different prefixes in 10,000 rows leave 10,000 (1 - e^-.4) = 3,297 in use
        assert len(np.unique(rows[:, level])) == pytest.approx(3297, abs=100)


def test_embedding_sums_the_rows() -> None:
    """With unigrams the sum of one vector per level; items that share a prefix share that part of the sum."""
    features = CodeFeatures([3, 4, 5])
    embedding = code_embedding(features.size("unigram"), 2)
    with torch.no_grad():
        embedding.weight[:, 0] = torch.arange(12)
    rows = features.rows_of("unigram", np.array([[2, 1, 3], [0, 0, 0]]))
    assert embedding(torch.from_numpy(rows))[:, 0].tolist() == [2 + 4 + 10, 0 + 3 + 7]


def fitted(x: np.ndarray) -> ItemTokenizer:
    return ItemTokenizer(levels=2, codes=4, collisions="dedup").fit_embeddings([f"i{row}" for row in range(len(x))], x)


def test_user_gets_the_codes_of_the_mean(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    tokenizer = fitted(x)
    histories = [np.array([3]), np.array([9, 1, 7, 7, 2])]
    found = user_codes(histories, x, tokenizer.quantizer, last=3)
    assert (found[0] == tokenizer.encode(x[[3]])[0]).all()
    assert (found[1] == tokenizer.encode(x[[7, 7, 2]].mean(0, keepdims=True))[0]).all()


def test_items_without_codes_are_quantized() -> None:
    """Cold items of the strict regime; the dedup level is no feature."""
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    tokenizer = fitted(x[:50])
    assert tokenizer.codes.shape[1] == 3
    order = np.random.default_rng(1).permutation(60)
    found = item_codes(tokenizer, [f"i{row}" for row in order], x[order])
    assert (found[order < 50] == tokenizer.codes[order[order < 50], :2]).all()
    assert (found[order >= 50] == tokenizer.encode(x[order[order >= 50]])).all()


def test_saved_features(tmp_path: Path) -> None:
    features, codes = CodeFeatures([3, 4, 5]), EVERY[:7]
    save_features(tmp_path / "new", features, (list("abcdefg"), codes), (["u"], codes[:1]))
    frame = pl.read_parquet(tmp_path / "new" / "items.parquet")
    assert frame["item_id"].to_list() == list("abcdefg")
    assert frame["codes"].to_list() == codes.tolist()
    assert frame["prefix"].to_list() == features.rows_of("prefix", codes).tolist()
    assert pl.read_parquet(tmp_path / "new" / "users.parquet")["unigram"].to_list() == [[0, 3, 7]]
    header = json.loads((tmp_path / "new" / "features.json").read_text())
    assert header["prefix"] == {"rows": 75, "parts": [3, 12, 60]}
    with pytest.raises(UserError, match="exists already"):
        save_features(tmp_path / "new", features, (["a"], codes[:1]), (["u"], codes[:1]))
