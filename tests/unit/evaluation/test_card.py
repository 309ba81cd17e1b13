"""The model card says what was measured."""

from dataclasses import replace
from pathlib import Path

import yaml

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
    assert without.endswith("invalid answers 0.0%.\n")
    assert card.endswith("invalid answers 0.0%.\n")
