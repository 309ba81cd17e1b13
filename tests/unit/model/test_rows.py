"""The rows of the item tokens in models of several architectures, tied and untied."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from llmrec.model.adapter import add_item_rows, embedding_names

OLD, PADDED, NEW = 50, 64, 9
SMALL = {"vocab_size": PADDED, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIGS = {
    "qwen3": lambda tied: Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=tied),
    "llama": lambda tied: LlamaConfig(**SMALL, tie_word_embeddings=tied),
    "gpt2": lambda tied: GPT2Config(
        vocab_size=PADDED, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied
    ),
}


def weights(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


@pytest.fixture(params=[(name, tied) for name in CONFIGS for tied in (True, False)], ids=str)
def model_and_tied(request):
    name, tied = request.param
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name](tied)), tied


@pytest.mark.parametrize("old", [OLD, PADDED], ids=["padded checkpoint", "exact checkpoint"])
def test_old_rows_keep_their_bits_and_new_ones_their_scale(model_and_tied, old):
    model, tied = model_and_tied
    before = [weight.clone() for weight in weights(model)]
    add_item_rows(model, np.arange(old, old + NEW), old + NEW, seed=1)
    after = weights(model)
    assert (after[0].data_ptr() == after[1].data_ptr()) == tied
    assert model.config.vocab_size == old + NEW
    for was, now in zip(before, after, strict=True):
        assert now.shape == (old + NEW, was.shape[1])
        assert torch.equal(now[:old], was[:old])
        new = now[old:]
        assert len(new.unique(dim=0)) == NEW
        assert 0.5 < (new.std() / was[:old].std()) < 2
    assert model(torch.tensor([[0, old + NEW - 1]])).logits.shape == (1, 2, old + NEW)


def test_rows_follow_the_seed(model_and_tied):
    model, _ = model_and_tied
    drawn = []
    for seed in (1, 1, 2):
        add_item_rows(model, np.arange(OLD, OLD + NEW), OLD + NEW, seed)
        drawn.append(weights(model)[0][OLD:].clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("kind", "names"), [("qwen3", ["embed_tokens", "lm_head"]), ("gpt2", ["wte", "lm_head"])])
def test_embedding_names(kind, names):
    assert embedding_names(AutoModelForCausalLM.from_config(CONFIGS[kind](True))) == names[:1]
    assert embedding_names(AutoModelForCausalLM.from_config(CONFIGS[kind](False))) == names
