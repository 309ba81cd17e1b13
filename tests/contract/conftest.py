"""Tiny random language models of several kinds, for what must hold for any base."""

from collections.abc import Callable

import pytest
import torch

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SMALL |= {"max_position_embeddings": 160, "bos_token_id": None}


@pytest.fixture(scope="session")
def make_model() -> Callable:
    """`make_model(kind, **shape)`: a `PreTrainedModel`; kinds are qwen3, llama, gpt2, gemma3 (windows of 8 tokens), phi
    (a head with a bias)."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, PhiConfig, Qwen3Config

    kinds = {
        "qwen3": lambda **shape: Qwen3Config(**SMALL, num_hidden_layers=2, **shape),
        "llama": lambda **shape: LlamaConfig(**SMALL, num_hidden_layers=2, **shape),
        "gpt2": lambda **shape: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=160, bos_token_id=None, **shape),
        "phi": lambda **shape: PhiConfig(**SMALL, num_hidden_layers=2, **shape),
        "gemma3": lambda **shape: Gemma3TextConfig(**SMALL, num_hidden_layers=3, sliding_window=8, **shape),
    }

    def make(kind: str, **shape):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kinds[kind](**shape))
        if kind == "phi":
            torch.nn.init.normal_(model.lm_head.bias)
        return model

    return make
