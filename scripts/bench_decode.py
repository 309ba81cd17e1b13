"""Users per second of constrained decoding: stock `generate`, our logits processor on it, ours, and prefill alone.

    python scripts/bench_decode.py [--users 16] [--beams 20] [--scoring vocab] [--dtype float32] [--json]
    python scripts/bench_decode.py --run runs/beauty --users 64 --scoring catalogue

One random model, one random catalogue, prompts of one length; or with `--run` the model, the items and test users'
prompts of a finished run. The four ways in turn, round after round; the medians are reported. `generate` is
transformers' own beam search with `prefix_allowed_tokens_fn` looking a prefix up in a Python dictionary, the usual way;
`logits_processor` is the same search under our vectorised constraint, its prompt's cache repeated for the beams;
`prefill` is one forward pass over the prompts; all with weights of `--dtype`. `same_top_k` says whether ours returned
the items of `generate` in its order (scoring vocab; others rank by another probability: null).
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as llmrec does, before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from llmrec.console import plain
from llmrec.data.prepare import load
from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch, plain_generation
from llmrec.decode.search import left_padded
from llmrec.decode.tree import TreeSearch
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.protocol import select_cases
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary, token_names
from llmrec.recommender.recommender import Recommender

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
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, options.dtype)
        self.beams, self.users = options.beams, options.users
        codes = self._load(options) if options.run else self._make(options)
        self.model = self.model.eval().to(self.device, self.dtype)
        self.trie = ItemTrie.build(codes, self.vocabulary.level_sizes)
        self.batch_size = options.batch_size or self.users
        settings = DecodeConfig(
            beams=options.beams, batch_size=self.batch_size, dtype=options.dtype, scoring=options.scoring
        )
        self.tree = TreeSearch(self.model, self.vocabulary, self.trie, settings)
        self.processor = GenerateSearch(self.model, self.vocabulary, self.trie, replace(settings, scoring="vocab"))
        self.next_tokens, self.item = self._dictionary(codes)

    def _load(self, options: argparse.Namespace) -> np.ndarray:
        """Model, tokens and prompts of a run; the codes of its items."""
        recommender = Recommender.from_pretrained(options.run / "model")
        self.model = recommender.model
        self.vocabulary = recommender.renderer.vocabulary
        sequences = load(options.run / "data").split.sequences(recommender.catalog)
        cases = select_cases(sequences, EvaluateConfig(max_users=options.users))
        self.users = len(cases)
        self.prompts = [recommender.ranker.prompt_ids(history) for history in cases.histories]
        return recommender.item_tokenizer.codes

    def _make(self, options: argparse.Namespace) -> np.ndarray:
        """Random model and prompts; random codes."""
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        shape = SHAPES[options.shape]
        words = shape["vocab_size"]
        config = Qwen3Config(
            **(shape | {"vocab_size": words + options.levels * options.codes}), tie_word_embeddings=True
        )
        self.model = Qwen3ForCausalLM(config)
        codes = np.unique(rng.integers(0, options.codes, (options.items, options.levels)), axis=0)
        sizes = [options.codes] * options.levels
        ids = [words + level * options.codes + np.arange(options.codes) for level in range(options.levels)]
        self.vocabulary = ItemVocabulary(token_names(sizes), ids)
        self.prompts = rng.integers(0, words, (options.users, options.prompt_tokens)).tolist()
        return codes

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
        return self.tree.search(self.prompts, self.beams).items

    def logits_processor(self) -> np.ndarray:
        """Items int64 [users, beams]."""
        return self.processor.search(self.prompts, self.beams).items

    @torch.inference_mode()
    def generate(self) -> np.ndarray:
        """Items int64 [users, beams]."""
        settings = GenerationConfig(
            do_sample=False,
            num_beams=self.beams,
            num_return_sequences=self.beams,
            max_new_tokens=self.trie.levels,
            length_penalty=0.0,
            pad_token_id=0,
        )
        found = np.empty((self.users, self.beams), dtype=np.int64)
        with plain_generation(self.model):
            for users, ids, mask in self._batches():
                length = ids.shape[1]
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=settings,
                    prefix_allowed_tokens_fn=lambda _, row, start=length: self.next_tokens[tuple(row[start:].tolist())],
                )
                items = [self.item[tuple(row)] for row in output[:, length:].tolist()]
                found[users] = np.array(items).reshape(len(users), self.beams)
        return found

    @torch.inference_mode()
    def prefill(self) -> None:
        """One forward pass over each batch of prompts."""
        for _, ids, mask in self._batches():
            self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=True)

    def _batches(self) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Users of a batch with their padded prompts and mask; prompts of like length together, as in ours."""
        by_length = sorted(range(self.users), key=lambda user: len(self.prompts[user]))
        for start in range(0, self.users, self.batch_size):
            users = by_length[start : start + self.batch_size]
            yield users, *left_padded([self.prompts[user] for user in users], self.tree.pad_token_id, self.tree.device)

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
    parser.add_argument("--run", type=Path, help="a finished run directory; default: made-up model, items and prompts")
    parser.add_argument("--users", type=int, default=16, help="requests")
    parser.add_argument("--batch-size", type=int, help="requests decoded together; default: all")
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
        "settings": {
            **vars(options),
            "run": str(options.run),
            "device": str(bench.device),
            "weights": bench.model.num_parameters(),
        },
        "users_per_second": rate,
        "same_top_k": bool((answers["llmrec"] == answers["generate"]).all()) if options.scoring == "vocab" else None,
    }
    if options.json:
        print(json.dumps(result))
        return
    rows = [["", "users/s", "times generate", "of prefill"]]
    for name, value in rate.items():
        rows.append([name, f"{value:.2f}", f"{value / rate['generate']:.1f}", f"{value / rate['prefill']:.2f}"])
    print(plain(rows))
    print(f"same top k: {result['same_top_k']}")


if __name__ == "__main__":
    main()
