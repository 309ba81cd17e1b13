"""A synthetic shop: it draws items and events from a known distribution, so the best possible ranking is known.

The user's next item depends on the category of the last item (a successor graph) and on the brands and style lines in
the history. The titles show category, brand and style line. A model of item ids sees each pair of items only a few
times; a model that reads text and order can generalise. `SyntheticShop.next_item_probabilities` returns the
distribution that the events are drawn from.
"""

import numpy as np
import polars as pl

from llmrec.checks import checked
from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions
from llmrec.data.shop_words import COLORS, COMPLAINTS, DEPARTMENTS, DESCRIPTIONS, PRAISE
from llmrec.errors import UserError

JUMP = 0.1
"""Share of events that ignore the successor graph and take a bestseller of the whole shop instead (a jump)."""
MAIN_SUCCESSOR = 0.75
"""Share of the other events that go to the first successor of the last category; the rest go to the second one."""
BRAND_BOOST = 20.0
"""Weight of the brand that the user bought last in the department; any other brand has weight 1."""
STYLE_BOOST = 0.5
"""The weight of a style line is 1 + STYLE_BOOST * its share of the user's purchases in the department."""
SHELF_SKEW = 0.1
"""Zipf exponent of item popularity inside a category."""
BESTSELLER_SKEW = 0.9
"""Zipf exponent of item popularity in the whole shop, for jumps."""
STOP = 0.8
"""Probability that a user stops after an event, for each event from the sixth on."""
MIN_EVENTS, MAX_EVENTS = 6, 12

_REPEAT = 1e-9  # weight factor of an item that the user already has: bought again only if no other item is left
_EPOCH = 1_672_531_200  # 2023-01-01 in Unix seconds
_DAY = 86_400


