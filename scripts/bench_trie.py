"""The trie by the number of items, beams and levels: build seconds, bytes, changes, the cost of a step of the search.

    python scripts/bench_trie.py [--max-items 10000000] [--rounds 5] [--json]

A step is what `TreeSearch` does at a level besides running the model: score the codes of 16 users' beams, look up the
children of their prefixes, keep the best, walk there; timed on the beams that win by random hidden states, mean of
the levels. `filtered` is a step where each user may get 0.1 % of the items, `filter` what preparing these filters costs
per batch. Calls are whole ones, prompts of 120 tokens included, with the small model of `bench_decode.py`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_decode import SHAPES
from transformers import Qwen3Config, Qwen3ForCausalLM

from llmrec.console import plain
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter, Restriction
from llmrec.decode.tree import Beams, TreeSearch
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary, token_names

CODES, USERS, WORDS = 256, 16, 64
NARROW = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 32}
CHANGED = 10_000
"""Items added and removed, at most a tenth of the catalogue."""


def random_codes(items: int, levels: int) -> np.ndarray:
    """int64 [N, L]."""
    return np.random.default_rng(items + levels).integers(0, CODES, (items, levels))


def make_search(trie: ItemTrie, beams: int, shape: dict[str, int]) -> TreeSearch:
    """A search with a random model of `shape`; scoring level, whose head is the cheapest."""
    torch.manual_seed(0)
    sizes = trie.level_sizes
    model = Qwen3ForCausalLM(
        Qwen3Config(**(shape | {"vocab_size": WORDS + sum(sizes), "num_key_value_heads": 1}), tie_word_embeddings=True)
    )
    ids = [WORDS + level * CODES + np.arange(CODES) for level in range(len(sizes))]
    config = DecodeConfig(beams=beams, scoring="level", dtype="float32")
    return TreeSearch(model, ItemVocabulary(token_names(sizes), ids), trie, config)


def filters(items: int) -> list[Filter]:
    """For each user, another 0.1 % of the items."""
    rng = np.random.default_rng(1)
    return [Filter(allowed=rng.choice(items, max(1, items // 1000), replace=False)) for _ in range(USERS)]


class Steps:
    """The levels of one search, without the model between them.

    Args:
        search: whose steps to time.
        beams: K.
    """

    def __init__(self, search: TreeSearch, beams: int) -> None:
        self.search = search
        self.beams = beams
        torch.manual_seed(0)
        self.hidden = [torch.randn(USERS, 1 if level == 0 else beams, 32) for level in range(search.trie.levels)]

    @torch.inference_mode()
    def __call__(self, restriction: Restriction | None = None) -> None:
        """Walk down all levels."""
        zeros = torch.zeros((USERS, 1), dtype=torch.int64)
        none = torch.empty((USERS, 1, 0), dtype=torch.int64)
        beams = Beams(zeros.float(), zeros, zeros, none, zeros.float())
        for level, hidden in enumerate(self.hidden):
            beams = self.search._advance(
                level, beams, hidden[:, : beams.scores.shape[1]], self.beams, restriction, None
            )


def seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first warms up
                taken[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in taken.items()}


def timed(way: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = way()
    return time.perf_counter() - start, result


def by_items(items: int, rounds: int) -> dict[str, float]:
    """Build, size, changes and steps of one catalogue."""
    codes = random_codes(items, 4)
    build, trie = timed(lambda: ItemTrie.build(codes, [CODES] * 4))
    changed = min(CHANGED, items // 10)
    add, _ = timed(lambda: trie.with_items(codes[:changed]))
    remove, _ = timed(lambda: trie.without_items(np.arange(changed)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.safetensors"
        trie.save(path)
        load, _ = timed(lambda: ItemTrie.load(path))
    steps = Steps(make_search(trie, 20, NARROW), 20)
    wanted = filters(items)
    restriction = Restriction(trie, wanted)
    ways = {
        "plain": steps,
        "filtered": lambda: steps(restriction),
        "filter": lambda: Restriction(trie, wanted),
    }
    cost = seconds(ways, 10 * rounds)
    search = make_search(trie, 20, SHAPES["small"])
    prompts = np.random.default_rng(2).integers(0, WORDS, (USERS, 120)).tolist()
    calls = seconds(
        {"plain": lambda: search.search(prompts, 20), "filtered": lambda: search.search(prompts, 20, wanted)}, rounds
    )
    return {
        "items": items,
        "build_seconds": build,
        "mebibytes": trie.nbytes / 2**20,
        "load_seconds": load,
        "add_seconds": add,
        "remove_seconds": remove,
        "step_microseconds": cost["plain"] / 4 * 1e6,
        "filtered_step_microseconds": cost["filtered"] / 4 * 1e6,
        "filter_microseconds": cost["filter"] * 1e6,
        "call_milliseconds": calls["plain"] * 1e3,
        "filtered_call_ratio": calls["filtered"] / calls["plain"],
    }


def by_width(items: int, levels: int, beams: int, rounds: int) -> dict[str, float]:
    """Steps of one catalogue with other beams or levels."""
    trie = ItemTrie.build(random_codes(items, levels), [CODES] * levels)
    cost = seconds({"plain": Steps(make_search(trie, beams, NARROW), beams)}, 5 * rounds)
    return {
        "levels": levels,
        "beams": beams,
        "mebibytes": trie.nbytes / 2**20,
        "step_microseconds": cost["plain"] / levels * 1e6,
    }


def table(rows: list[dict[str, float]]) -> str:
    """The rows as text."""
    head = [name.replace("_", " ") for name in rows[0]]
    return plain(
        [
            head,
            *([f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows),
        ]
    )


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-items", type=int, default=10_000_000, help="the largest catalogue of the first table")
    parser.add_argument("--rounds", type=int, default=5, help="times over, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    sizes = [size for size in (10**4, 10**5, 10**6, 10**7) if size <= options.max_items]
    result = {
        "items": [by_items(size, options.rounds) for size in sizes],
        "beams": [by_width(10**5, 4, beams, options.rounds) for beams in (10, 20, 50, 100, 200, 500)],
        "levels": [by_width(10**5, levels, 20, options.rounds) for levels in (2, 3, 4, 6, 8)],
    }
    if options.json:
        print(json.dumps(result))
        return
    for rows in result.values():
        print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
