"""Which architectures of transformers can be trained and decoded, tried on tiny random models: the table of the docs.

    python scripts/architectures.py [NAME ...]

Each model is saved, loaded as a base, trained for a few steps (all weights; LoRA, then merged), and asked.
The trial of the search compares its log-probabilities with plain forward passes, before and after the training.
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from llmrec.console import markdown
from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTEXT = 160
"""Longest sequence of each model, in tokens."""
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDTHS |= {"max_position_embeddings": CONTEXT}
GROUPED = WIDTHS | {"num_key_value_heads": 2, "head_dim": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
SSM = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED | EXPERTS,
    "mistral": GROUPED | {"sliding_window": 8},
    "gemma2": GROUPED | {"sliding_window": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "gemma3_text": GROUPED | {"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "phi": WIDTHS,
    "phi3": GROUPED | {"original_max_position_embeddings": CONTEXT},
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4, "tie_word_embeddings": False},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": CONTEXT,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": WIDTHS,
    "opt": WIDTHS | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT, "expansion_ratio": 2},
    "falcon": WIDTHS | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "granite": GROUPED | {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "cohere": GROUPED | {"logit_scale": 0.0625},
    "cohere2": GROUPED | {"logit_scale": 0.25, "sliding_window": 8, "num_hidden_layers": 4},
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "deepseek_v3": GROUPED
    | LATENT
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "minicpm3": GROUPED | LATENT | {"num_key_value_heads": 4, "hidden_size": 32, "dim_model_base": 8},
    "gpt_oss": GROUPED | {"num_local_experts": 4, "sliding_window": 8},
    "llama4_text": GROUPED
    | {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 64, "num_hidden_layers": 4}
    | {"attention_chunk_size": 8},
    "qwen3_5_text": GROUPED | LINEAR | {"num_hidden_layers": 4},
    "qwen3_next": GROUPED | EXPERTS | LINEAR | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 32},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
    "jamba": GROUPED
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
    | {"use_mamba_kernels": False},
    "granitemoehybrid": GROUPED
    | MAMBA
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1}
    | {"shared_intermediate_size": 32, "logits_scaling": 4.0},
    "falcon_h1": GROUPED | MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "nemotron_h": GROUPED
    | {"hybrid_override_pattern": "M*-", "num_hidden_layers": 3, "mamba_num_heads": 4, "mamba_head_dim": 16}
    | {"ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "mamba": SSM,
    "mamba2": SSM | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "recurrent_gemma": WIDTHS
    | {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": CONTEXT},
}
"""Architecture -> the fields of its configuration that make it tiny. Windows, factors and caps are such that they count
in sequences of a few tokens."""


def make_model(name: str, **fields: Any) -> "PreTrainedModel":
    """A random model of the architecture, with weights large enough that each token changes the logits.

    Args:
        name: key of `SHAPES`.
        fields: further fields of the configuration, such as `vocab_size`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    special: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **{**special, **SHAPES[name], **fields})
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return model.eval()


def save_base(name: str, folder: Path, texts: Sequence[str]) -> None:
    """Save a random model of the architecture, with a tokenizer trained on `texts`."""
    from llmrec.model.base import make_base
    from llmrec.model.config import BaseConfig

    small = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=CONTEXT)
    _, tokenizer = make_base(small, texts)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    make_model(name, vocab_size=len(tokenizer), **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Row:
    """A row of the table: how training and decoding went.

    Attributes:
        trains: what was trained.
        packed: whether examples share a row without seeing each other.
        decoded: the search that the trial chose.
        refused: the line that ended the attempt before the training.
    """

    architecture: str
    trains: str = "-"
    packed: str = "-"
    decoded: str = "refused"
    refused: str = ""


def probe(name: str) -> Row:
    """Train and ask models of the architecture."""
    from llmrec import ItemTokenizer, Recommender, TrainConfig
    from llmrec.data.synthetic import synthetic
    from llmrec.embed.encoder import EmbedConfig
    from llmrec.tasks.config import TasksConfig
    from llmrec.train.finetune import check_packing

    catalog, log = synthetic(n_items=60, n_users=40)
    items = ItemTokenizer(levels=2, codes=8, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(catalog)
    tasks = TasksConfig(mixture={"sequential": 1.0}, max_history=4, max_text_tokens=12)
    searches = set()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        save_base(name, base, catalog.texts("{title}"))
        try:
            check_packing(Recommender.from_base(base, items).model)
            packed = True
        except UserError:
            packed = False
        for method in METHODS:
            train = TrainConfig(method, epochs=2, batch_size=32, evaluations=1, dropout=0.0, packing=packed)
            recommender = Recommender.from_base(base, items, max_history=tasks.max_history)
            try:
                recommender.fit(log.leave_one_out().train, tasks=tasks, train=train)
            except UserError as error:
                return Row(name, refused=str(error))
            search = recommender.merge().ranker.search
            assert len(recommender.recommend(history=catalog.ids[:3], k=5)) == 5, "as many answers as were asked for"
            searches.add(type(search).__name__.removesuffix("Search").lower())
    return Row(name, ", ".join(METHODS.values()), "yes" if packed else "no", " or ".join(sorted(searches)))


METHODS: dict[Literal["full", "lora"], str] = {"full": "all weights", "lora": "LoRA"}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, and the lines of what was refused."""
    cells = [["architecture", "trains", "packed rows", "decoded by"]]
    cells += [[row.architecture, row.trains, row.packed, row.decoded] for row in rows]
    return "\n\n".join([markdown(cells), *(row.refused for row in rows if row.refused)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}; default: all")
    names = parser.parse_args().names or list(SHAPES)
    warnings.simplefilter("ignore")
    logging.disable()
    print(table([probe(name) for name in names]))


if __name__ == "__main__":
    main()
