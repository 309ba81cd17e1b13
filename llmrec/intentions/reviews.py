"""Intentions and preferences without a language model: from review sentences, or from phrases of the item texts.

- `from_reviews` chooses the sentences of reviews that say what the item is for. Training uses only reviews of training
  events. Sentences of the validation and test parts are held out for the evaluation; they do not influence which
  training sentences are chosen.
- `extract` joins the salient phrases of the item texts: n-grams of one to three words.

Both use TF-IDF weights (Salton and Buckley, 1988).
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
"""Minimum and maximum number of words of a sentence."""
PURPOSE = 0.5
"""Bonus of a sentence that names a purpose; its score is cosine(TF-IDF of sentence, of item text) + this bonus."""
LEAST = 0.25
"""Minimum score of a chosen sentence."""

_END = re.compile(r"(?<=[.!?…])\s+|\s*\.{2,}\s*|(?<=[a-z])[.!?](?=[A-Z])")
_PURPOSE = re.compile(
    r"\bfor (?!(?:the (?:price|money)|me|us|it|that|this|sure|free|all|now|some reason|what|years?)\b)[a-z]"
    r"|\b(?:gifts?|presents?) (?:to|idea)\b|\bas an? (?:\w+ )?(?:gift|present)\b"
    r"|\bto (?:buy|clean|cook|cut|eat|fit|fix|give|hold|keep|make|play|protect|replace|send|store|treat|use|wear)\b"
    r"|\b(?:need(?:ed|s)?|want(?:ed|s)?|looking for|whenever|if you|who (?:enjoy|like|love|need|want)s?)\b"
    r"|\b(?:anniversary|birthdays?|christmas|graduat\w+|holidays?|occasions?|wedding)\b",
    re.IGNORECASE,
)
# Sentences about ratings, seller or delivery do not describe the item; a complaint says what the user did not want.
_CHATTER = re.compile(
    r"\b(?:stars?|rat(?:e|ed|ing)|review\w*|shipp\w*|deliver\w*|arriv\w*|sellers?|refund\w*|thank\w*|recommend\w*)\b"
    r"|\b(?:what (?:can|else)|as (?:described|advertised|expected))\b|https?:|[@#]"
    r"|\b(?:not|never|no|nothing|cannot|without|but|however|although|unfortunately|problems?|issues?|hated?|broken?"
    r"|complain\w*|disappoint\w*|fail\w*|overcharg\w*|useless|worst|work(?:s|ed))\b|n['’]t\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Said:
    """One sentence of the review that a user wrote about an item."""

    user: str
    item: str
    text: str

    @property
    def words(self) -> str:
        """The text in lower case, without punctuation."""
        return " ".join(re.findall(r"\w+", self.text.lower()))


def from_reviews(config: IntentionsConfig, catalog: Catalog, split: Split) -> Intentions:
    """For each item and each user, the training review sentences with the highest scores.

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
    """The sentences of a review that can describe the item.

    Left out: sentences outside the limits of length, sentences mostly in capitals, complaints, and sentences about
    ratings, seller or delivery.
    """
    for part in _END.split(clean_text(review)):
        sentence = part.strip(" -–—*•\"'“”")
        letters = [letter for letter in sentence if letter.isalpha()]
        shouted = sum(letter.isupper() for letter in letters) > len(letters) / 2
        if SHORTEST <= len(sentence.split()) <= LONGEST and not shouted and not _CHATTER.search(sentence):
            yield sentence


class Worth:
    """Scores sentences by how much they say about their item.

    Args:
        catalog: the items.
        texts: sentences of training reviews; they and the item texts determine the inverse document frequencies.
    """

    def __init__(self, catalog: Catalog, texts: list[str]) -> None:
        items = catalog.texts(catalog.whole_text)
        # The word "item" makes sure that the vocabulary is not empty.
        self._vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*items, *texts, "item"])
        self._items = self._vectorizer.transform(items)
        self._rows = catalog.index

    def __call__(self, said: list[Said]) -> np.ndarray:
        """The scores of n sentences, float64 [n]: cosine with the item text, plus `PURPOSE` if there is a purpose."""
        if not said:
            return np.zeros(0)
        items = self._items[[self._rows[sentence.item] for sentence in said]]
        likeness = items.multiply(self._vectorizer.transform([sentence.text for sentence in said])).sum(axis=1)
        purpose = np.array([bool(_PURPOSE.search(sentence.text)) for sentence in said])
        return np.asarray(likeness).ravel() + PURPOSE * purpose

    def best_first(self, said: list[Said]) -> list[Said]:
        """The sentences with a score of at least `LEAST`, highest score first."""
        worth = self(said)
        return [said[place] for place in np.argsort(-worth, kind="stable") if worth[place] >= LEAST]


def _said(events: pl.DataFrame) -> list[Said]:
    rows = events.select("user_id", "item_id", "review").iter_rows()
    return [Said(user, item, text) for user, item, review in rows for text in sentences(review)]


def _telling(said: list[Said]) -> list[Said]:
    """Drop the sentences that occur for several items: they do not distinguish these items."""
    items = defaultdict(set)
    for sentence in said:
        items[sentence.words].add(sentence.item)
    return [sentence for sentence in said if len(items[sentence.words]) == 1]