class SyntheticShop:
    """A generated catalogue and log, and the distribution that the events are drawn from.

    Args:
        n_items: catalogue size N, 50 to 50,000.
        n_users: number of users U, at least 1.
        seed: the same seed gives the same shop, byte for byte.

    Attributes:
        catalog: titles, descriptions, brands, categories and attributes.
        interactions: 6 to 12 events per user, with rating and review.
        categories: int64 [N], the category of each item, as a row of `successors`.
        successors: int64 [number of categories, 2], the first and the second successor of each category.

    Raises:
        UserError: `n_items`, `n_users` or `seed` is out of range.
    """

    @checked
    def __init__(self, n_items: int = 3000, n_users: int = 4500, seed: int = 0) -> None:
        if not 50 <= n_items <= 50_000:
            raise UserError(f"synthetic shop: n_items is {n_items}, expected 50 to 50000")
        if n_users < 1:
            raise UserError(f"synthetic shop: n_users is {n_users}, expected at least 1")
        if seed < 0:
            raise UserError(f"synthetic shop: seed is {seed}, expected at least 0")
        rng = np.random.default_rng(seed)
        departments = DEPARTMENTS[: max(1, min(len(DEPARTMENTS), n_items // 100))]
        self._shelves = [(d, shelf) for d in departments for shelf in d.categories]
        self.successors = _successors([len(d.categories) for d in departments])
        self._departments = np.repeat(np.arange(len(departments)), [len(d.categories) for d in departments])
        self._follow = np.zeros((len(self._shelves),) * 2)
        np.put_along_axis(self._follow, self.successors, [[MAIN_SUCCESSOR, 1 - MAIN_SUCCESSOR]], axis=1)
        self._start = rng.permutation(_zipf(len(self._shelves), 0.5))
        self._stock(n_items, rng)
        self.catalog = Catalog.from_frame(self._item_frame(rng))
        self.interactions = Interactions.from_frame(self._event_frame(self._walk(n_users, rng), rng))

    def next_item_probabilities(self, histories: list[np.ndarray]) -> np.ndarray:
        """The true distribution of the next item: no recommender can rank better on average.

        Args:
            histories: B non-empty int arrays of catalogue rows, oldest first.

        Returns:
            float64 [B, N], rows sum to 1.
        """
        width = max(len(history) for history in histories)
        events = np.full((len(histories), width), -1)
        for row, history in enumerate(histories):
            events[row, width - len(history) :] = history
        follow = self._follow[self.categories[events[:, -1]]]
        probabilities = JUMP * self._bestseller_probabilities(events)
        for category, rows in enumerate(self._rows):
            share = (1 - JUMP) * follow[:, category, None]
            probabilities[:, rows] += share * self._shelf_probabilities(events, category)
        return probabilities

    def _stock(self, n_items: int, rng: np.random.Generator) -> None:
        """Draw each item's category and attributes; a category's size is proportional to its expected visits."""
        visits = visitors = self._start
        for _ in range(MIN_EVENTS - 1):
            visitors = visitors @ self._follow
            visits = visits + visitors
        edges = np.rint(np.cumsum(visits / visits.sum()) * n_items).astype(np.int64)
        self.categories = rng.permutation(np.repeat(np.arange(len(edges)), np.diff(edges, prepend=0)))
        self._rows = [np.flatnonzero(self.categories == c) for c in range(len(edges))]
        self._variants = np.empty((n_items, 5), np.int64)  # brand, style, noun, size, color
        self._popularity = np.empty(n_items)
        for (department, shelf), rows in zip(self._shelves, self._rows, strict=True):
            parts = (department.brands, department.styles, shelf.nouns, shelf.sizes, COLORS)
            shape = [len(part) for part in parts]
            chosen = rng.choice(np.prod(shape), size=len(rows), replace=False)
            self._variants[rows] = np.stack(np.unravel_index(chosen, shape), axis=1)
            self._popularity[rows] = rng.permutation(_zipf(len(rows), SHELF_SKEW))
        self._bestsellers = rng.permutation(_zipf(n_items, BESTSELLER_SKEW))

    def _shelf_probabilities(self, events: np.ndarray, category: int) -> np.ndarray:
        """float64 [B, n], the distribution over the n items of a category, given events [B, T] (-1 is padding)."""
        rows = self._rows[category]
        here = (events >= 0) & (self._departments[self.categories[events]] == self._departments[category])
        brands, styles = self._variants[events, 0], self._variants[events, 1]
        latest = np.where(here, np.arange(events.shape[1]), -1).max(axis=1)
        brand = np.where(latest >= 0, brands[np.arange(len(events)), latest], -1)
        weights = np.where(self._variants[rows, 0] == brand[:, None], BRAND_BOOST, 1.0) * self._popularity[rows]
        of_style = here[:, :, None] & (styles[:, :, None] == self._variants[rows, 1])
        weights *= 1 + STYLE_BOOST * of_style.sum(axis=1) / np.maximum(here.sum(axis=1), 1)[:, None]
        weights[(events[:, :, None] == rows).any(axis=1)] *= _REPEAT
        return weights / weights.sum(axis=1, keepdims=True)

    def _bestseller_probabilities(self, events: np.ndarray) -> np.ndarray:
        """float64 [B, N], the distribution of the item of a jump, given events [B, T] (-1 is padding)."""
        weights = np.tile(self._bestsellers, (len(events), 1))
        rows, columns = np.nonzero(events >= 0)
        weights[rows, events[rows, columns]] *= _REPEAT
        return weights / weights.sum(axis=1, keepdims=True)

    def _walk(self, users: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the purchases of all users in parallel: item rows, int64 [U, MAX_EVENTS], -1 after the last event."""
        lengths = np.minimum(MIN_EVENTS - 1 + rng.geometric(STOP, size=users), MAX_EVENTS)
        events = np.full((users, MAX_EVENTS), -1)
        for step in range(MAX_EVENTS):
            active = np.flatnonzero(lengths > step)
            past = events[active, : max(step, 1)]
            if step == 0:
                visited = _draw(np.tile(self._start, (users, 1)), rng)
            else:
                visited = _draw(self._follow[self.categories[past[:, -1]]], rng)
                visited[rng.random(len(active)) < JUMP] = -1
            jumps = visited == -1
            events[active[jumps], step] = _draw(self._bestseller_probabilities(past[jumps]), rng)
            for category, rows in enumerate(self._rows):
                here = visited == category
                events[active[here], step] = rows[_draw(self._shelf_probabilities(past[here], category), rng)]
        return events

    def _words(self, item: int) -> dict[str, str]:
        """The words of one item; the keys are the field names of the sentence templates."""
        department, shelf = self._shelves[self.categories[item]]
        brand, style, noun, size, color = self._variants[item]
        line = list(department.styles)[style]
        material = department.materials[(brand + size) % len(department.materials)]
        turn = (noun + color) % 2
        return {
            "brand": department.brands[brand],
            "style": line,
            "purpose": department.styles[line],
            "noun": shelf.nouns[noun],
            "size": shelf.sizes[size],
            "color": COLORS[color],
            "material": material,
            "Material": _capital(material),
            "feature": shelf.features[turn],
            "Feature": _capital(shelf.features[turn]),
            "second": shelf.features[1 - turn],
        }

    def _item_frame(self, rng: np.random.Generator) -> pl.DataFrame:
        templates = rng.integers(len(DESCRIPTIONS), size=len(self.categories))
        records = []
        for item, template in enumerate(templates):
            department, shelf = self._shelves[self.categories[item]]
            words = self._words(item)
            records.append(
                {
                    "item_id": f"P{item:05d}",
                    "title": "{brand} {style} {size} {noun}, {color}".format_map(words),
                    "description": DESCRIPTIONS[template].format_map(words),
                    "brand": words["brand"],
                    "categories": f"{department.name}, {shelf.name}",
                    **{field: words[field] for field in ("style", "color", "material", "size")},
                }
            )
        return pl.DataFrame(records)

    def _event_frame(self, events: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
        users, steps = np.nonzero(events >= 0)
        items = events[users, steps]
        first = _EPOCH + rng.integers(365 * _DAY, size=len(events))
        gaps = 60 + rng.exponential(5 * _DAY, size=events.shape).astype(np.int64)
        quality = rng.normal(4.2, 0.3, size=len(self.categories))
        ratings = np.clip(np.rint(quality[items] + rng.normal(0, 0.7, size=len(items))), 1, 5)
        choice = rng.integers(len(PRAISE) * len(COMPLAINTS), size=len(items))
        words = [self._words(item) for item in range(len(self.categories))]
        reviews = []
        for item, rating, pick in zip(items, ratings, choice, strict=True):
            templates = PRAISE if rating >= 4 else COMPLAINTS
            reviews.append(templates[pick % len(templates)].format_map(words[item]))
        return pl.DataFrame(
            {
                "user_id": [f"u{user:06d}" for user in users],
                "item_id": [f"P{item:05d}" for item in items],
                "timestamp": (first[:, None] + np.cumsum(gaps, axis=1))[users, steps],
                "rating": ratings,
                "review": reviews,
            }
        )


def synthetic(n_items: int = 3000, n_users: int = 4500, seed: int = 0) -> tuple[Catalog, Interactions]:
    """The catalogue and the log of a `SyntheticShop` with these arguments."""
    shop = SyntheticShop(n_items, n_users, seed)
    return shop.catalog, shop.interactions


def _zipf(n: int, exponent: float) -> np.ndarray:
    """The Zipf distribution over n ranks, float64 [n]."""
    weights = np.arange(1, n + 1) ** -exponent
    return weights / weights.sum()


def _draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one column index for each row of `probabilities` [B, n], with these probabilities; int64 [B]."""
    cumulative = np.cumsum(probabilities, axis=1)
    return (cumulative > rng.random((len(cumulative), 1)) * cumulative[:, -1:]).argmax(axis=1)


def _successors(sizes: list[int]) -> np.ndarray:
    """The first and the second successor of each category, for departments with `sizes` categories each.

    The first successor is the next category of the department; after the last category comes the first one. The
    second successor is the category three places further in the same department. If there are several departments,
    every second category has its second successor in the next department instead.

    Returns:
        int64 [number of categories, 2].
    """
    first = np.cumsum([0, *sizes])
    pairs = []
    for department, size in enumerate(sizes):
        following = (department + 1) % len(sizes)
        for place in range(size):
            if place % 2 and following != department:
                second = first[following] + place % sizes[following]
            else:
                second = first[department] + (place + 3) % size
            pairs.append((first[department] + (place + 1) % size, second))
    return np.array(pairs, dtype=np.int64)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
