"""The report on semantic IDs: figures, typical items and words of each first-level code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.console import printable
from llmrec.quantize.base import Quantizer, Rows, Some, sample
from llmrec.quantize.report.figures import (
    MAX_QUERIES,
    Reconstruction,
    blocks,
    code_figures,
    collision_rate,
    companions,
    distortion,
    distortion_by_level,
    embedding_hit_rate,
    jaccard,
    nearest,
    order_by_content,
    prefix_cohesion,
    rank_biased_overlap,
    unit,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from llmrec.collaborative.behaviour import Behaviour

TYPICAL = 3
"""Most typical items listed per code."""


WORDS = 5
"""Most words listed per code."""


def describe_codes(x: Rows, first: np.ndarray, item_ids: Sequence[str], titles: Sequence[str]) -> list[dict[str, Any]]:
    """Describe each first-level code that items use, by typical items and by words of their titles.

    Args:
        x: embeddings [N, D].
        first: integers [N], the items' first codes.
        item_ids: of the N items.
        titles: of the N items.

    Returns:
        One dictionary per code, the code with most items first: `code`; `items`, their number; `typical`, the
        `item_id` and `title` of the items whose embeddings are nearest by cosine to the mean of the code's items,
        nearest first, equally near ones by id; and `words`, see `telling_words`.
    """
    used, place, sizes = np.unique(first, return_inverse=True, return_counts=True)
    typical = _typical(x, place, len(used), item_ids)
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


def _typical(x: Rows, group: np.ndarray, groups: int, item_ids: Sequence[str]) -> list[list[int]]:
    """Return, per group, the `TYPICAL` rows nearest by cosine to its mean, nearest first; `group` is int64 [N]."""
    means = np.zeros((groups, x[:1].shape[1]))
    for where, block in blocks(x):
        np.add.at(means, group[where], block)
    means = unit(means)
    cosine = np.empty(len(x), np.float32)
    for where, block in blocks(x):
        cosine[where] = (unit(block) * means[group[where]]).sum(axis=1)
    order = np.lexsort((-cosine, group))
    ends = np.cumsum(np.bincount(group, minlength=groups))
    typical = []
    for rows in np.split(order, ends[:-1]):
        near = rows[cosine[rows] >= cosine[rows[:TYPICAL][-1]]]
        typical.append(sorted(near.tolist(), key=lambda row: (-cosine[row], item_ids[row]))[:TYPICAL])
    return typical


WORD = r"(?u)\b[^\W\d_]\w+\b"
"""Pattern of a word: two or more letters or digits, of which the first is a letter."""


def telling_words(titles: Sequence[str], group: np.ndarray, groups: int) -> list[list[str]]:
    """Find the words that best distinguish the titles of each group from all titles.

    The score of a word is p log(p / q), with p the share of the group's titles, and q the share of all titles, that
    contain the word: TF-IDF with the group as the document. A word needs a score above 0 and, in a group of two or
    more titles, at least two titles that contain it.

    Args:
        titles: of the N items.
        group: group of each title, integers [N], 0 to groups - 1.
        groups: number of groups.

    Returns:
        Per group at most `WORDS` words, best first.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, token_pattern=WORD, dtype=np.float32)
    try:
        has = vectorizer.fit_transform(titles)
    except ValueError:  # sklearn raises it if no title has a word
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
    """Return a float32 matrix [groups, N] that is 1 where item n belongs to group g, else 0."""
    from scipy.sparse import csr_array

    ones = np.ones(len(group), np.float32)
    return csr_array((ones, (group, np.arange(len(group)))), (groups, len(group)))


SHOWN_CODES = 5
"""Number of first-level codes that the text output describes; report.json describes all."""


