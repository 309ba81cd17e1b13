"""What the first-level codes stand for: their most typical items, and the words that set their titles apart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.quantize.report.rows import Rows, blocks, unit

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TYPICAL = 3
"""Items shown per code."""
WORDS = 5
"""Words shown per code."""


def describe_codes(x: Rows, first: np.ndarray, item_ids: Sequence[str], titles: Sequence[str]) -> list[dict[str, Any]]:
    """Each first-level code in use, the one with most items first, by its typical items and its words.

    Args:
        x: embeddings [N, D].
        first: integers [N], the items' first codes.
        item_ids, titles: of the N items.

    Returns:
        Per code `code`, `items` (how many), `typical` (`item_id` and `title` of the items whose embeddings are nearest
        to the code's mean by cosine, nearest first) and `words`.
    """
    used, place, sizes = np.unique(first, return_inverse=True, return_counts=True)
    typical = _typical(x, place, len(used))
    words = telling_words(titles, place, len(used))
    return [
        {
            "code": int(used[group]),
            "items": int(sizes[group]),
            "typical": [{"item_id": item_ids[row], "title": titles[row]} for row in typical[group]],
            "words": words[group],
        }
        for group in np.argsort(-sizes, kind="stable")
    ]


def _typical(x: Rows, group: np.ndarray, groups: int) -> list[np.ndarray]:
    """The `TYPICAL` rows of each group nearest to its mean by cosine, nearest first; `group` int64 [N]."""
    means = np.zeros((groups, x[:1].shape[1]))
    for where, block in blocks(x):
        np.add.at(means, group[where], block)
    means = unit(means)
    cosine = np.empty(len(x), np.float32)
    for where, block in blocks(x):
        cosine[where] = (unit(block) * means[group[where]]).sum(axis=1)
    order = np.lexsort((-cosine, group))
    ends = np.cumsum(np.bincount(group, minlength=groups))
    return [rows[:TYPICAL] for rows in np.split(order, ends[:-1])]


def telling_words(titles: Sequence[str], group: np.ndarray, groups: int) -> list[list[str]]:
    """For each group of titles the `WORDS` words, best first, that most tell its titles from the others.

    With p the share of the group's titles that have the word and q that of all titles, a word's worth is
    p log(p / q): TF-IDF with the group as the document. Only a word commoner in the group than elsewhere counts, and
    in a group of several titles one that at least two of them have.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b[^\W\d_]\w+\b", dtype=np.float32)
    try:
        has = vectorizer.fit_transform(titles)
    except ValueError:  # sklearn: empty vocabulary
        return [[] for _ in range(groups)]
    vocabulary = vectorizer.get_feature_names_out()
    sizes = np.bincount(group, minlength=groups)
    overall = np.asarray(has.sum(axis=0)).ravel() / len(titles)
    counts = _one_hot(group, groups) @ has
    telling = []
    for number, size in enumerate(sizes):
        row = counts[[number]].tocoo()
        share = row.data / size
        worth = share * np.log(share / overall[row.col])
        good = (worth > 0) & (row.data >= min(2, size))
        best = np.lexsort((row.col[good], -worth[good]))[:WORDS]
        telling.append(vocabulary[row.col[good][best]].tolist())
    return telling


def _one_hot(group: np.ndarray, groups: int) -> "csr_array":
    """float32 [groups, N] with a one for each member."""
    from scipy.sparse import csr_array

    ones = np.ones(len(group), np.float32)
    return csr_array((ones, (group, np.arange(len(group)))), (groups, len(group)))
