"""`llmrec predict` as a job of Ray Data: the same flags, the same rows, on the workers of a Ray cluster.

    pip install ".[ray]"
    python scripts/predict_ray.py --workers 2 --model runs/quickstart/model --input users.parquet --output recs.parquet

Ray runs on this machine, or on the cluster that the environment variable RAY_ADDRESS names; all its machines must reach
the model, the input and the folder of the output under the same paths. A killed job goes on from its finished chunks.
"""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from llmrec.cli.predict import parser, write
from llmrec.cli.recommend import load_ranked
from llmrec.errors import UserError
from llmrec.serve.predict import Chunk, Predicted, chunks, make_part


class Maker:
    """An actor: it loads the bundle once and makes parts, whose names are the rows of the dataset."""

    def __init__(self, options: Any, folder: Path, fields: dict[str, Any]) -> None:
        self.options, self.folder, self.fields = options, folder, fields
        self.recommender = load_ranked(options)
        self.parts = chunks(Path(options.input))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for name in batch["part"]:
            make_part(self.recommender, self.find(name), self.folder / name, **self.fields)
        return batch

    def find(self, wanted: str) -> Chunk:
        """The users of a part. Reads on from the last one; an earlier one, after a lost actor, from the start."""
        for _ in range(2):
            for name, chunk in self.parts:
                if name == wanted:
                    return chunk
            self.parts = chunks(Path(self.options.input))
        raise LookupError(f"{wanted}: the input has changed")


def make(
    options: Any, fields: dict[str, Any], parts: Iterator[tuple[str, Chunk]], folder: Path, there: set[str]
) -> Predicted:
    """Make the missing parts in `folder` by Ray Data."""
    sizes = {name: len(chunk) for name, chunk in parts}
    missing = [name for name in sizes if name not in there]
    started = time.perf_counter()
    if missing:
        dataset = ray.data.from_items([{"part": name} for name in missing], override_num_blocks=len(missing))
        dataset.map_batches(
            Maker,
            fn_constructor_args=(options, folder, fields),
            batch_size=1,
            compute=ActorPoolStrategy(size=options.workers),
            num_gpus=options.gpus,
        ).materialize()
    resumed = sum(size for name, size in sizes.items() if name in there)
    return Predicted(sum(sizes.values()), resumed, time.perf_counter() - started)


def main() -> None:
    flags = parser("predict_ray.py")
    flags.add_argument("--workers", type=int, default=2, help="actors, each with the model in memory (default 2)")
    flags.add_argument("--gpus", type=float, default=0, help="GPUs per actor, as Ray counts them (default 0)")
    options = flags.parse_args()
    for name in ("model", "input", "output"):  # the actors work in other folders; a model can be on the Hub
        if name == "output" or os.path.exists(getattr(options, name)):
            setattr(options, name, os.path.abspath(getattr(options, name)))
    write(options, lambda fields: partial(make, options, fields))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"predict_ray.py: {error.with_flags}", file=sys.stderr)
        sys.exit(2)
