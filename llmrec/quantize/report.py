"""How good the codes are: usage, collisions, distortion, neighbourhood; as JSON, table and picture."""

from pathlib import Path
from typing import Any

import numpy as np

from llmrec.quantize.collisions import collision_groups

NEIGHBOURS = 20
MAX_QUERIES = 1000
"""Items whose neighbours are compared; a seeded sample in a larger catalogue."""


class Report(dict[str, Any]):
    """The figures of report.json; printing it gives a table."""

    def __str__(self) -> str:
        lines = [
            f"{self['method']}: {self['items']} items, {self['levels']} levels x {self['codes']} codes",
            "level        usage  perplexity",
        ]
        for level, (usage, perplexity) in enumerate(zip(self["usage"], self["perplexity"], strict=True), 1):
            lines.append(f"{level:5d}  {usage:10.1%}  {perplexity:10.1f}")
        lines += [
            f"collision rate      {self['collision_rate']:.2%} (largest group {self['max_collision']})",
            f"unique afterwards   {'yes' if self['unique_after'] else 'no'}",
            f"distortion          {self['distortion']:.4f} of the variance",
            f"neighbours kept     {self['neighbour_jaccard@20']:.4f} (Jaccard@20)",
            f"time                {self['fit_seconds']:.1f} s to fit, "
            f"{self['encode_items_per_second']:.0f} items/s to encode",
        ]
        return "\n".join(lines)


def code_figures(codes: np.ndarray, level_sizes: list[int]) -> dict[str, Any]:
    """Usage and perplexity per level, and collisions, of codes [N, L] before disambiguation.

    `collision_groups` maps the size of a group of items with equal codes to the number of such groups.
    """
    usage, perplexity = [], []
    for level, size in enumerate(level_sizes):
        share = np.bincount(codes[:, level], minlength=size) / len(codes)
        used = share[share > 0]
        usage.append(len(used) / size)
        perplexity.append(float(np.exp(-(used * np.log(used)).sum())))
    sizes = collision_groups(codes)[1]
    groups = np.unique(sizes, return_counts=True)
    return {
        "usage": usage,
        "perplexity": perplexity,
        "collision_rate": 1 - len(sizes) / len(codes),
        "max_collision": int(sizes.max()),
        "collision_groups": {str(size): int(count) for size, count in zip(*groups, strict=True)},
    }


def distortion(x: np.ndarray, reconstruction: np.ndarray) -> float:
    """Mean squared error of the reconstruction [N, D] over the variance of `x` [N, D]; 0 is perfect."""
    return float(((x - reconstruction) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def neighbour_jaccard(x: np.ndarray, reconstruction: np.ndarray, seed: int) -> float:
    """Mean Jaccard overlap of the `NEIGHBOURS` nearest items by cosine, in `x` and in its reconstruction.

    At most `MAX_QUERIES` items are asked about, always against all N; the item itself does not count.
    """
    queries = np.arange(len(x))
    if len(x) > MAX_QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(len(x), MAX_QUERIES, replace=False))
    before, after = _neighbours(x, queries), _neighbours(reconstruction, queries)
    shared = (before[:, :, None] == after[:, None, :]).sum(axis=(1, 2))
    return float((shared / (2 * before.shape[1] - shared)).mean())


def _neighbours(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Rows of `x` nearest by cosine to the rows `queries`, themselves left out, [Q, k]."""
    import faiss

    k = min(NEIGHBOURS, len(x) - 1)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    found = faiss.knn(unit[queries], unit, k + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
    # among k + 1 items with equal vectors the item itself may be missing: then the last one goes
    is_self = found == queries[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(len(queries), k)


def save_picture(report: Report, path: Path) -> None:
    """Draw usage and perplexity per level, and the sizes of collision groups, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    level = np.arange(1, report["levels"] + 1)
    share = np.array(report["perplexity"]) / report["codes"]
    left.bar(level - 0.2, report["usage"], 0.4, label="usage")
    left.bar(level + 0.2, share, 0.4, label="perplexity / codes")
    left.set(xlabel="level", ylim=(0, 1.25), xticks=level, title=f"{report['method']}: codebooks")
    left.legend(loc="upper center", ncols=2)
    groups = report["collision_groups"]
    right.bar([int(size) for size in groups], list(groups.values()))
    right.set(xlabel="items with the same codes", ylabel="groups", yscale="log")
    right.set_title(f"collision rate {report['collision_rate']:.2%}")
    figure.savefig(path, dpi=120)