class Report(dict[str, Any]):
    """The figures of report.json; `str` formats them as a table."""

    def __str__(self) -> str:
        return "\n".join([self._levels(), self._whole()])

    @property
    def headline(self) -> str:
        """One line with the method, the number of items, and the sizes of the codebooks."""
        sizes = self["level_sizes"]
        alike = len(set(sizes)) == 1
        codebooks = (
            f"{len(sizes)} levels x {sizes[0]} codes" if alike else f"levels of {', '.join(map(str, sizes))} codes"
        )
        return f"{self['method']}: {self['items']} items, {codebooks}"

    def _levels(self) -> str:
        lines = [
            self.headline,
            "level   usage  perplexity  entropy    gini  cohesion  distortion",
        ]
        columns = ("usage", "perplexity", "entropy", "gini", "prefix_cohesion", "distortion_by_level")
        values = [self[name] or [None] * self["levels"] for name in columns]
        for level, (usage, perplexity, *rest) in enumerate(zip(*values, strict=True), 1):
            entropy, gini, cohesion, error = (_or_dash(value) for value in rest)
            lines.append(
                f"{level:5d}  {usage:6.1%}  {perplexity:10.1f}  {entropy:>7}  {gini:>6}  {cohesion:>8}  {error:>10}"
            )
        return "\n".join(lines)

    def _whole(self) -> str:
        lines = [
            f"collision rate      {self['collision_rate']:.2%} (largest group {self['max_collision']}), "
            f"{self['collision_rate_after']:.2%} after re-assignment",
            f"unique afterwards   {'yes' if self['unique_after'] else 'no'}",
            f"distortion          {_or_dash(self['distortion'], 4)} of the variance",
            f"neighbours kept     {self['neighbour_jaccard@20']:.4f} (Jaccard@20), {self['rbo@20']:.4f} (RBO@20)",
        ]
        if hits := self["emb_hr@20"]:
            lines.append(
                f"taken together      {hits['reconstruction']:.4f} of an item's companions are among its 20 nearest "
                f"(EmbHR@20; {hits['raw']:.4f} before quantization)"
            )
        if training := self.get("training"):
            curve = ", ".join(
                f"{epoch}: {rate:.2%}"
                for epoch, rate in zip(training["epochs"], training["collision_rate"], strict=True)
            )
            lines.append(f"collisions by epoch {curve}; kept {training['kept']}")
        if perplexity := self.get("word_perplexity"):
            unigram, *by_level = (f"{value:.1f}" for value in perplexity)
            lines.append(
                f"words of the texts  perplexity {unigram} by frequency, {', '.join(by_level)} by the first codes of "
                "each length"
            )
        lines.append(
            f"time                {self['fit_seconds']:.1f} s to fit, "
            f"{self['encode_items_per_second']:.0f} items/s to encode"
        )
        return "\n".join(lines)

    def words(self, most: int = SHOWN_CODES) -> str:
        """Return the words and typical items of the `most` largest first-level codes as text; empty without titles."""
        lines = []
        for entry in (self["words"] or [])[:most]:
            words = ", ".join(entry["words"]) or "no common word"
            lines.append(f"code {entry['code']}: {entry['items']} items; {words}")
            lines += [f"    {item['item_id']}  {_short(item['title'])}" for item in entry["typical"]]
        if self["words"] and len(self["words"]) > most:
            lines.append(f"and {len(self['words']) - most} more first-level codes; --json shows all")
        return "\n".join(lines)


def measure(
    x: Rows,
    codes: np.ndarray,
    settled: np.ndarray,
    quantizer: Quantizer,
    seed: int,
    behaviour: "Behaviour | None" = None,
    item_ids: Sequence[str] = (),
    titles: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compute all figures of the report, except the method's name and the times.

    Two figures describe `settled`, all others describe `codes`: `collision_rate_after` is the collision rate of the
    first L levels of `settled`, and `unique_after` says whether all items have different semantic IDs.

    Args:
        x: embeddings [N, D], read in blocks.
        codes: int32 [N, L], as the quantizer gave them.
        settled: int32 [N, L'], L' >= L: the semantic IDs after collisions are resolved.
        quantizer: made `codes`.
        seed: of the samples of items and pairs.
        behaviour: of the training log; without it, `emb_hr@20` is None.
        item_ids: of the N items.
        titles: of the N items; without them, `words` is None.

    Returns:
        The figures by name.
    """
    reconstruction = Reconstruction(quantizer, codes)
    by_level = distortion_by_level(x, quantizer, codes)
    return {
        "levels": quantizer.levels,
        "codes": quantizer.codes,
        "level_sizes": quantizer.level_sizes,
        "items": len(codes),
        **code_figures(codes, quantizer.level_sizes),
        "collision_rate_after": collision_rate(settled[:, : quantizer.levels]),
        "unique_after": collision_rate(settled) == 0,
        "distortion": by_level[-1] if by_level else distortion(x, reconstruction),
        "distortion_by_level": by_level,
        "prefix_cohesion": prefix_cohesion(x, codes, seed),
        **_neighbourhood(x, reconstruction, seed, behaviour),
        "words": describe_codes(x, codes[:, 0], item_ids, titles) if titles is not None else None,
    }


def _neighbourhood(x: Rows, reconstruction: Rows, seed: int, behaviour: "Behaviour | None") -> dict[str, Any]:
    """Compute `neighbour_jaccard@20`, `rbo@20` and `emb_hr@20`.

    One search among the embeddings and one among the reconstructions serve all three figures. Items with equal
    reconstructions are equally near; in `order_by_content`, an order unrelated to their likeness decides between them.
    """
    order = order_by_content(x)
    asked = sample(np.arange(len(x)), MAX_QUERIES, seed)
    known = np.empty(0, np.int64)
    if behaviour is not None:
        known = sample(np.flatnonzero(np.diff(behaviour.pairs.indptr)[order]), MAX_QUERIES, seed)
    queries = np.union1d(asked, known)
    before, after = (order[nearest(Some(vectors, order), queries)] for vectors in (x, reconstruction))
    of_asked, of_known = np.searchsorted(queries, asked), np.searchsorted(queries, known)
    hits = None
    if behaviour is not None and len(known):
        together = companions(behaviour, order[known])
        hits = {
            "raw": embedding_hit_rate(together, before[of_known]),
            "reconstruction": embedding_hit_rate(together, after[of_known]),
        }
    return {
        "neighbour_jaccard@20": jaccard(before[of_asked], after[of_asked]),
        "rbo@20": rank_biased_overlap(before[of_asked], after[of_asked]),
        "emb_hr@20": hits,
    }


def _or_dash(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(title: str, most: int = 80) -> str:
    title = printable(title)
    return title if len(title) <= most else title[: most - 1].rstrip() + "…"
