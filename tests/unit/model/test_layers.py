"""The first layers of a model compute what they computed in the whole model, and are saved as an ordinary model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
)

from llmrec.errors import UserError
from llmrec.model.layers import cut_layers

VOCABULARY = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, **VOCABULARY}
SHAPE = {**WIDTH, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, tuple[Any, str]] = {
    "llama": (LlamaConfig(**SHAPE), "model.norm"),
    "qwen3": (Qwen3Config(**SHAPE), "model.norm"),
    "gemma3": (
        Gemma3TextConfig(**SHAPE, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2),
        "model.norm",
    ),
    "gpt2": (GPT2Config(**VOCABULARY, n_embd=32, n_layer=4, n_head=4), "transformer.ln_f"),
    "gpt-neox": (GPTNeoXConfig(**WIDTH, intermediate_size=64), "gpt_neox.final_layer_norm"),
    "falcon": (FalconConfig(**WIDTH), "transformer.ln_f"),
    "opt": (OPTConfig(**WIDTH, ffn_dim=64, word_embed_proj_dim=32), "model.decoder.final_layer_norm"),
}
"""Architecture -> a config with 4 layers, and the name of the final norm."""
IDS = torch.randint(2, 100, (2, 12), generator=torch.Generator().manual_seed(0))


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name][0])).eval()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_hidden_states_are_those_of_the_first_layers(name: str, count: int, tmp_path: Path) -> None:
    model = model_of(name)
    norm = model.get_submodule(CONFIGS[name][1])
    after_layers = model(IDS, output_hidden_states=True).hidden_states
    cut_layers(model, count, "--base.keep_layers")
    cut = model.base_model(IDS).last_hidden_state
    assert torch.equal(cut, norm(after_layers[count]))
    assert not torch.allclose(cut, norm(after_layers[count + 1]) if count < 3 else after_layers[4], atol=1e-3)

    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.num_hidden_layers == count
    assert torch.equal(again.eval().base_model(IDS).last_hidden_state, cut)


@torch.inference_mode()
def test_the_cache_of_a_cut_model_has_its_layers() -> None:
    """Gemma 3 alternates between windows and full attention: the cache goes by the types of the layers."""
    model = model_of("gemma3")
    cut_layers(model, 3, "--base.keep_layers")
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    start = model(IDS[:, :9], use_cache=True)
    assert len(start.past_key_values.layers) == 3
    rest = model(IDS[:, 9:], past_key_values=start.past_key_values).logits
    torch.testing.assert_close(rest, model(IDS).logits[:, 9:])


def test_no_number_and_all_layers_change_nothing() -> None:
    for count in (0, 4):
        model = model_of("qwen3")
        names = [name for name, _ in model.named_parameters()]
        cut_layers(model, count, "--base.keep_layers")
        assert [name for name, _ in model.named_parameters()] == names


def test_a_list_inside_a_layer_is_not_the_list_of_layers() -> None:
    """Some models hold their experts so: there may be as many as layers."""
    model = model_of("llama")
    model.model.layers[0].mlp.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    cut_layers(model, 2, "--base.keep_layers")
    assert (len(model.model.layers), len(model.model.layers[0].mlp.experts)) == (2, 4)


def test_more_layers_than_there_are_is_named() -> None:
    with pytest.raises(UserError, match=r"base\.keep_layers 5: the base model has 4 layers; choose at most 4, or 0"):
        cut_layers(model_of("llama"), 5, "--base.keep_layers 5")


def test_layers_that_need_later_ones_are_refused() -> None:
    """The last layers of Gemma 3n take keys and values of earlier ones: which ones do so goes by their number."""
    config = Gemma3nTextConfig(
        **SHAPE,
        num_kv_shared_layers=2,
        layer_types=["full_attention"] * 4,
        activation_sparsity_pattern=[0.0] * 4,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=100,
        laurel_rank=4,
    )
    with pytest.raises(UserError, match=r"base\.keep_layers 3: gemma3n_text models can't be cut: .*; set it to 0"):
        cut_layers(AutoModelForCausalLM.from_config(config), 3, "--base.keep_layers 3")
