"""The model card says what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from llmrec.evaluation.report import model_card
from llmrec.recommender import bundle

SLICE = {"recall@10": 0.25, "recall@10_ci": [0.2, 0.3], "ndcg@10": 0.125, "ndcg@10_ci": [0.1, 0.15], "users": 40}
METRICS = {
    "protocol": {
        "split": "leave-one-out",
        "part": "test",
        "ranking": "full",
        "users": 40,
        "items": 30,
        "filter_seen": True,
        "k": [10],
    },
    "systems": {"llmrec": {"all": SLICE}},
    "decode": {
        "ranking": "beam",
        "beams": 20,
        "scoring": "vocab",
        "constraint": "trie",
        "invalid_rate": 0.0,
        "users_per_second": 9.0,
    },
}


TEXT_QUERIES = {
    "protocol": {"source": "reviews", "queries": 40, "items": 30, "ranking": "full"},
    "systems": {"hybrid": {"all": {**SLICE, "recall@10": 0.75}}},
}


def test_card_has_front_matter_protocol_and_figures(tmp_path: Path) -> None:
    bundle.write_header(
        bundle.Header(bundle.SCHEMA, "0.1.0", 3, [8, 8, 2], "", "vocab", "org/base", "adapter", 20), tmp_path
    )
    card = model_card(tmp_path, METRICS)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    for words in (
        "org/base",
        "8, 8, 2",
        "AutoPeftModelForCausalLM",
        "0.2500 [0.2000, 0.3000]",
        "30 items",
        "constraint trie",
        "0.0%",
    ):
        assert words in body


def test_card_of_a_cut_base_does_not_send_the_reader_to_peft(tmp_path: Path) -> None:
    """peft would put the adapter onto the whole base, and answer otherwise."""
    header = bundle.Header(bundle.SCHEMA, "0.1.0", 3, [8, 8, 2], "", "vocab", "org/base", "adapter", 20, keep_layers=8)
    bundle.write_header(header, tmp_path)
    assert "for the first 8 decoder layers of its base" in model_card(tmp_path, METRICS)
    bundle.write_header(replace(header, weights="model"), tmp_path)
    assert "`AutoModelForCausalLM` and `AutoTokenizer` load it as it is" in model_card(tmp_path, METRICS)
    (tmp_path / "config.json").write_text('{"is_encoder_decoder": true}')
    assert "`AutoModelForSeq2SeqLM` and `AutoTokenizer` load it as it is" in model_card(tmp_path, METRICS)


def test_card_tells_of_text_queries_where_there_are_any(tmp_path: Path) -> None:
    bundle.write_header(
        bundle.Header(bundle.SCHEMA, "0.1.0", 3, [8, 8, 2], "", "vocab", "org/base", "adapter", 20), tmp_path
    )
    card = model_card(tmp_path, METRICS, TEXT_QUERIES)
    assert "Asked in plain words: 40 held-out intentions (reviews)" in card
    assert "| hybrid | 0.7500 [" in card
    without = model_card(tmp_path, METRICS)
    assert "plain words:" not in without
    assert "invalid answers 0.0%.\n\n## Limits" in without
    assert "invalid answers 0.0%.\n\n## Limits" in card


def test_the_hub_reads_the_figures_and_the_data(tmp_path: Path) -> None:
    header = bundle.Header(bundle.SCHEMA, "0.1.0", 3, [8, 8, 2], "", "vocab", "org/base", "adapter", 20)
    bundle.write_header(header, tmp_path)
    steps = [{"step": "read", "users": 9, "items": 9, "interactions": 99, "catalogue": 9}]
    steps += [{"step": "5-core", "users": 8, "items": 6, "interactions": 70, "catalogue": 7}]
    protocol = {"kind": "leave-one-out", "events": {"train": 54, "valid": 8, "test": 8}}
    (tmp_path / "split.json").write_text(json.dumps({"protocol": protocol, "steps": steps}))
    data = {"format": "datasets", "path": "org/log:small@train", "seed": 0}
    card = ModelCard(model_card(tmp_path, METRICS, data=data, prepared=tmp_path))
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {"recall@10": 0.25, "ndcg@10": 0.125}
    first = card.data.eval_results[0]
    assert (first.dataset_type, first.dataset_split) == ("datasets", "test")
    assert first.dataset_name == "datasets: org/log:small@train"
    assert card.data.datasets == ["org/log"]
    assert "8 users, 7 items, 70 interactions.\nLeave-one-out split: 54 train, 8 valid, 8 test." in card.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"format": "synthetic", "path": None, "seed": 3}, "The made-up shop of llmrec (seed 3)"),
        ({"format": "amazon", "path": "/home/me/secret/Beauty", "seed": 0}, "amazon: Beauty"),
    ],
)
def test_data_are_named_without_their_path(data: dict[str, object], said: str, tmp_path: Path) -> None:
    header = bundle.Header(bundle.SCHEMA, "0.1.0", 3, [8, 8, 2], "", "vocab", "org/base", "adapter", 20)
    bundle.write_header(header, tmp_path)
    text = model_card(tmp_path, METRICS, data=data)
    card = ModelCard(text)
    assert card.data.eval_results[0].dataset_name == said
    assert card.data.datasets is None
    assert "/home" not in text
