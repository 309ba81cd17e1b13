"""Users per second of constrained decoding: stock `generate`, our logits processor on it, ours, and prefill alone.

    python scripts/bench_decode.py [--users 16] [--beams 20] [--scoring vocab] [--dtype float32] [--json]

One random model, one random catalogue, prompts of one length, the four ways in turn, round after round; the medians are
reported. `generate` is transformers' own beam search with `prefix_allowed_tokens_fn` looking a prefix up in a Python
dictionary, the usual way; `logits_processor` is the same search under our vectorised constraint, its prompt's cache
repeated for the beams; `prefill` is one forward pass over the prompts; all with weights of `--dtype`. `same_top_k` says
whether ours returned the items of `generate` in its order (scoring vocab; others rank by another probability: null).
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as llmrec does, before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from llmrec import tables
from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch, plain_generation
from llmrec.decode.tree import TreeSearch
from llmrec.vocab.tokens import ItemVocabulary, token_names
from llmrec.vocab.trie import ItemTrie

SHAPES: dict[str, dict[str, int]] = {
    "small": {  # 7 million weights
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "qwen3-0.6b": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


class Bench:
    """One model, one catalogue, some prompts.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        shape = SHAPES[options.shape]
        words = shape["vocab_size"]
        config = Qwen3Config(
            **(shape | {"vocab_size": words + options.levels * options.codes}), tie_word_embeddings=True
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, options.dtype)
        self.model = Qwen3ForCausalLM(config).eval().to(self.device, self.dtype)
        self.beams, self.users = options.beams, options.users
        codes = np.unique(rng.integers(0, options.codes, (options.items, options.levels)), axis=0)
        sizes = [options.codes] * options.levels
        ids = [words + level * options.codes + np.arange(options.codes) for level in range(options.levels)]
        self.vocabulary = ItemVocabulary(token_names(sizes), ids)
        self.trie = ItemTrie.build(codes, sizes)
        self.prompts = rng.integers(0, words, (options.users, options.prompt_tokens))
        settings = DecodeConfig(
            beams=options.beams, batch_size=options.users, dtype=options.dtype, scoring=options.scoring
        )
        self.tree = TreeSearch(self.model, self.vocabulary, self.trie, settings)
        plain = DecodeConfig(beams=options.beams, batch_size=options.users, dtype=options.dtype)
        self.processor = GenerateSearch(self.model, self.vocabulary, self.trie, plain)
        self.next_tokens, self.item = self._dictionary(codes)

    def _dictionary(self, codes: np.ndarray) -> tuple[dict[tuple[int, ...], list[int]], dict[tuple[int, ...], int]]:
        """Prefix of tokens -> tokens that may follow, and whole semantic ID -> item: what people write first."""
        follow: dict[tuple[int, ...], set[int]] = defaultdict(set)
        item = {}
        for row, path in enumerate(self.vocabulary.token_ids(codes).tolist()):
            for level, token in enumerate(path):
                follow[tuple(path[:level])].add(token)
            item[tuple(path)] = row
        return {prefix: sorted(tokens) for prefix, tokens in follow.items()}, item

    def llmrec(self) -> np.ndarray:
        """Items int64 [users, beams]."""
        return self.tree.search(self.prompts.tolist(), self.beams).items

    def logits_processor(self) -> np.ndarray:
        """Items int64 [users, beams]."""
        return self.processor.search(self.prompts.tolist(), self.beams).items

    @torch.inference_mode()
    def generate(self) -> np.ndarray:
        """Items int64 [users, beams]."""
        ids = torch.from_numpy(self.prompts).to(self.device)
        length = ids.shape[1]
        settings = GenerationConfig(
            do_sample=False,
            num_beams=self.beams,
            num_return_sequences=self.beams,
            max_new_tokens=self.trie.levels,
            length_penalty=0.0,
            pad_token_id=0,
        )
        with plain_generation(self.model):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                prefix_allowed_tokens_fn=lambda _, row: self.next_tokens[tuple(row[length:].tolist())],
            )
        items = [self.item[tuple(row)] for row in output[:, length:].tolist()]
        return np.array(items).reshape(self.users, self.beams)

    @torch.inference_mode()
    def prefill(self) -> None:
        """One forward pass over the prompts."""
        self.model.base_model(input_ids=torch.from_numpy(self.prompts).to(self.device), use_cache=True)

    def seconds(self, way: Callable[[], Any]) -> float:
        """One timed call."""
        start = time.perf_counter()
        way()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=16, help="requests decoded together")
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=120)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--codes", type=int, default=256, help="codes per level")
    parser.add_argument("--scoring", choices=["vocab", "level", "catalogue"], default="vocab")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each way")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    bench = Bench(options)
    ways = {name: getattr(bench, name) for name in ("generate", "logits_processor", "llmrec", "prefill")}
    answers = {name: way() for name, way in ways.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(bench.seconds(way))
    rate = {name: options.users / median(taken) for name, taken in seconds.items()}
    result = {
        "settings": {**vars(options), "device": str(bench.device), "weights": bench.model.num_parameters()},
        "users_per_second": rate,
        "same_top_k": bool((answers["llmrec"] == answers["generate"]).all()) if options.scoring == "vocab" else None,
    }
    if options.json:
        print(json.dumps(result))
        return
    rows = [["", "users/s", "times generate", "of prefill"]]
    for name, value in rate.items():
        rows.append([name, f"{value:.2f}", f"{value / rate['generate']:.1f}", f"{value / rate['prefill']:.2f}"])
    print(tables.plain(rows))
    print(f"same top k: {result['same_top_k']}")


if __name__ == "__main__":
    main()
