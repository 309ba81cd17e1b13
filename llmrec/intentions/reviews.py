"""Intentions and preferences from review texts: the sentences that tell what somebody wanted the item for.

Sentences are chosen by their salient phrases: n-grams of one to three words, weighed by TF-IDF (Salton and Buckley,
1988). Only reviews of training events are learnt from. Reviews of the validation and test parts are kept to measure
with; they do not influence which training sentences are chosen.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from llmrec.data import TRAIN, Catalog, Interactions, Split
from llmrec.data.sequences import item_rows
from llmrec.data.text import clean_text
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions, IntentionsConfig, hold_out

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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


LONGEST = 3
"""Words of a phrase at most."""


FEWEST, MOST = 3, 12
"""Words of a text that joins phrases."""


TITLE = 3.0
"""Weight of a phrase that stands in the title, against one that stands in the rest of the text."""


LENGTH = 0.7
"""What each further word adds to a phrase's weight: "rack" says less than "roof rack"."""


_RUN = re.compile(r"[^\w\s'’-]+|\s[-'’]+\s")  # a phrase does not reach across punctuation


_WORD = re.compile(r"[^\W\d_]{3,}(?:[-'’](?!(?:d|ll|m|re|t|ve)\b)[^\W\d_]+)*")  # no "don't"


_EMPTY = ENGLISH_STOP_WORDS | frozenset(
    """
    allow allows amazon asin available best better brand brands choose click com come comes configuration contain
    contains count customer customers delivery design designed different easy etc excellent far feature featured
    features featuring feel given good great help helps high hoping ideal inch inches include included includes
    including item items just know let lets life like look looking looks make makes making near need needed needs
    new number offer offers pack pcs perfect piece pieces place please price prices product products provide
    provides quality quantity really right search simply size sold takes thing things time times try unit units use
    used uses using variety various visit want wants warranty way welcome wide work works www year years
    """.split()  # noqa: SIM905 — a list of them would fill a screen
)


class Phrases:
    """The phrases of N texts.

    Attributes:
        names: P phrases.
        weights: float64 [N, P], how much a phrase tells about an item.
    """

    def __init__(self, catalog: Catalog) -> None:
        """Weigh the phrases of a catalogue; those of one item alone (codes, misspellings) are left out.

        Raises:
            UserError: no phrase stands in two items.
        """
        vectorizer = TfidfVectorizer(analyzer=phrases_in, min_df=2, max_df=0.5, sublinear_tf=True)
        try:
            weights = vectorizer.fit_transform(catalog.texts(catalog.whole_text))
        except ValueError:  # sklearn: no term, or none left
            raise UserError(
                "--intentions.source extract: no two items share a phrase; give items longer texts, or use another"
            ) from None
        titled = vectorizer.transform(catalog.texts("{title}")) > 0
        self.names = vectorizer.get_feature_names_out().tolist()
        lengths = 1 + LENGTH * np.array([name.count(" ") for name in self.names])
        self.weights: csr_array = (weights + (TITLE - 1) * weights.multiply(titled)).multiply(lengths).tocsr()

    def ranked(self, row: "csr_array") -> Iterator[str]:
        """The phrases of one row [1, P], best first, none with a word of a better one."""
        taken: set[str] = set()
        for place in np.lexsort((row.indices, -row.data)):
            name = self.names[row.indices[place]]
            stems = {word.rstrip("s") for word in name.split()} - {"of", "for"}
            if taken.isdisjoint(stems):
                taken |= stems
                yield name


def phrases_in(text: str) -> Iterator[str]:
    """All phrases of a text, in lower case: the last words of each run of words that mean something.

    English says the thing itself last, so "heavy yard cart" gives "yard cart" and "cart", but not "heavy yard". Two
    words may be held together by "of" or "for".
    """
    for run in _RUN.split(clean_text(text).lower()):
        words = run.split()
        telling = [bool(_WORD.fullmatch(word)) and word not in _EMPTY for word in words] + [False]
        for last in range(len(words)):
            if telling[last] and not telling[last + 1]:
                first = last
                while first >= 0 and telling[first] and last - first < LONGEST:
                    yield " ".join(words[first : last + 1])
                    first -= 1
                if last > 1 and words[last - 1] in ("of", "for") and telling[last - 2]:
                    yield " ".join(words[last - 2 : last + 1])


def join(ranked: Iterable[str], texts: int, each: int) -> list[str]:
    """At most `texts` texts of at most `each` phrases, FEWEST to MOST words long, that share no phrase.

    The phrases are dealt in turn, so that every text has its share of the best; fewer texts where they do not suffice.
    """
    phrases = [phrase for phrase, _ in zip(ranked, range(texts * each), strict=False)]
    for count in range(texts, 0, -1):
        hands = [phrases[first::count][:each] for first in range(count)]
        if all(sum(len(phrase.split()) for phrase in hand) >= FEWEST for hand in hands):
            return [", ".join(hand) for hand in hands]
    return []


PER_INTENTION, PER_PREFERENCE = 3, 4
"""Phrases of an intention and of a preference, at most."""


BLOCK = 4096
"""Users whose phrases are summed at once."""


def extract(config: IntentionsConfig, catalog: Catalog, train: Interactions) -> Intentions:
    """An item's intentions join its own phrases; a user's preference those of the items in the training log.

    Raises:
        UserError: the items' texts share no phrases.
    """
    phrases = Phrases(catalog)
    items = {
        item: texts
        for row, item in enumerate(catalog.ids)
        if (texts := join(phrases.ranked(phrases.weights[[row]]), config.per_item, PER_INTENTION))
    }
    kept, held = hold_out(items, config.held_out_share, config.seed)
    users = _preferences(phrases, catalog, train, config.per_user) if config.per_user else {}
    return Intentions(kept, users, held)


def _preferences(phrases: Phrases, catalog: Catalog, train: Interactions, texts: int) -> dict[str, list[str]]:
    """What a user's items have in common: weights summed over them, times the number of items with the phrase."""
    from scipy.sparse import csr_array

    events = train.frame.select("user_id", "item_id").unique(maintain_order=True)
    users = events["user_id"].rle_id().to_numpy()
    names = events["user_id"].unique(maintain_order=True).to_list()
    took = csr_array(
        (np.ones(len(users)), (users, item_rows(events["item_id"], pl.Series(catalog.ids, dtype=pl.String)))),
        (len(names), len(catalog)),
    )
    preferences = {}
    for start in range(0, len(names), BLOCK):
        block = took[start : start + BLOCK]
        summed = (block @ phrases.weights).multiply(block @ (phrases.weights > 0)).tocsr()
        for row, user in enumerate(names[start : start + BLOCK]):
            if found := join(phrases.ranked(summed[[row]]), texts, PER_PREFERENCE):
                preferences[user] = found
    return preferences
