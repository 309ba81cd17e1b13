#!/usr/bin/env python
"""Recommend with a vLLM server: beam search in the client, which sends one request per beam and step. The slow way.

    llmrec export --model runs/mine/model --target vllm --out out    # prints the command that starts vLLM on `out`
    python vllm_client.py out --history B001 B007 --k 10

Needs safetensors and tokenizers, but not llmrec. vLLM keeps the keys and values of the prompt (prefix caching, on by
default), so a request computes only its last tokens. It may allow at most 1,024 tokens. See docs/serving_llm.md.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

from safetensors.numpy import load_file
from tokenizers import Tokenizer

MOST_ALLOWED = 1024


class Export:
    """The files of `llmrec export --target vllm`."""

    def __init__(self, folder: Path) -> None:
        self.model = str(folder)
        self.header = json.loads((folder / "export.json").read_text("utf-8"))
        self.prompts = json.loads((folder / "prompts.json").read_text("utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.trie = load_file(folder / "trie.safetensors")
        self.text_of: dict[str, str] = {}
        self.items_of: dict[tuple[int, ...], list[str]] = {}
        with (folder / "items.jsonl").open(encoding="utf-8") as lines:
            for item in map(json.loads, lines):
                self.text_of[item["item_id"]] = item.get("in_history", item["text"])
                self.items_of.setdefault(tuple(item["token_ids"]), []).append(item["item_id"])

    def prompt(self, history: Sequence[str] | None, query: str | None) -> list[int]:
        """The token ids of the prompt for a history, oldest first, a request in words, or both."""
        task = "sequential" if query is None else "search" if history is None else "personal-search"
        shown = "".join(self.text_of[item] for item in (history or ())[-self.header["max_history"] :])
        words = " ".join((query or "").lower().split())
        text = self.prompts[task].replace("{history}", shown).replace("{query}", words)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def children(self, node: int) -> dict[int, int]:
        """Token -> node, for all children of a node; node 0 is the root."""
        first, end = self.trie["starts"][node : node + 2].tolist()
        return dict(zip(self.trie["tokens"][first:end].tolist(), range(first + 1, end + 1), strict=True))


Beam = tuple[float, tuple[int, ...], int]
"""Sum of log-probabilities, tokens, node."""


def extended(export: Export, url: str, prompt: list[int], beams: int, beam: Beam) -> list[Beam]:
    """The best `beams` beams that are one token longer than `beam`; vLLM gives the probabilities among its children."""
    score, tokens, node = beam
    children = export.children(node)
    if len(children) > MOST_ALLOWED:
        raise SystemExit(f"{len(children)} tokens may follow, but vLLM allows at most {MOST_ALLOWED} in one request")
    body = {
        "model": export.model,
        "prompt": [*prompt, *tokens],
        "max_tokens": 1,
        "temperature": 1.0,
        "allowed_token_ids": list(children),
        "logprobs": min(beams, len(children)),
        "return_tokens_as_token_ids": True,
    }
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        found = json.load(answer)["choices"][0]["logprobs"]["top_logprobs"][0]
    values = {int(name.removeprefix("token_id:")): value for name, value in found.items()}
    return [(score + value, (*tokens, token), children[token]) for token, value in values.items()]


def recommend(export: Export, url: str, prompt: list[int], k: int, beams: int) -> list[tuple[str, float]]:
    """The k best items and their scores: log-probabilities among the items of the catalogue."""
    living: list[Beam] = [(0.0, (), 0)]
    with ThreadPoolExecutor(beams) as pool:
        for _ in export.header["level_sizes"]:
            longer = pool.map(partial(extended, export, url, prompt, beams), living)
            living = sorted((beam for own in longer for beam in own), key=lambda beam: -beam[0])[:beams]
    return [(item, score) for score, tokens, _ in living for item in export.items_of[tokens]][:k]


def main() -> None:
    """Parse the flags and print an item and its score per line."""
    parser = argparse.ArgumentParser(description="Recommend with a vLLM server that serves an export of llmrec.")
    parser.add_argument("export", type=Path, help="the folder that vLLM serves, as given to `vllm serve`")
    parser.add_argument("--history", nargs="*", metavar="ID", help="item ids, oldest first")
    parser.add_argument("--prompt", metavar="TEXT", help="a request in plain words")
    parser.add_argument("--k", type=int, default=10, help="number of items (default 10)")
    parser.add_argument("--beams", type=int, default=20, help="beams (default 20, at least the number of items)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    options = parser.parse_args()
    if options.history is None and options.prompt is None:
        parser.error("give --history, --prompt or both")
    export = Export(options.export)
    seen = set(options.history or ())
    prompt, wanted = export.prompt(options.history, options.prompt), options.k + len(seen)
    found = recommend(export, options.url, prompt, wanted, max(options.beams, wanted))
    for item, score in [pair for pair in found if pair[0] not in seen][: options.k]:
        print(f"{item}\t{score:.4f}")


if __name__ == "__main__":
    main()
