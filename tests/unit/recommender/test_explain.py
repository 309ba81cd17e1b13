"""What the codes stand for: the tests ask an unfitted model, or one that can say one thing only."""

import re

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

from llmrec.errors import UserError
from llmrec.recommender.explain import MAX_TOKENS, describe, explain, taste
from llmrec.recommender.recommender import Recommender


def ids_of(recommender: Recommender, codes: list[int]) -> list[str]:
    """The items whose semantic IDs begin with `codes`."""
    begins = (recommender.item_tokenizer.codes[:, : len(codes)] == codes).all(axis=1)
    return [recommender.catalog.ids[row] for row in np.flatnonzero(begins)]


@pytest.fixture
def dictated(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Makes the model say `dictated["text"]`, then the end of sequence; `dictated["prompt"]` is what it was asked."""
    heard: dict[str, str] = {}
    tokenizer, model = recommender.tokenizer, recommender.ranker.search.model
    generate = model.generate

    class Dictate(LogitsProcessor):
        def __init__(self, start: int) -> None:
            self.start = start
            self.words = [*tokenizer(heard["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            # Added, not set: what the call suppresses stays at -inf.
            scores[:, self.words[input_ids.shape[1] - self.start]] += 1e6
            return scores

    def listening(input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
        heard["prompt"] = tokenizer.decode(input_ids[0])
        return generate(input_ids=input_ids, logits_processor=[Dictate(input_ids.shape[1])], **settings)

    monkeypatch.setattr(model, "generate", listening)
    return heard


def test_an_item_is_told_from_its_codes_alone(recommender: Recommender, dictated: dict[str, str]) -> None:
    dictated["text"] = " borea  face\ncream"
    told = explain(recommender, "i7")
    assert told.item_id == "i7"
    assert told.title == "Borea face cream 7"
    assert told.semantic_id == recommender.ranker.renderer.item_text[7]
    assert told.says == "borea face cream"
    assert told.semantic_id in dictated["prompt"]
    assert "Borea" not in dictated["prompt"]


def test_a_history_is_told_from_its_codes_alone(
    recommender: Recommender, dictated: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dictated["text"] = "mild soaps"
    told = taste(recommender, ["i7", "i3"])
    assert told.says == "mild soaps"
    assert told.history == ["Borea face cream 7", "Alba hand balm 3"]
    assert recommender.ranker.renderer.history([7, 3]) in dictated["prompt"]
    with pytest.raises(UserError, match="history nope: no such item"):
        taste(recommender, ["nope"])
    monkeypatch.delitem(recommender.templates, "preference")
    with pytest.raises(UserError, match="history: the model was not taught the task preference"):
        taste(recommender, ["i7"])


def test_the_answer_is_words_the_same_each_time_and_ends(recommender: Recommender) -> None:
    says = [explain(recommender, "i3").says for _ in range(2)]
    assert says[0] == says[1]
    assert not re.search(r"<[a-c]_\d+>", says[0])
    assert len(recommender.tokenizer(says[0])["input_ids"]) <= 2 * MAX_TOKENS


def test_item_tokens_are_never_said(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    model, generate = recommender.ranker.search.model, recommender.ranker.search.model.generate
    likely = recommender.ranker.renderer.vocabulary.all_ids

    class Lure(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[:, likely] += 1e6
            return scores

    monkeypatch.setattr(model, "generate", lambda **settings: generate(logits_processor=[Lure()], **settings))
    assert not re.search(r"<[a-c]_\d+>", explain(recommender, "i3").says)


def test_the_model_keeps_its_generation_config(recommender: Recommender) -> None:
    model = recommender.ranker.search.model
    model.generation_config.temperature = 0.3
    model.generation_config.do_sample = True
    before = model.generation_config
    first = explain(recommender, "i3").says
    assert model.generation_config is before
    assert (before.do_sample, before.temperature) == (True, 0.3)
    before.do_sample, before.temperature = False, None
    assert explain(recommender, "i3").says == first


def test_a_prefix_is_told_by_its_items(recommender: Recommender, dictated: dict[str, str]) -> None:
    dictated["text"] = "soap, gentle"
    codes = recommender.item_tokenizer.codes
    prefix = recommender.ranker.renderer.vocabulary.text(codes[0][:2])
    told = describe(recommender, f" {prefix} ")
    expected = ids_of(recommender, codes[0][:2].tolist())
    assert told.prefix == prefix
    assert told.items == len(expected)
    assert told.titles == [recommender.catalog.row(item)["title"] for item in expected][:5]
    assert told.says == "soap, gentle"
    assert prefix in dictated["prompt"]


def test_its_words_are_those_of_its_titles(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.array([[row % 5 % 4, row // 5, 0] for row in range(20)])  # kinds 0 and 4 share the first code
    monkeypatch.setattr(recommender.item_tokenizer, "codes", codes)
    monkeypatch.delitem(recommender.templates, "shared-codes")
    assert describe(recommender, "<a_2>").words == ["cream", "face"]
    told = describe(recommender, "<a_2><b_1>")
    assert (told.items, told.titles, told.says) == (1, ["Borea face cream 7"], None)
    monkeypatch.setattr(recommender.item_tokenizer, "codes", np.zeros((20, 3), np.int64))
    everything = describe(recommender, "<a_0>")
    assert (everything.items, everything.words) == (20, []), "nothing sets all items apart from the others"


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", "expected the first item tokens of a semantic ID, such as '<a_0><b_0>'"),
        ("soap", "expected the first item tokens"),
        ("<a_1> and <b_1>", "expected the first item tokens"),
        ("<a_1", "expected the first item tokens"),
        ("<b_1>", "<b_1> is no item token of level 1; these are <a_0> to <a_3>"),
        ("<a_1><a_1>", "<a_1> is no item token of level 2"),
        ("<a_9>", "<a_9> is no item token of level 1"),
        ("<a_0><b_0><c_0><c_0>", "4 tokens, but a semantic ID has 3"),
    ],
)
def test_malformed_prefixes_are_refused_in_one_line(recommender: Recommender, prefix: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        describe(recommender, prefix)
    assert "\n" not in str(error.value)


def test_unused_prefixes_name_the_nearest(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.array([[row % 2 * 3, row % 2 + 1, 0] for row in range(20)])  # 0 1 and 3 2
    monkeypatch.setattr(recommender.item_tokenizer, "codes", codes)
    with pytest.raises(
        UserError, match=r"<a_2>: no item begins so; codes in use at the start: 2, nearest <a_0>, <a_3>\."
    ):
        describe(recommender, "<a_2>")
    with pytest.raises(UserError, match=r"codes in use after <a_3>: 1, nearest <b_2>\."):
        describe(recommender, "<a_3><b_1>")


def test_unknown_items_and_untaught_models_are_refused(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="item nope: no such item"):
        explain(recommender, "nope")
    monkeypatch.delitem(recommender.templates, "codes-to-item")
    with pytest.raises(UserError, match="item: the model was not taught the task codes-to-item"):
        explain(recommender, "i1")
