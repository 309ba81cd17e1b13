"""Export a recommender for the servers of language models: an ordinary checkpoint, and the items in the server's form.

    export(Recommender.from_pretrained("runs/mine/model"), "vllm", Path("out"))

docs/serving_llm.md describes the files, and says what each server can and can't do with them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import save

from llmrec import __version__
from llmrec.atomic import put_in_place, replacing, usual_modes, write_bytes, write_text
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.weights import save_weights
from llmrec.tasks.config import ASKED, INPUTS

Target = Literal["flashrec", "sglang", "vllm"]
Dtype = Literal["auto", "float32", "bfloat16"]

HEADER, ITEMS, PROMPTS, TRIE, SID = "export.json", "items.jsonl", "prompts.json", "trie.safetensors", "sid.json"

WHOLE_PROMPT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The chat template for FlashRec, whose API takes only messages: the content of the one message is the whole prompt."""


def export(recommender: Recommender, target: Target, folder: Path, dtype: Dtype = "auto") -> dict[str, Any]:
    """Write the files for one server.

    The model of `recommender` is changed in place: its adapter is merged, and its weights become `dtype`.

    Args:
        recommender: with all items that the server shall know, added ones too.
        target: the server.
        folder: a new or an empty one. It is complete or unchanged at any moment.
        dtype: of the weights; auto keeps that of the model.

    Returns:
        The content of `export.json`.

    Raises:
        UserError: the folder exists and is not empty, or the server can't run this model.
    """
    require_new(folder)
    if recommender.user_tokens:
        raise UserError(
            f"--target {target}: prompts begin with tokens of the user (tasks.user_tokens), which this server can't "
            "make from a history; use `llmrec serve`."
        )
    _check(recommender.model.config, target)
    vocabulary, trie = recommender.renderer.vocabulary, recommender.store.trie
    most_children = max(int(starts.diff().max()) for starts in trie.starts)
    command = _command(target, folder, vocabulary, most_children)
    model, tokenizer = recommender.merge().model, recommender.tokenizer
    if dtype != "auto":
        model.to(getattr(torch, dtype))
    header = {
        "llmrec": __version__,
        "target": target,
        "items": len(recommender.catalog),
        "semantic_ids": len(trie.node_codes[-1]),
        "level_sizes": vocabulary.level_sizes,
        "first_token_ids": [int(ids[0]) for ids in vocabulary.ids],
        "most_children": most_children,
        "max_history": recommender.max_history,
        "dtype": str(model.dtype).removeprefix("torch."),
        "command": command,
    }
    with replacing(folder) as new:
        save_weights(model, tokenizer, new)
        _let_older_transformers_read(new)
        write_text(new / ITEMS, "".join(_item_lines(recommender, vocabulary)))
        write_text(new / PROMPTS, _json(_prompts(recommender)))
        if target == "flashrec":
            write_text(new / "chat_template.jinja", WHOLE_PROMPT)
            codes = np.unique(recommender.item_tokenizer.codes, axis=0)
            write_text(new / SID, _json({",".join(map(str, row)): 1 for row in codes.tolist()}))
        else:
            write_bytes(new / TRIE, save(next_tokens(trie, vocabulary)))
        write_text(new / HEADER, _json(header))
        usual_modes(new)
        put_in_place(new, folder)
    return header


