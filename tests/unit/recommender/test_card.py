"""The model card of a bundle, with fields that the Hub's client reads offline."""

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from llmrec.errors import UserError
from llmrec.recommender import bundle
from llmrec.recommender.card import Evaluated, card_text
from llmrec.recommender.hub import _published_card
from llmrec.recommender.recommender import Recommender

RESULT = EvalResult(
    task_type="recommendation",
    dataset_type="table",
    dataset_name="table: events.csv",
    metric_type="recall@10",
    metric_value=0.25,
)


def folder(tmp_path: Path, base: str = "org/base", weights: str = "adapter") -> Path:
    bundle.write_header(bundle.Header(bundle.SCHEMA, "0.1.0", 3, [8, 8, 2], "", "vocab", base, weights, 20), tmp_path)
    return tmp_path


def test_a_card_without_measurements_says_so(tmp_path: Path) -> None:
    card = ModelCard(card_text(folder(tmp_path)))
    assert card.data.to_dict() == {
        "base_model": "org/base",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "semantic-ids", "llmrec"],
    }
    assert "## Measured\n\nNothing has been measured yet.\n" in card.text
    assert "## Data" not in card.text
    for heading in ("## Limits", "## Licence"):
        assert heading in card.text


@pytest.mark.parametrize("base", ["a qwen3 made from the catalogue's text", "/models/base"])
def test_only_a_base_of_the_hub_is_a_field(base: str, tmp_path: Path) -> None:
    card = ModelCard(card_text(folder(tmp_path, base, "model")))
    assert card.data.base_model is None
    assert f"Started from {base}." in card.text


def test_what_was_evaluated(tmp_path: Path) -> None:
    found = Evaluated("A table.", [RESULT], "From a log.", ["org/log"])
    card = ModelCard(card_text(folder(tmp_path), found))
    assert card.data.datasets == ["org/log"]
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("recall@10", 0.25, "table: events.csv")
    assert "## Data\n\nFrom a log.\n" in card.text
    assert "## Measured\n\nA table.\n" in card.text


def test_a_push_names_repository_licence_and_data(tmp_path: Path) -> None:
    text = card_text(folder(tmp_path), Evaluated("A table.", [RESULT]))
    card = ModelCard(_published_card(text, "org/shop", "apache-2.0", ["org/log"]))
    assert (card.data.model_name, card.data.license, card.data.datasets) == ("shop", "apache-2.0", ["org/log"])
    assert card.data.eval_results[0].metric_value == 0.25
    assert card.text == ModelCard(text).text, "the words stay"
    again = ModelCard(_published_card(str(card), "org/other"))
    assert (again.data.license, again.data.datasets) == ("apache-2.0", ["org/log"])


@pytest.mark.parametrize(
    ("text", "datasets", "words"),
    [
        ("---\nlicense: [\n---\n# A card\n", [], "README.md of the bundle: its fields can't be read"),
        ("---\n- a list\n---\n", [], "metadata block should be a dict"),
        ("---\nlicense: mit\n---\n", ["not an id"], "dataset not an id: expected the id of a data set"),
    ],
)
def test_what_can_not_be_published(text: str, datasets: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        _published_card(text, "org/shop", None, datasets)
    assert "\n" not in str(caught.value)


def test_a_saved_bundle_has_a_card(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save_pretrained(tmp_path / "bundle")
    card = ModelCard.load(tmp_path / "bundle" / "README.md")
    assert card.data.library_name == "transformers"
    assert "Nothing has been measured yet." in card.text
    assert "README.md" not in bundle.read_header(tmp_path / "bundle").files, "its size may change"
