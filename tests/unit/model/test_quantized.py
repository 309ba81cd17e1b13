"""Bases of 4 and 8 bits by bitsandbytes, on a CPU: trained by LoRA, saved, served with as many bits."""

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from llmrec import ItemTokenizer, Recommender, TrainConfig
from llmrec.data import Catalog, Interactions
from llmrec.embed import EmbedConfig
from llmrec.model import quantized
from llmrec.model.base import make_base, on_meta
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.model.quantized import bits_of, fewer_bits
from llmrec.model.rounding import distance
from llmrec.tasks.config import TasksConfig, load_templates, tokenizer_texts

TASKS = TasksConfig(mixture={"sequential": 1.0}, max_history=4, max_text_tokens=12)
LORA = TrainConfig(
    "lora", lora=AdapterConfig(merge=False, rank=4), epochs=1, batch_size=8, evaluations=1, dtype="float32"
)


@pytest.fixture(scope="module")
def base(tiny_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = BaseConfig(hidden_size=64, layers=2, heads=4, vocabulary=320, context=160)
    for part in make_base(config, tokenizer_texts(tiny_catalog, load_templates())):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def items(tiny_catalog: Catalog) -> ItemTokenizer:
    return ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)


def trained(base: Path, items: ItemTokenizer, bits: Any) -> Recommender:
    ids = items.catalog.ids
    rows = [(str(user), ids[user + time], time) for user in range(12) for time in range(4)]
    log = Interactions(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    recommender = Recommender.from_base(base, items, config=BaseConfig(bits=bits), frozen=True, max_history=4)
    return recommender.fit(log, tasks=TASKS, train=LORA)


def asked(recommender: Recommender) -> list[tuple[str, float]]:
    found = recommender.recommend(history=recommender.catalog.ids[:3], k=5)
    return [(item.item_id, item.score) for item in found]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bundle_is_served_with_the_bits_it_was_trained_with(
    bits: int, base: Path, items: ItemTokenizer, tmp_path: Path
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    recommender = trained(base, items, bits)
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    assert bits_of(recommender.model) == bits
    assert sum(isinstance(module, kind) for module in recommender.model.modules()) == 2 * 7
    bare = on_meta(recommender.model)
    assert {parameter.dtype for parameter in bare.parameters()} == {torch.float32}
    assert bare.model.layers[0].mlp.up_proj.weight.shape == (192, 64)
    recommender.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "llmrec.json").read_text())["bits"] == bits
    again = Recommender.from_pretrained(tmp_path)
    assert bits_of(again.model) == bits
    assert asked(again) == asked(recommender)


@pytest.mark.parametrize(("bits", "off"), [(4, 0.3), (8, 0.05)])
def test_copies_of_a_quantized_model_share_its_weights(bits: Any, off: float, base: Path, items: ItemTokenizer) -> None:
    """The trial and the search copy the modules. A layer of 8 bits moves its scales in its first forward pass."""
    pytest.importorskip("bitsandbytes")
    few, whole = (Recommender.from_base(base, items, config=BaseConfig(bits=each), frozen=True) for each in (bits, 32))
    ids = torch.arange(12)[None]
    expected = whole.model(ids).logits
    for model in (few.ranker.search.model, few.model):
        assert distance(model(ids).logits.float(), expected) < off * expected.std()
    weights = [{id(parameter) for parameter in model.parameters()} for model in (few.ranker.search.model, few.model)]
    assert weights[0] == weights[1]


def test_a_bundle_is_served_whole_where_bits_are_missing(
    base: Path,
    items: ItemTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained(base, items, 32).save_pretrained(tmp_path)
    header = tmp_path / "llmrec.json"
    assert json.loads(header.read_text())["bits"] == 32
    header.write_text(json.dumps(json.loads(header.read_text()) | {"bits": 4}))
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "llmrec"):
        assert bits_of(Recommender.from_pretrained(tmp_path).model) == 32
    assert "a base of 4 bits per weight, which is loaded whole: bitsandbytes is not installed" in caplog.text


def test_the_arguments_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """QLoRA's: NF4 with the constants quantized, too."""
    monkeypatch.setattr(quantized, "missing_for_bits", lambda: None)
    found = fewer_bits(4)
    config = found["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert fewer_bits(8)["quantization_config"].load_in_8bit