def require_new(folder: Path) -> None:
    """Raise UserError if the folder of an export exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: exists already; name a new folder.")


def next_tokens(trie: ItemTrie, vocabulary: ItemVocabulary) -> dict[str, np.ndarray]:
    """The trie as a table of next tokens, for M nodes. Node 0 is the root; each level's nodes follow those above.

    Returns:
        `starts`, int32 [M + 1], and `tokens`, int32 [M - 1]. The children of node n are the nodes
        `starts[n] + 1` to `starts[n + 1]`; node e + 1 is reached by the token `tokens[e]`. A node without children
        ends a semantic ID.
    """
    starts, tokens, before = [], [], 0
    for codes, begins, ids in zip(trie.node_codes, trie.starts, vocabulary.ids, strict=True):
        starts.append(begins.numpy()[:-1] + before)
        tokens.append(ids[codes.numpy()])
        before += len(codes)
    starts.append(np.full(len(trie.node_codes[-1]) + 1, before))
    return {"starts": np.concatenate(starts).astype(np.int32), "tokens": np.concatenate(tokens).astype(np.int32)}


def _check(config: Any, target: Target) -> None:
    """Raise UserError if the server can't run a model with this configuration."""
    if config.is_encoder_decoder:
        raise UserError(
            f"--target {target}: the model is an encoder-decoder ({config.model_type}), but an export is for servers "
            "of decoder-only models; use `llmrec serve`."
        )
    if target != "flashrec":
        return
    if config.model_type != "qwen3":
        raise UserError(
            f"--target flashrec: the model is of the type {config.model_type}, but FlashRec 0.1.2 runs only dense "
            "Qwen3 models; use --target vllm or sglang."
        )
    if (kind := config.rope_parameters["rope_type"]) != "default":
        raise UserError(
            f"--target flashrec: the model scales its position embeddings ({kind}), which FlashRec 0.1.2 does not; "
            "use --target vllm or sglang."
        )


def _command(target: Target, folder: Path, vocabulary: ItemVocabulary, most_children: int) -> list[str]:
    """The words of the command that starts the server."""
    if target == "vllm":
        modes = ["--logprobs-mode", "processed_logprobs", "--max-logprobs", str(most_children)]
        return ["vllm", "serve", str(folder), *modes]
    if target == "sglang":
        return ["python", "-m", "sglang.launch_server", "--model-path", str(folder), "--enable-beam-search"]
    ids = vocabulary.all_ids
    if (np.diff(ids) != 1).any():
        raise UserError(
            "--target flashrec: the ids of the item tokens have gaps, but FlashRec counts them from the first one; "
            "use --target vllm or sglang."
        )
    # Without boundary tokens FlashRec puts none between the prompt and the item; the model has not been trained on any.
    layout = {
        "--sid-vocab-file": str(folder / SID),
        "--sid-token-range": f"{ids[0]}:{ids[-1]}",
        "--sid-codebook-sizes": ",".join(map(str, vocabulary.level_sizes)),
        "--sid-boundary-tokens": "",
        "--max-tokens": str(len(vocabulary.ids)),
    }
    return ["flashrec", "--serve", "--model-path", str(folder), *(word for pair in layout.items() for word in pair)]


def _let_older_transformers_read(folder: Path) -> None:
    """Say in the words of transformers 4 what transformers 5 writes in its own; both versions read the result."""
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_text(path, _json(tokenizer))
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    if "rope_theta" in (config.get("rope_parameters") or {}):  # FlashRec would take 1,000,000 if it found none
        write_text(path, _json({**config, "rope_theta": config["rope_parameters"]["rope_theta"]}))


def _item_lines(recommender: Recommender, vocabulary: ItemVocabulary) -> Iterator[str]:
    codes, renderer = recommender.item_tokenizer.codes, recommender.renderer
    tokens = vocabulary.token_ids(codes).tolist()
    for place, (item, row, ids) in enumerate(zip(recommender.catalog.ids, codes.tolist(), tokens, strict=True)):
        line = {"item_id": item, "text": vocabulary.text(row), "codes": row, "token_ids": ids}
        if renderer.title_tokens:
            line["in_history"] = renderer.in_history(place)
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _prompts(recommender: Recommender) -> dict[str, str]:
    """Task -> the whole prompt in its first phrasing, with the placeholders {history} and {query}.

    The text begins with the beginning-of-sequence token, if prompts do, so that it is to be tokenized as it is.
    """
    renderer = recommender.renderer
    start = recommender.tokenizer.bos_token if renderer.encode_prompts([""])[0] else ""
    return {task: start + renderer.prompt(task, 0, **{name: f"{{{name}}}" for name in INPUTS[task]}) for task in ASKED}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
