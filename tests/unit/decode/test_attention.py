import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmrec.decode.attention import NAME, group_heads, grouped_attention


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_sdpa(groups: int, masked: bool) -> None:
    torch.manual_seed(0)
    key_heads, queries, keys = 2, 3, 7 if masked else 3
    query = torch.randn(5, groups * key_heads, queries, 8)
    key, value = torch.randn(2, 5, key_heads, keys, 8)
    mask = torch.where(torch.rand(5, 1, queries, keys) < 0.4, -1e9, 0.0) if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups = groups
    ours, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert ours.shape == (5, queries, groups * key_heads, 8)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_only_sdpa_is_replaced(attention: str) -> None:
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    group_heads(model)
    assert model.config._attn_implementation == {"sdpa": NAME, "eager": "eager"}[attention]
