"""Why an item is recommended: each part of the request is left out in turn, and the change of the item's lead counts.

parts = list(parts_of(request, store, renderer))
others = sampled(store, item_id)
asked = questions(request, item_id, parts, others) # two requests for the whole one, and two for each part
whole, *without = measured(item_id, answers)       # of their answers: score, rank, and lead over the other items
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llmrec.recommender.request import Answer, Request
from llmrec.recommender.store import ItemStore
from llmrec.tasks.render import Renderer

PartKind = Literal["prompt", "history", "word"]
SAMPLE = 20
"""Items of the catalogue with whose scores that of the explained item is compared."""


@dataclass(frozen=True)
class RequestPart:
    """A part of a request.

    Attributes:
        kind: the prompt, an item of the history, or a word of the prompt.
        place: in the history or among the words, from 0.
        text: the prompt, the item's id or the word.
        without: the request without it. If nothing is left, the model answers after an empty history.
    """

    kind: PartKind
    place: int
    text: str
    without: Request


def parts_of(request: Request, store: ItemStore, renderer: Renderer) -> Iterator[RequestPart]:
    """The whole prompt, the items of the history that the model sees, newest first, then the words of the prompt.

    Items that the catalogue lacks and words that the prompt's rendering takes out, such as item tokens, are no parts.
    """
    words = (request.prompt or "").split()
    history = list(request.history or ())
    shown = [place for place, item in enumerate(history) if item in store.catalog.index][-renderer.max_history :]
    if request.prompt is not None:
        without = replace(request, prompt=None, history=history, empty_history="model")
        yield RequestPart("prompt", 0, request.prompt, without)
    for place in reversed(shown):
        without = replace(request, history=history[:place] + history[place + 1 :], empty_history="model")
        yield RequestPart("history", place, history[place], without)
    for place, word in enumerate(words):
        rest = " ".join(words[:place] + words[place + 1 :])
        if renderer.request(word) and renderer.request(rest):  # else the word is the whole prompt, or nothing
            yield RequestPart("word", place, word, replace(request, prompt=rest))


def sampled(store: ItemStore, item_id: str) -> list[str]:
    """At most `SAMPLE` items of the catalogue, spread evenly over its rows, without this one."""
    rows = np.unique(np.linspace(0, len(store.catalog) - 1, SAMPLE).round().astype(int))
    ids = store.catalog.frame["item_id"]
    return [ids[row] for row in rows.tolist() if ids[row] != item_id]


def questions(request: Request, item_id: str, parts: Sequence[RequestPart], others: Sequence[str]) -> list[Request]:
    """The requests that tell the ranks of an item, with all parts and without each one; then those for its scores.

    All use the first phrasing. The latter allow only this item and `others`, so that these have scores without being
    among the best.
    """
    asked = [replace(each, phrasings=1) for each in (request, *(part.without for part in parts))]
    allow = [item_id, *others]
    scored = [
        Request(each.history, each.prompt, len(allow), include_seen=True, allow=allow, empty_history=each.empty_history)
        for each in asked
    ]
    return [*asked, *scored]


@dataclass(frozen=True)
class Measured:
    """What a request says of an item.

    Attributes:
        score: its score.
        rank: its rank among the answers; None outside of them.
        lead: its score above the mean of the sampled items. The scores of most rankings have another zero for each
            request: after an empty history, say, those of all items are higher.
    """

    score: float
    rank: int | None
    lead: float


def measured(item_id: str, answers: Sequence[Answer]) -> list[Measured]:
    """Of the answers to `questions`: what each request says of the item."""
    half = len(answers) // 2
    found = []
    for answer, scored in zip(answers[:half], answers[half:], strict=True):
        rank = next((item.rank for item in answer if item.item_id == item_id), None)
        score = next(item.score for item in scored if item.item_id == item_id)
        others = [item.score for item in scored if item.item_id != item_id]
        found.append(Measured(score, rank, score - float(np.mean(others)) if others else score))
    return found
