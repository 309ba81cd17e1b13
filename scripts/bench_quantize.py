"""Fit and encode throughput of residual k-means, ours against faiss and vector-quantize-pytorch, in one run.

    python scripts/bench_quantize.py [--embeddings FILE.safetensors] [--items 100000] [--memory-items 1000000] [--json]

All three quantize the same float32 vectors to the same number of codes, greedily, with the same number of k-means
iterations: `faiss.ResidualQuantizer` with one beam, its default training and its lookup tables, and `ResidualVQ` with
its k-means initialisation over all rows. Encoding is timed in rounds that take turns; the medians are reported. The
peak memory is that of a process that makes the vectors and fits an `ItemTokenizer` on them, its report included; the
growth of a process that loads them from `Embeddings` in another order is given in multiples of the vectors.

Needs the `test` extra, for vector-quantize-pytorch.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Protocol

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # three OpenMP runtimes share the cores here
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np

from llmrec.embed import EmbedConfig, Embeddings, make_encoder
from llmrec.quantize import ItemTokenizer, TokenizeConfig, quantizer_class
from llmrec.quantize.report.figures import distortion


class Contender(Protocol):
    """One library's residual quantizer."""

    def fit(self, x: np.ndarray) -> Any: ...

    def encode(self, x: np.ndarray) -> Any:
        """Whatever the library calls codes."""

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """`x` [N, D] through codes and back."""


class Ours:
    def __init__(self, levels: int, codes: int, iterations: int, rows: int) -> None:
        config = TokenizeConfig("rq-kmeans", levels=levels, codes=codes, iterations=iterations, fit_rows=rows)
        self.quantizer = quantizer_class("rq-kmeans")(config)
        self.fit, self.encode = self.quantizer.fit, self.quantizer.encode

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        return self.quantizer.decode(self.encode(x))


class Faiss:
    def __init__(self, levels: int, codes: int, iterations: int, rows: int) -> None:
        import faiss

        self.settings = (levels, codes.bit_length() - 1)
        self.clustering = {"niter": iterations, "max_points_per_centroid": rows, "min_points_per_centroid": 1}
        self.faiss = faiss

    def fit(self, x: np.ndarray) -> None:
        self.quantizer = self.faiss.ResidualQuantizer(x.shape[1], *self.settings)
        self.quantizer.max_beam_size = 1
        for name, value in self.clustering.items():
            setattr(self.quantizer.cp, name, value)
        self.quantizer.train(x)
        self.quantizer.use_beam_LUT = 1
        self.quantizer.compute_codebook_tables()

    def encode(self, x: np.ndarray) -> np.ndarray:
        return self.quantizer.compute_codes(x)

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        return self.quantizer.decode(self.encode(x))


