"""How honest a beam is: how far beams of some widths are from the provably best answers of a trained bundle.

    python scripts/bench_beams.py --model runs/beauty/model --run runs/beauty --users 200 --json

The best come from the best-first search; it takes the same histories, the same scoring and the same filter (items of
the history don't come out), in float32; answers that differ by less than its rounding are the same.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.console import plain
from llmrec.data.prepare import load
from llmrec.decode.config import DecodeConfig
from llmrec.decode.exact import ExactSearch, Prefix
from llmrec.decode.filters import Filter
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.protocol import select_cases
from llmrec.recommender.recommender import Recommender

ROUNDING = 1e-4


class CountingSearch(ExactSearch):
    """Counts the prefixes that it runs through the model."""

    ran = 0

    def _expand(self, context: Any, prefixes: list[Prefix], *rest: Any) -> list[Prefix]:
        self.ran += len(prefixes)
        return super()._expand(context, prefixes, *rest)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The figures for every width, and what the exact search cost."""
    decode = DecodeConfig(scoring=options.scoring, beams=options.at_once, device=options.device, dtype="float32")
    recommender = Recommender.from_pretrained(options.model, decode)
    sequences = load(options.run / "data").split.sequences(recommender.catalog)
    cases = select_cases(sequences, EvaluateConfig(max_users=options.users))
    ranker = recommender.ranker
    search = ranker.search
    requests = [ranker.prompt_ids(history) for history in cases.histories]
    filters = [Filter(excluded=np.unique(history)) for history in cases.histories]
    exact = CountingSearch(search.model, search.vocabulary, search.trie, search.config, search.pad_token_id)
    best = exact.search(requests, options.k, filters)
    widths = {}
    for beams in options.beams:
        found = search.search(requests, options.k, filters, beams=beams)
        gap = np.where(best.items >= 0, best.scores, 0) - np.where(found.items >= 0, found.scores, 0)
        assert gap.min() > -ROUNDING, "a beam found better than the best"
        common = [len(np.intersect1d(a[a >= 0], b)) for a, b in zip(best.items, found.items, strict=True)]
        widths[beams] = {
            "same_top_k": float((gap < ROUNDING).all(axis=1).mean()),
            "overlap": float(np.mean(common) / options.k),
            "same_first": float((gap[:, 0] < ROUNDING).mean()),
            "log_probability_gap": float(gap.clip(min=0).mean()),
        }
    return {
        "settings": {
            "model": str(options.model),
            "items": len(recommender.catalog),
            "users": len(cases),
            "k": options.k,
            "scoring": search.config.scoring,
            "at_once": options.at_once,
        },
        "exact_prefixes": exact.ran / len(cases),
        "prefixes": sum(len(nodes) for nodes in search.trie.node_codes[:-1]),
        "beams": widths,
    }


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a bundle, such as RUN/model")
    parser.add_argument("--run", type=Path, required=True, help="the run directory that has its data")
    parser.add_argument("--users", type=int, default=200, help="histories from the test part")
    parser.add_argument("--k", type=int, default=10, help="answers")
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 20, 50], help="widths to judge")
    parser.add_argument("--scoring", choices=["auto", "vocab", "level", "catalogue"], default="auto")
    parser.add_argument("--at-once", type=int, default=20, help="prefixes that the exact search runs together")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    result = compare(options)
    if options.json:
        print(json.dumps(result))
        return
    rows = [["beams", "same top k", "overlap", "same first", "gap"]]
    for beams, figures in result["beams"].items():
        rows.append([str(beams), *(f"{value:.4f}" for value in figures.values())])
    print(plain(rows))
    print(f"exact: {result['exact_prefixes']:.1f} of {result['prefixes']} prefixes run per user")


if __name__ == "__main__":
    main()
