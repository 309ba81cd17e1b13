"""Intentions and preferences without reviews and without a model: salient phrases of the items' text."""

import numpy as np
import polars as pl

from llmrec.data import Catalog, Interactions
from llmrec.data.split import item_rows
from llmrec.intentions.config import IntentionsConfig
from llmrec.intentions.intentions import Intentions, hold_out
from llmrec.intentions.phrases import Phrases, join

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
