"""Semantic IDs from files: the codes as they are there, and a residual quantizer that fits them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.config import Config
from llmrec.data import DataConfig
from llmrec.errors import UserError
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.given import quantizer_of, read_codes
from llmrec.quantize.tokenizer import ItemTokenizer

IDS = ["7", "8", "9"]
CODES = [[2, 0], [0, 1], [2, 1]]


def write(name: str, folder: Path) -> Path:
    """Write `CODES` in one of the forms, with a further item 5 -> 3, 4."""
    path, codes = folder / name, dict(zip(["5", *IDS], [[3, 4], *CODES], strict=True))
    match name:
        case "index.json":
            tokens = {item: [f"<a_{own[0]}>", f"<b_{own[1]}>"] for item, own in codes.items()}
            path.write_text(json.dumps(tokens))
        case "numbers.json":
            path.write_text(json.dumps(codes))
        case "table.parquet":
            pl.DataFrame({"item_id": list(codes), "codes": list(codes.values())}).write_parquet(path)
        case "table.csv":
            path.write_text("item_id,codes\n" + "".join(f"{item},{own[0]} {own[1]}\n" for item, own in codes.items()))
        case "tokens.tsv":
            lines = (f"{item}\t<a_{own[0]}><b_{own[1]}>\n" for item, own in codes.items())
            path.write_text("item_id\tcodes\n" + "".join(lines))
    return path


@pytest.mark.parametrize("name", ["index.json", "numbers.json", "table.parquet", "table.csv", "tokens.tsv"])
def test_every_form(name: str, tmp_path: Path) -> None:
    """The sizes come from the whole file, so that the tokens are those of the model that the file belongs to."""
    codes, sizes = read_codes(write(name, tmp_path), IDS)
    assert codes.dtype == np.int32
    assert codes.tolist() == CODES
    assert sizes == [4, 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"7": [1], "8": [2]}, "no codes for 1 of the 3 items, such as '9' (ids there look like '7')"),
        ({}, "no codes for 3 of the 3 items"),
        ([1], "expected an object such as"),
        ({"7": [1], "8": [2, 3], "9": [1]}, "1 codes for item '9', 2 for '8'"),
        ({"7": [1], "8": [-2], "9": [1]}, "item '8': codes [-2], expected numbers from 0 to 65535"),
        ({"7": [1], "8": [70_000], "9": [1]}, "item '8': codes [70000]"),
        ({"7": [1], "8": [True], "9": [1]}, "item '8': codes [True]"),
        ({"7": [1], "8": [], "9": [1]}, "item '8': codes []"),
        ({"7": [1], "8": ["<a_1>x"], "9": [1]}, "item '8': codes ['<a_1>x']"),
        ({"7": [1], "8": None, "9": [1]}, "item '8': codes None"),
    ],
)
def test_wrong_files_are_named(content: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_codes(tmp_path / "index.json", IDS)
    assert said in str(error.value)


def test_codes_are_means_of_residuals() -> None:
    """Against a loop over codes; code 1 of level 1 has no item and is never chosen."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    codes = np.column_stack([rng.choice([0, 2, 3], 40), rng.integers(0, 3, 40)]).astype(np.int32)
    config = TokenizeConfig(levels=2, codes=[4, 3])
    quantizer = quantizer_of(config, x, codes)
    means = {code: x[codes[:, 0] == code].mean(axis=0) for code in (0, 2, 3)}
    residual = x - np.stack([means[code] for code in codes[:, 0]])
    for code, mean in means.items():
        np.testing.assert_allclose(quantizer.codebooks[0][code], mean, atol=1e-6)
    for code in range(3):
        np.testing.assert_allclose(quantizer.codebooks[1][code], residual[codes[:, 1] == code].mean(axis=0), atol=1e-6)
    further = rng.normal(size=(500, 6)).astype(np.float32)
    assert set(quantizer.encode(further)[:, 0]) == {0, 2, 3}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Semantic IDs of a fitted tokenizer, without its dedup level."""
    (tmp_path / "index.json").write_text(json.dumps({f"i{row}": [row % 4, row // 4] for row in range(20)}))
    return str(tmp_path / "index.json")


def test_a_tokenizer_takes_them_as_they_are(file: str, tmp_path: Path) -> None:
    """Unique ones get no dedup level; the report measures them; saved, loaded and grown, they stay."""
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    ids = [f"i{row}" for row in range(20)]
    tokenizer = ItemTokenizer(file=file).fit_embeddings(ids, x)
    expected = [[row % 4, row // 4] for row in range(20)]
    assert tokenizer.codes.tolist() == expected
    assert tokenizer.level_sizes == [4, 5]
    report = tokenizer.report()
    assert (report["method"], report["collision_rate"], report["levels"]) == ("file", 0, 2)
    assert report["usage"] == [1, 1]
    assert 0 < report["distortion"] < 1
    tokenizer.save(tmp_path / "saved")
    loaded = ItemTokenizer.load(tmp_path / "saved").without_items(["i3"])
    grown = loaded.with_items(["new"], x[:1] + 0.01)
    assert grown.codes[:-1].tolist() == [own for row, own in enumerate(expected) if row != 3]
    assert len(np.unique(grown.codes, axis=0)) == 20


def test_equal_codes_get_a_dedup_level(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"7": [1, 0], "8": [0, 0], "9": [1, 0]}))
    tokenizer = ItemTokenizer(file=str(tmp_path / "index.json")).fit_embeddings(IDS, np.eye(3, dtype=np.float32))
    assert tokenizer.codes.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert tokenizer.report()["collision_rate"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "options",
    [{"method": "pq"}, {"beams": 2}, {"balanced": True}, {"collisions": "sinkhorn"}, {"collisions": "nearest-free"}],
)
def test_settings_that_would_change_them_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match=r"tokenize\.file index\.json takes semantic IDs as they are"):
        TokenizeConfig(file="index.json", **options)


def test_cold_items_have_theirs_already() -> None:
    with pytest.raises(UserError, match=r"data\.regime strict gives cold items their codes only after the training"):
        Config(data=DataConfig(regime="strict"), tokenize=TokenizeConfig(file="index.json"))
