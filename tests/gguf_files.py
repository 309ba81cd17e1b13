"""Writes GGUF files as llama.cpp's converter does; needs the package gguf."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmrec.model.base import make_base
from llmrec.model.config import BaseConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = ["a gentle shampoo", "a gentle soap", "hand balm for dry hands"] * 3
TEMPLATE = "{% for message in messages %}{{ message['content'] + '<|end|>' }}{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Part of a tensor's name in transformers -> in a GGUF file."""


def write_llama(path: Path, layers: int = 2) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Write a random Llama of width 32 to `path`, with matrices in Q4_1.

    Returns:
        The model, with its matrices rounded to Q4_1, and its tokenizer.
    """
    import gguf

    base = BaseConfig(hidden_size=32, layers=layers, heads=4, vocabulary=300, context=160, architecture="llama")
    model, tokenizer = make_base(base, TEXTS)
    config, kind = model.config, gguf.GGMLQuantizationType.Q4_1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(base.context)
    writer.add_embedding_length(32)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<|pad|>", "<|end|>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        stored = name
        for ours, theirs in NAMES.items():
            stored = stored.replace(ours, theirs)
        values = tensor.numpy()
        if "norm" in name:
            writer.add_tensor(stored, values)
            continue
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0)
        raw = gguf.quantize(_paired(values, heads) if heads else values, kind)
        writer.add_tensor(stored, raw, raw_dtype=kind)
        rounded = gguf.dequantize(raw, kind)
        tensor.copy_(torch.from_numpy(_halved(rounded, heads) if heads else rounded))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval(), tokenizer


def _paired(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order, where the two rows that rotary positions turn into each other are neighbours."""
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _halved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of transformers, where they are half a head apart."""
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
