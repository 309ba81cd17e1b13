"""A local model: batches answer as single prompts do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrec.errors import UserError
from llmrec.intentions import answers as local
from llmrec.intentions.answers import Answers, LocalModel


@pytest.mark.parametrize("chat", [False, True])
def test_batches_answer_as_one_at_a_time(
    make_shop: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    monkeypatch.setattr(local, "NEW_TOKENS", 8)
    shop = make_shop(chat=chat)
    torch.manual_seed(0)
    for parameter in shop.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # else every answer is the same token
    shop.model.save_pretrained(tmp_path / "model")
    shop.tokenizer.save_pretrained(tmp_path / "model")
    prompts = ["a gentle soap", "hair", "a face cream for every day of the week", "balm"]
    answers = Answers(tmp_path / "answers.jsonl", "m")
    LocalModel(str(tmp_path / "model"), 3).answer(prompts, answers)
    model, tokenizer = shop.model.eval(), shop.tokenizer
    for prompt in prompts:
        text = f"<|user|>{prompt}<|end|><|assistant|>" if chat else f"{prompt}\n\n"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)
        output = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        expected = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answers[prompt] == expected
    assert len({answers[prompt] for prompt in prompts}) > 1


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"intentions\.local_model"):
        LocalModel(str(tmp_path / "nowhere"), 2).answer(["a"], Answers(tmp_path / "answers.jsonl", "m"))
