"""Bundles damaged in every way that a generator knows: each is refused in one line, or answers as the whole one does.

Never another exception, never an answer from a damaged model.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from llmrec import BaseConfig, Catalog, EmbedConfig, ItemTokenizer, Recommender, UserError
from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import DenseHead, with_adapter
from llmrec.model.config import AdapterConfig

ITEMS = 24
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
WRONG: list[Any] = [None, [], {}, [None], 3, -1, 10**30, 2.5, True, "", "word", float("nan")]
"""Values of every type that JSON has."""
Answer = list[tuple[str, float]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with all parts: whole weights, dense head, fusion, chat template."""
    rng = np.random.default_rng(0)
    words = ["soap", "lamp", "rope", "sand", "milk", "coat"]
    rows = [{"item_id": f"i{n}", "title": f"{words[n % 6]} number {n}", "brand": words[n % 4]} for n in range(ITEMS)]
    catalog = Catalog.from_frame(pl.DataFrame(rows))
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=6)).fit(catalog)
    base = BaseConfig(hidden_size=16, layers=1, heads=2, vocabulary=300, context=128)
    recommender = Recommender.from_base(None, tokenizer, config=base)
    recommender.tokenizer.chat_template = CHAT
    texts = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    recommender.store = replace(
        recommender.store,
        dense=DenseIndex.of(DenseHead(16, 6, 4), texts),
        train_counts=np.where(np.arange(ITEMS) < 20, 3, 0),
    )
    recommender.fusion_weights = FusionWeights([1.0, 1.0, 0.5, 2.0], [1.0, 0.5, 0.5, 3.0], 0.5, {}, list(FEATURES))
    folder = tmp_path_factory.mktemp("whole") / "model"
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an adapter of its weights."""
    recommender = Recommender.from_pretrained(whole)
    tokens = recommender.renderer.vocabulary.all_ids
    recommender.model = with_adapter(recommender.model, tokens, AdapterConfig(rank=2))
    recommender.base_model = recommender.model.peft_config["default"].base_model_name_or_path = str(whole)
    folder = tmp_path_factory.mktemp("adapter") / "model"
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["whole", "adapter"])
def good(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def answer(folder: Path) -> list[Answer]:
    recommender = Recommender.from_pretrained(folder)
    history = recommender.catalog.ids[:3]
    asked = [recommender.recommend(history=history, prompt="a lamp", k=5), recommender.recommend(history=history, k=5)]
    return [[(item.item_id, item.score) for item in items] for items in asked]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check(bundle: Path, expected: list[Answer], what: str) -> bool:
    """Load and ask; returns whether it was refused."""
    try:
        found = answer(bundle)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 1200:
            raise AssertionError(f"{what}: not one line") from error
        return True
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert found == expected, f"{what}: an answer from a damaged bundle"
    return False


def test_files_cut_emptied_swapped_retyped_linked_and_removed(good: Path, tmp_path: Path) -> None:
    expected, bundle, spare = answer(good), tmp_path / "model", tmp_path / "spare"
    shutil.copytree(good, bundle)
    refused: set[str] = set()
    for name in files(good):
        path, content = bundle / name, (good / name).read_bytes()

        def damages(path: Path = path, content: bytes = content) -> Iterator[tuple[str, Callable[[], object]]]:
            for share in (0.02, 0.5, 0.97):
                cut = content[: int(share * len(content))]
                yield f"cut to {share}", lambda cut=cut: path.write_bytes(cut)
            yield "emptied", lambda: path.write_bytes(b"")
            yield "noise", lambda: path.write_bytes(np.random.default_rng(1).bytes(200))
            yield "text", lambda: path.write_text("just words")
            yield "a list", lambda: path.write_text("[1, 2]")
            yield "nested", lambda: path.write_text("[" * 100_000)
            yield "removed", path.unlink
            yield "a folder", lambda: (path.unlink(), path.mkdir())
            yield "a pipe", lambda: (path.unlink(), os.mkfifo(path))
            yield "a link", lambda: (path.rename(spare), path.symlink_to(spare))
            yield "another file", lambda: shutil.copy(good / "llmrec.json", path)

        for kind, damage in damages():
            damage()
            if check(bundle, expected, f"{name} {kind}"):
                refused.add(name)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            spare.unlink(missing_ok=True)
            path.write_bytes(content)
    assert refused == set(files(good)), "no file is so unimportant that a pipe in its place passes"
    assert answer(bundle) == expected


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field of a JSON document; of long lists and tables the first two entries."""
    inside = list(enumerate(value)) if isinstance(value, list) else []
    inside = list(value.items()) if isinstance(value, dict) else inside
    for key, inner in inside if len(inside) < 40 else inside[:2]:
        yield (*at, key)
        yield from paths_of(inner, (*at, key))


