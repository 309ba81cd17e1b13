"""Scoring a million items by look-up tables, ours beside faiss, in one run.

    python scripts/bench_lookup.py [--items 1000000] [--dims 64] [--levels 8] [--vectors FILE.safetensors]

The vectors are noisy copies of random centres, or a tensor of a file, such as embed/embeddings.safetensors of a run or
`items` in the dense head's index of a bundle. Every method finds the ten largest inner products of each query, one
query at a time, on one thread. Times are of the processor, without waiting. `recall@10` is the share of the ten exact
best items that a method finds; the queries are vectors of items with noise. `flat` is the full table, `ours` scores all
items by look-up tables of their codes, `faiss PQ` does the same with faiss's own codes, and `faiss IVF-PQ` scores only
some cells of an inverted file.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import torch
from safetensors.numpy import load_file

from llmrec.index.lookup import LookupIndex
from llmrec.quantize import TokenizeConfig

K = 10


def planted(items: int, dims: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors around a thousand centres, float32 [items, dims]."""
    centres = rng.standard_normal((1000, dims), np.float32)
    found = centres[rng.integers(0, 1000, items)] + 0.7 * rng.standard_normal((items, dims), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def timed(answer: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
    """The rows of the best items of each query [B, K], and the median of the thread's milliseconds per query."""
    seconds, rows = [], []
    for round_ in range(rounds):
        for query in queries:
            start = time.thread_time()
            found = answer(query[None])
            seconds.append(time.thread_time() - start)
            if round_ == 0:
                rows.append(found[0])
    return np.stack(rows), 1000 * median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--vectors", type=Path, help="take the vectors from the largest matrix of this file")
    parser.add_argument("--cells", type=int, default=1024, help="cells of the inverted file")
    parser.add_argument("--train", type=int, default=50_000, help="vectors that codes are learnt from")
    parser.add_argument("--methods", nargs="+", default=["pq", "rq-kmeans"], help="of ours: pq, rq-kmeans, aq")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    if options.vectors is not None:
        vectors = max(load_file(options.vectors).values(), key=lambda tensor: tensor.size).astype(np.float32)
    else:
        vectors = planted(options.items, options.dims, rng)
    n, dims = vectors.shape
    noise = rng.standard_normal((options.queries, dims), np.float32) * vectors.std()
    queries = vectors[rng.choice(n, options.queries)] + noise

    full = torch.from_numpy(vectors)
    exact, flat_ms = timed(lambda query: (torch.from_numpy(query) @ full.T).topk(K).indices.numpy(), queries, 1)
    results = {"flat": {"ms": flat_ms, "recall@10": 1.0, "bytes_per_item": 4.0 * dims}}

    def add(name: str, answer: Callable[[np.ndarray], np.ndarray], size: float, fit: float) -> None:
        rows, ms = timed(answer, queries, options.rounds)
        hits = np.mean([len(np.intersect1d(mine, best)) / K for mine, best in zip(rows, exact, strict=True)])
        results[name] = {"ms": ms, "recall@10": float(hits), "bytes_per_item": size / n, "fit_seconds": fit}

    for method in options.methods:
        start = time.thread_time()
        config = TokenizeConfig(method=method, levels=options.levels, codes=256, fit_rows=options.train, iterations=10)
        index = LookupIndex.of(vectors, config)
        fit = time.thread_time() - start
        add(f"ours, {method}", lambda query, index=index: index.top(query, K)[1].numpy(), index.bytes, fit)
    sample = vectors[rng.choice(n, min(n, options.train), replace=False)]
    spaces = {
        "faiss PQ": faiss.IndexPQ(dims, options.levels, 8, faiss.METRIC_INNER_PRODUCT),
        "faiss IVF-PQ": faiss.IndexIVFPQ(
            faiss.IndexFlatIP(dims), dims, options.cells, options.levels, 8, faiss.METRIC_INNER_PRODUCT
        ),
    }
    for name, space in spaces.items():
        start = time.thread_time()
        space.train(sample)
        space.add(vectors)
        fit = time.thread_time() - start
        size = faiss.serialize_index(space).nbytes
        for probes in (1, 8, 64) if "IVF" in name else (0,):
            if probes:
                space.nprobe = probes
            label = f"{name}, {probes} of {options.cells} cells" if probes else name
            add(label, lambda query, space=space: space.search(query, K)[1], size, fit)
    if options.json:
        print(json.dumps({"items": n, "dims": dims, "levels": options.levels, "results": results}))
        return
    print(f"{n:,} items, {dims} dimensions, {options.levels} levels of 256 codes, one thread")
    for name, found in results.items():
        print(
            f"{name:<30} {found['ms']:8.2f} ms  recall@10 {found['recall@10']:.3f}  "
            f"{found['bytes_per_item']:6.1f} bytes per item  fit {found.get('fit_seconds', 0):6.1f} s"
        )


if __name__ == "__main__":
    main()
