"""Salient phrases of a catalogue's texts: n-grams of one to three words, weighed by TF-IDF (Salton & Buckley 1988).

Phrases are cut at the words that carry no meaning, as RAKE does (Rose et al. 2010): scikit-learn's English list and
shop talk. Texts in other languages keep such words, which TF-IDF then weighs low.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from llmrec.data import Catalog, Interactions
from llmrec.data.sequences import item_rows
from llmrec.data.text import clean_text
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions, IntentionsConfig, hold_out

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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