def with_value(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def other_type(value: Any, document: Any, place: tuple[Any, ...]) -> bool:
    """Whether a value has another type than what stands there; all numbers are of one."""
    for key in place:
        document = document[key]
    kinds = [float if type(of) is int else type(of) for of in (value, document)]
    return kinds[0] is not kinds[1]


def test_fields_of_wrong_types(good: Path, tmp_path: Path) -> None:
    """Every field of every JSON file, with one value of another type each, drawn in turn from all types."""
    expected, bundle = answer(good), tmp_path / "model"
    shutil.copytree(good, bundle)
    header = json.loads((good / "llmrec.json").read_text()) | {"files": {}}  # or sizes would tell already
    (bundle / "llmrec.json").write_text(json.dumps(header))
    tried = 0
    for name in files(good):
        if not name.endswith(".json") or name == "tokenizer.json":
            continue
        content = (bundle / name).read_text()
        document = json.loads(content)
        for place in paths_of(document):
            tried += 1
            wrong = next(value for value in WRONG[tried % 7 :] if other_type(value, document, place))
            (bundle / name).write_text(json.dumps(with_value(document, place, wrong)))
            check(bundle, expected, f"{name} {place} {wrong!r}")
        (bundle / name).write_text(content)
    assert tried > 60
    assert answer(bundle) == expected


@pytest.mark.parametrize("name", ["item_index.parquet", "quantizer/item_codes.parquet"])
def test_columns_of_wrong_types(name: str, whole: Path, tmp_path: Path) -> None:
    expected, bundle = answer(whole), tmp_path / "model"
    shutil.copytree(whole, bundle)
    frame = pl.read_parquet(whole / name)
    for column in ("item_id", "codes", "title", "training_events"):
        if column not in frame.columns:
            continue
        values = frame[column]
        for wrong in (
            frame.drop(column),
            frame.with_columns(pl.lit(None).alias(column)),
            frame.with_columns(pl.lit(3.5).alias(column)),
            frame.with_columns(pl.lit("x").alias(column)),
            frame.with_columns(pl.lit([1]).alias(column)),
            frame.with_columns(values.reverse()) if column == "codes" else frame[::2],
            frame.with_columns(values.shift(1, fill_value=values[0])) if column == "item_id" else frame[:0],
        ):
            wrong.write_parquet(bundle / name)
            check(bundle, expected, f"{name} {column}: {wrong.schema}")
    shutil.copy(whole / name, bundle / name)
    assert answer(bundle) == expected


def test_prompts_of_wrong_types(whole: Path, tmp_path: Path) -> None:
    expected, bundle = answer(whole), tmp_path / "model"
    shutil.copytree(whole, bundle)
    path = bundle / "prompts" / "search.yaml"
    content = path.read_text()
    document = yaml.safe_load(content)
    for place in paths_of(document):
        for wrong in (None, 3, [], {}, "{query.__class__}", [["a", "b"]]):
            path.write_text(yaml.safe_dump(with_value(document, place, wrong)))
            check(bundle, expected, f"{place} {wrong!r}")
    for text in ("a: &a [*a, *a]", "- " * 50_000, "x: [" * 20_000, "a: 2024-13-45", "\t- a", "? [a]\n: b"):
        path.write_text(text)
        assert check(bundle, expected, text[:40])
    path.write_text(content)
    assert answer(bundle) == expected