class VectorQuantizePytorch:
    def __init__(self, levels: int, codes: int, iterations: int, rows: int) -> None:
        self.settings = {"num_quantizers": levels, "codebook_size": codes, "kmeans_iters": iterations}

    def fit(self, x: np.ndarray) -> None:
        import torch
        from vector_quantize_pytorch import ResidualVQ

        torch.manual_seed(0)
        self.module = ResidualVQ(dim=x.shape[1], kmeans_init=True, **self.settings)
        with torch.no_grad():
            self.module(torch.from_numpy(x)[None])
        self.module.eval()

    def encode(self, x: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.module(torch.from_numpy(x)[None])[1].numpy()

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.module(torch.from_numpy(x)[None])[0][0].numpy()


CONTENDERS: dict[str, Callable[[int, int, int, int], Contender]] = {
    "llmrec": Ours,
    "faiss": Faiss,
    "vector_quantize_pytorch": VectorQuantizePytorch,
}


def clustered(items: int, dims: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around centres around centres, float32 [items, dims], made in blocks."""
    rng = np.random.default_rng(seed)
    coarse, fine = rng.normal(size=(200, dims)), 0.6 * rng.normal(size=(2000, dims))
    x = np.empty((items, dims), np.float32)
    for start in range(0, items, 16_384):
        block = x[start : start + 16_384]
        block[:] = coarse[rng.integers(200, size=len(block))] + fine[rng.integers(2000, size=len(block))]
        block += 0.4 * rng.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return x


def bench(x: np.ndarray, levels: int, codes: int, iterations: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of one fit, median encoding rate over the rounds, distortion; by contender."""
    contenders, fit_seconds = {}, {}
    for name, make in CONTENDERS.items():
        contenders[name] = make(levels, codes, iterations, len(x))
        start = time.perf_counter()
        contenders[name].fit(x)
        fit_seconds[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender.encode(x)
            if round_:  # the first warms caches and allocators
                seconds[name].append(time.perf_counter() - start)
    return {
        "fit_seconds": fit_seconds,
        "encode_items_per_second": {name: len(x) / median(taken) for name, taken in seconds.items()},
        "distortion": {name: distortion(x, contender.reconstruct(x)) for name, contender in contenders.items()},
    }


def peak_bytes() -> int:
    """Of the memory of this process, on Linux; `resource` would tell the peak of the parent if that was higher."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def load_worker(folder: Path, items: int, dims: int) -> None:
    """Load `items` vectors in another order in this process, or write them for it; print by how much memory grew."""
    ids = [f"i{row}" for row in range(items)]
    if not folder.exists():
        Embeddings(ids, clustered(items, dims), make_encoder(EmbedConfig("minilm-offline"))).save(folder)
        return
    before = peak_bytes()
    vectors = Embeddings.load(folder, ids[::-1]).vectors
    print(json.dumps({"load_growth": (peak_bytes() - before) / vectors.nbytes}))


def memory_worker(items: int, dims: int, levels: int, codes: int) -> None:
    """Fit a tokenizer on `items` vectors in this process and print what it took."""
    x = clustered(items, dims)
    start = time.perf_counter()
    tokenizer = ItemTokenizer(levels=levels, codes=codes).fit_embeddings([f"i{row}" for row in range(items)], x)
    figures = {
        "items": items,
        "seconds": time.perf_counter() - start,
        "vectors_gib": x.nbytes / 2**30,
        "peak_gib": peak_bytes() / 2**30,
        "distortion": tokenizer.report()["distortion"],
    }
    print(json.dumps(figures))


def worker(words: list[Any]) -> dict[str, float]:
    """What this script prints in a process of its own; nothing is no figure."""
    done = subprocess.run([sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout or "{}")


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="safetensors file with a float32 tensor `embeddings` [N, D]")
    parser.add_argument("--items", type=int, default=100_000, help="made-up vectors, without --embeddings")
    parser.add_argument("--dims", type=int, default=384, help="their dimensions")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256, help="codes per level, a power of two for faiss")
    parser.add_argument("--iterations", type=int, default=25, help="of each k-means")
    parser.add_argument("--rounds", type=int, default=5, help="timed encodings of each")
    parser.add_argument("--memory-items", type=int, default=0, help="measure the peak memory of a fit on so many")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--memory-worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load-worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.codes & (options.codes - 1):
        parser.error(f"--codes {options.codes}: faiss packs codes in whole bits; give a power of two")
    if options.memory_worker:
        memory_worker(options.items, options.dims, options.levels, options.codes)
        return
    if options.load_worker:
        load_worker(options.load_worker, options.items, options.dims)
        return
    if options.embeddings:
        from safetensors.numpy import load_file

        x = load_file(options.embeddings)["embeddings"].astype(np.float32)
    else:
        x = clustered(options.items, options.dims)
    result: dict[str, Any] = {
        "settings": {
            "data": str(options.embeddings or "made up"),
            "items": len(x),
            "dims": x.shape[1],
            **{name: getattr(options, name) for name in ("levels", "codes", "iterations", "rounds")},
            "threads": len(os.sched_getaffinity(0)),
        },
        **bench(x, options.levels, options.codes, options.iterations, options.rounds),
    }
    if options.memory_items:
        size = ["--items", options.memory_items, "--dims", options.dims]
        result["memory"] = worker(["--memory-worker", *size, "--levels", options.levels, "--codes", options.codes])
        with TemporaryDirectory() as parent:
            for _ in ("write", "load"):
                result["memory"] |= worker(["--load-worker", Path(parent) / "embed", *size])
    if options.json:
        print(json.dumps(result))
        return
    _print(result)


def _print(result: dict[str, Any]) -> None:
    from llmrec.console import plain

    print(" ".join(f"{name}={value}" for name, value in result["settings"].items()))
    rate = result["encode_items_per_second"]
    rows = [["", "fit s", "encode items/s", "against ours", "distortion"]]
    for name in rate:
        times = f"{rate['llmrec'] / rate[name]:.2f}x"
        fit, error = result["fit_seconds"][name], result["distortion"][name]
        rows.append([name, f"{fit:.1f}", f"{rate[name]:,.0f}", times, f"{error:.4f}"])
    print(plain(rows))
    if memory := result.get("memory"):
        print(
            f"{memory['items']:,} items: {memory['seconds']:.0f} s to fit, peak {memory['peak_gib']:.2f} GiB, "
            f"of which {memory['vectors_gib']:.2f} are the vectors; "
            f"loading them takes {memory['load_growth']:.2f} times as much"
        )


if __name__ == "__main__":
    main()