def _grouped(said: list[Said], group: Callable[[Said], str], most: int) -> dict[str, list[str]]:
    """The first `most` distinct texts of each group."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for sentence in said:
        found = groups[group(sentence)]
        if len(found) < most:
            found.setdefault(sentence.words, sentence.text)
    return {name: [*found.values()] for name, found in groups.items() if found}


LONGEST_PHRASE = 3
"""Maximum number of words of a phrase."""


FEWEST, MOST = 3, 12
"""Minimum and maximum number of words of a text that joins phrases."""


TITLE = 3.0
"""Factor on the weight of a phrase that occurs in the title."""


LENGTH = 0.7
"""A phrase of n words gets the factor 1 + LENGTH * (n - 1): "rack" says less than "roof rack"."""


_RUN = re.compile(r"[^\w\s'’-]+|\s[-'’]+\s")  # punctuation ends a phrase


_WORD = re.compile(r"[^\W\d_]{3,}(?:[-'’](?!(?:d|ll|m|re|t|ve)\b)[^\W\d_]+)*")  # does not match "don't"


_EMPTY = ENGLISH_STOP_WORDS | frozenset(
    """
    allow allows amazon asin available best better brand brands choose click com come comes configuration contain
    contains count customer customers delivery design designed different easy etc excellent far feature featured
    features featuring feel given good great help helps high hoping ideal inch inches include included includes
    including item items just know let lets life like look looking looks make makes making near need needed needs
    new number offer offers pack pcs perfect piece pieces place please price prices product products provide
    provides quality quantity really right search simply size sold takes thing things time times try unit units use
    used uses using variety various visit want wants warranty way welcome wide work works www year years
    """.split()  # noqa: SIM905 — as a list they would fill a screen
)


class Phrases:
    """The phrases in the texts of N items, and their weights.

    Attributes:
        names: the P phrases.
        weights: sparse float64 [N, P], how much each phrase says about each item.
    """

    def __init__(self, catalog: Catalog) -> None:
        """Compute the weights. Phrases of one item only (part numbers, misspellings) or of more than half are left out.

        Raises:
            UserError: no phrase occurs in two items.
        """
        vectorizer = TfidfVectorizer(analyzer=phrases_in, min_df=2, max_df=0.5, sublinear_tf=True)
        try:
            weights = vectorizer.fit_transform(catalog.texts(catalog.whole_text))
        except ValueError:  # sklearn raises it if there is no term, or none is left
            raise UserError(
                "--intentions.source extract: no two items share a phrase; give items longer texts, or use another"
            ) from None
        titled = vectorizer.transform(catalog.texts("{title}")) > 0
        self.names = vectorizer.get_feature_names_out().tolist()
        lengths = 1 + LENGTH * np.array([name.count(" ") for name in self.names])
        self.weights: csr_array = (weights + (TITLE - 1) * weights.multiply(titled)).multiply(lengths).tocsr()

    def ranked(self, row: "csr_array") -> Iterator[str]:
        """The phrases of one row [1, P], highest weight first, without those that share a word with one before."""
        taken: set[str] = set()
        for place in np.lexsort((row.indices, -row.data)):
            name = self.names[row.indices[place]]
            stems = {word.rstrip("s") for word in name.split()} - {"of", "for"}
            if taken.isdisjoint(stems):
                taken |= stems
                yield name


def phrases_in(text: str) -> Iterator[str]:
    """All phrases of a text, in lower case.

    A phrase is the end of a run of content words (words of three letters or more that are no stop words), because the
    main noun comes last in English: "heavy yard cart" gives "cart", "yard cart" and "heavy yard cart", but not "heavy
    yard". Two content words around "of" or "for" also make a phrase.
    """
    for run in _RUN.split(clean_text(text).lower()):
        words = run.split()
        telling = [bool(_WORD.fullmatch(word)) and word not in _EMPTY for word in words] + [False]
        for last in range(len(words)):
            if telling[last] and not telling[last + 1]:
                first = last
                while first >= 0 and telling[first] and last - first < LONGEST_PHRASE:
                    yield " ".join(words[first : last + 1])
                    first -= 1
                if last > 1 and words[last - 1] in ("of", "for") and telling[last - 2]:
                    yield " ".join(words[last - 2 : last + 1])


def join(ranked: Iterable[str], texts: int, each: int) -> list[str]:
    """Join phrases into at most `texts` texts of at most `each` phrases; no phrase is in two texts.

    The texts take the phrases in turn, so each gets some of the best: with 2 texts, the first gets phrases 1, 3, 5 and
    the second 2, 4, 6. If a text would have fewer than FEWEST words, the result has fewer texts.

    Args:
        ranked: phrases, best first.
        texts: maximum number of texts.
        each: maximum number of phrases per text.
    """
    phrases = [phrase for phrase, _ in zip(ranked, range(texts * each), strict=False)]
    for count in range(texts, 0, -1):
        hands = [phrases[first::count][:each] for first in range(count)]
        if all(sum(len(phrase.split()) for phrase in hand) >= FEWEST for hand in hands):
            return [", ".join(hand) for hand in hands]
    return []


PER_INTENTION, PER_PREFERENCE = 3, 4
"""Maximum number of phrases of an intention and of a preference."""


BLOCK = 4096
"""Number of users per sparse matrix product."""


def extract(config: IntentionsConfig, catalog: Catalog, train: Interactions) -> Intentions:
    """Intentions from the phrases of each item, preferences from the phrases of the items that a user took.

    Raises:
        UserError: no two item texts share a phrase.
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
    """User id -> texts that join the phrases with the highest scores.

    The score of a phrase for a user is (sum of its weights over the user's items) * (number of these items that have
    the phrase). The items come from the training log.
    """
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
