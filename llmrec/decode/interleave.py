"""Two rankings as one with a quota for the second in every prefix, as TIGER has for cold items (arXiv 2305.05065)."""

import numpy as np


def interleave(first: np.ndarray, second: np.ndarray, epsilon: float, k: int) -> np.ndarray:
    """The first k of both rankings together, of which every prefix of length s holds floor(epsilon s) of the second.

    Slot s, counted from 1, is the second's where floor(epsilon s) > floor(epsilon (s - 1)); where one ranking has run
    out, the other fills.

    Args:
        first: int [B, K1], best first; -1 pads at the end.
        second: the same, int [B, K2], with other items.
        epsilon: share of the second's slots, from 0 to 1.
        k: slots.

    Returns:
        int64 [B, k], -1 where both have run out.

    Raises:
        ValueError: `epsilon` is no share, or the numbers of rows differ.
    """
    if not 0 <= epsilon <= 1 or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} rows to interleave with a share of {epsilon}")
    slots = np.arange(k + 1)
    firsts, seconds = ((ranking >= 0).sum(axis=1)[:, None] for ranking in (first, second))
    # The second's items among the first s slots; 1e-9 as .29 * 100 falls short of 29.
    taken = np.minimum(np.maximum(np.floor(epsilon * slots + 1e-9).astype(np.int64), slots - firsts), seconds)
    theirs = taken[:, 1:] > taken[:, :-1]
    return np.where(theirs, _at(second, taken[:, 1:] - 1), _at(first, slots[1:] - taken[:, 1:] - 1))


def _at(ranking: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Items at `places` [B, k] of the ranking, -1 beyond its end."""
    padded = np.pad(ranking.astype(np.int64), ((0, 0), (0, 1)), constant_values=-1)
    return np.take_along_axis(padded, np.clip(places, 0, ranking.shape[1]), axis=1)
