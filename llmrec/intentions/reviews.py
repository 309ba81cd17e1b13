"""Intentions and preferences from review texts: the sentences that tell what somebody wanted the item for.

Only reviews of training events are learned from. Those of the validation and test parts are kept to measure with, and
nothing that decides which training sentences are picked looks at them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer

from llmrec.data import TRAIN, Catalog, Split
from llmrec.data.text import clean_text
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions, IntentionsConfig

SHORTEST, LONGEST = 4, 20
"""Words of a sentence."""
PURPOSE = 0.5
"""What a purpose adds to the likeness (cosine of TF-IDF) of a sentence to the item's text."""
LEAST = 0.25
"""Worth of a sentence that is picked."""

_END = re.compile(r"(?<=[.!?…])\s+|\s*\.{2,}\s*|(?<=[a-z])[.!?](?=[A-Z])")
_PURPOSE = re.compile(
    r"\bfor (?!(?:the (?:price|money)|me|us|it|that|this|sure|free|all|now|some reason|what|years?)\b)[a-z]"
    r"|\b(?:gifts?|presents?) (?:to|idea)\b|\bas an? (?:\w+ )?(?:gift|present)\b"
    r"|\bto (?:buy|clean|cook|cut|eat|fit|fix|give|hold|keep|make|play|protect|replace|send|store|treat|use|wear)\b"
    r"|\b(?:need(?:ed|s)?|want(?:ed|s)?|looking for|whenever|if you|who (?:enjoy|like|love|need|want)s?)\b"
    r"|\b(?:anniversary|birthdays?|christmas|graduat\w+|holidays?|occasions?|wedding)\b",
    re.IGNORECASE,
)
# Talk of stars, seller and parcel says nothing of the item; a complaint says what was not wanted.
_CHATTER = re.compile(
    r"\b(?:stars?|rat(?:e|ed|ing)|review\w*|shipp\w*|deliver\w*|arriv\w*|sellers?|refund\w*|thank\w*|recommend\w*)\b"
    r"|\b(?:what (?:can|else)|as (?:described|advertised|expected))\b|https?:|[@#]"
    r"|\b(?:not|never|no|nothing|cannot|without|but|however|although|unfortunately|problems?|issues?|hated?|broken?"
    r"|complain\w*|disappoint\w*|fail\w*|overcharg\w*|useless|worst|work(?:s|ed))\b|n['’]t\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Said:
    """A sentence of a user's review of an item."""

    user: str
    item: str
    text: str

    @property
    def words(self) -> str:
        """The text without case and punctuation."""
        return " ".join(re.findall(r"\w+", self.text.lower()))


def from_reviews(config: IntentionsConfig, catalog: Catalog, split: Split) -> Intentions:
    """The most telling sentences of each item's and each user's training reviews.

    Raises:
        UserError: the data has no reviews.
    """
    if "review" not in split.frame.columns:
        raise UserError(
            "--intentions.source reviews: the data has no reviews; name their column with --data.columns.review, or "
            "use --intentions.source extract"
        )
    learned = _telling(_said(split.frame.filter(pl.col("part") == TRAIN)))
    kept = _telling(_said(split.frame.filter(pl.col("part") != TRAIN)))
    worth = Worth(catalog, [said.text for said in learned])
    known = {said.words for said in learned}
    best = worth.best_first(learned)
    return Intentions(
        items=_grouped(best, lambda said: said.item, config.per_item),
        users=_grouped(best, lambda said: said.user, config.per_user),
        held_out=_grouped(
            [said for said in worth.best_first(kept) if said.words not in known],
            lambda said: said.item,
            config.per_item,
        ),
    )


def sentences(review: str) -> Iterator[str]:
    """The sentences of a review that may tell something: neither short nor long, no shouting, no chatter."""
    for part in _END.split(clean_text(review)):
        sentence = part.strip(" -–—*•\"'“”")
        letters = [letter for letter in sentence if letter.isalpha()]
        shouted = sum(letter.isupper() for letter in letters) > len(letters) / 2
        if SHORTEST <= len(sentence.split()) <= LONGEST and not shouted and not _CHATTER.search(sentence):
            yield sentence


class Worth:
    """How much a sentence tells about its item.

    Args:
        catalog: the items.
        texts: sentences of training reviews, whose words count towards the inverse document frequencies.
    """

    def __init__(self, catalog: Catalog, texts: list[str]) -> None:
        items = catalog.texts(catalog.whole_text)
        self._vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*items, *texts, "item"])  # never without a word
        self._items = self._vectorizer.transform(items)
        self._rows = catalog.index

    def __call__(self, said: list[Said]) -> np.ndarray:
        """float64 [n]: likeness to the item's text, and a premium for a purpose."""
        if not said:
            return np.zeros(0)
        items = self._items[[self._rows[sentence.item] for sentence in said]]
        likeness = items.multiply(self._vectorizer.transform([sentence.text for sentence in said])).sum(axis=1)
        purpose = np.array([bool(_PURPOSE.search(sentence.text)) for sentence in said])
        return np.asarray(likeness).ravel() + PURPOSE * purpose

    def best_first(self, said: list[Said]) -> list[Said]:
        """The sentences worth picking, best first."""
        worth = self(said)
        return [said[place] for place in np.argsort(-worth, kind="stable") if worth[place] >= LEAST]


def _said(events: pl.DataFrame) -> list[Said]:
    rows = events.select("user_id", "item_id", "review").iter_rows()
    return [Said(user, item, text) for user, item, review in rows for text in sentences(review)]


def _telling(said: list[Said]) -> list[Said]:
    """Without sentences that stand for several items: they tell none of them from the others."""
    items = defaultdict(set)
    for sentence in said:
        items[sentence.words].add(sentence.item)
    return [sentence for sentence in said if len(items[sentence.words]) == 1]


def _grouped(said: list[Said], group: Callable[[Said], str], most: int) -> dict[str, list[str]]:
    """The first `most` different texts of each group."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for sentence in said:
        found = groups[group(sentence)]
        if len(found) < most:
            found.setdefault(sentence.words, sentence.text)
    return {name: [*found.values()] for name, found in groups.items() if found}
