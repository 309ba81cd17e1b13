"""Cost of long histories: SASRec's attention, quadratic in the history's length, beside LISA's, which is linear.

    python scripts/bench_history.py [--lengths 100 1000 10000] [--models sasrec lisa] [--items 3496]

Each model and length has a process of its own, on one thread. The table shows the processor's seconds, medians of
`--rounds`, for a training step (the loss of each item of one history, with its gradient) and for an answer (the scores
of all items after it); and what the steps added to the largest memory of the process. The sizes are those of the
baselines; only `max_history` grows.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from llmrec.collaborative.config import LISAConfig, SASRecConfig
from llmrec.collaborative.lisa import HistogramNetwork
from llmrec.collaborative.sasrec import SASRecNetwork

MODELS = {"sasrec": (SASRecNetwork, SASRecConfig), "lisa": (HistogramNetwork, LISAConfig)}


class Cost(NamedTuple):
    """Seconds of a training step and of an answer, and MiB that the steps added."""

    step: float
    answer: float
    memory: float


def peak() -> float:
    """Largest memory of this process so far, in MiB, on Linux; `resource` would count that of its parent."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure(model: str, length: int, items: int, rounds: int) -> Cost:
    """The cost of a history of `length` items among `items`; call it in a new process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, config = MODELS[model]
    network = make(items, config(max_history=length))
    history = np.random.default_rng(0).integers(0, items, length + 1)
    following, steps, answers = torch.from_numpy(history[1:]), [], []
    before = peak()
    for _ in range(rounds):
        start = time.thread_time()
        F.cross_entropy(network.logits(network([history[:-1]])), following).backward()
        steps.append(time.thread_time() - start)
    added = peak() - before
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.thread_time()
            network.logits(network.eval()([history[:-1]])[-1:])
            answers.append(time.thread_time() - start)
    return Cost(median(steps), median(answers), added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--items", type=int, default=3496)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, dict[int, Cost]] = {model: {} for model in options.models}
    for length in options.lengths:
        for model in options.models:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                results[model][length] = alone.submit(measure, model, length, options.items, options.rounds).result()
    if options.json:
        print(json.dumps({model: {n: cost._asdict() for n, cost in costs.items()} for model, costs in results.items()}))
        return
    print(f"{'length':>8} {'model':<8} {'step s':>10} {'answer s':>10} {'memory MiB':>12}")
    for length in options.lengths:
        for model, costs in results.items():
            step, answer, memory = costs[length]
            print(f"{length:>8,} {model:<8} {step:>10.4f} {answer:>10.4f} {memory:>12.0f}")


if __name__ == "__main__":
    main()
