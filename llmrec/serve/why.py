"""Why an item is recommended: each part of the request is left out in turn, and the change of the item's score counts.

parts = list(parts_of(request, store, renderer))
asked = questions(request, item_id, parts)         # two requests for the whole one, and two for each part
whole, *without = measured(item_id, answers)       # of their answers: score and rank
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmrec.recommender.request import Answer, Request
from llmrec.recommender.store import ItemStore
from llmrec.tasks.render import Renderer

PartKind = Literal["prompt", "history", "word"]


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


def questions(request: Request, item_id: str, parts: Sequence[RequestPart]) -> list[Request]:
    """The requests that tell the ranks of an item, with all parts and without each one; then those for its scores.

    All use the first phrasing. The latter allow only this item, so that it has a score without being among the best.
    """
    asked = [replace(each, phrasings=1) for each in (request, *(part.without for part in parts))]
    alone = [
        Request(each.history, each.prompt, k=1, include_seen=True, allow=[item_id], empty_history=each.empty_history)
        for each in asked
    ]
    return [*asked, *alone]


def measured(item_id: str, answers: Sequence[Answer]) -> list[tuple[float, int | None]]:
    """Score and rank of the item with all parts, then without each one; the rank is None outside of the answers."""
    half = len(answers) // 2
    ranks = [next((item.rank for item in answer if item.item_id == item_id), None) for answer in answers[:half]]
    return [(alone[0].score, rank) for alone, rank in zip(answers[half:], ranks, strict=True)]
