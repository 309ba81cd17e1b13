"""Histories and plain words in, ranked items out: the prompts of the tasks, answered by beam search."""

import time
from collections.abc import Sequence

import numpy as np

from llmrec.decode.beam import BeamSearch, Ranking
from llmrec.errors import UserError
from llmrec.tasks.render import Renderer


class ItemRanker:
    """Asks the language model in the first phrasing of the task that fits the request.

    Args:
        renderer: of the tokenizer and the catalogue that the search was built for.
        search: over the same catalogue.
        context: the model's longest sequence, in tokens.
    """

    def __init__(self, renderer: Renderer, search: BeamSearch, context: int) -> None:
        self.renderer = renderer
        self.search = search
        self.context = context
        self.requests = 0
        self.seconds = 0.0
        self.beams_seen = 0
        self.beams_invalid = 0

    def prompt_ids(self, history: Sequence[int] | np.ndarray = (), query: str | None = None) -> list[int]:
        """Token ids of one request.

        Args:
            history: rows of the catalogue, oldest first.
            query: plain words; item tokens and control tokens in it are taken out.

        Raises:
            UserError: neither is given, or they don't fit the model's context.
        """
        values = {}
        if len(history):
            values["history"] = self.renderer.history(history)
        if query is not None:
            values["query"] = self.renderer.request(query)
            if not values["query"]:
                raise UserError(f"--prompt {query!r} is empty: say in words what to look for.")
        if not values:
            raise UserError('Nothing to go by: give --history ID ..., --prompt "text", or both.')
        task = {1: "search" if query is not None else "sequential", 2: "personal-search"}[len(values)]
        ids = self.renderer.encode_prompts([self.renderer.prompt(task, 0, **values)])[0]
        room = self.context - len(self.renderer.vocabulary.ids)
        if len(ids) > room:
            raise UserError(
                f"The request is {len(ids)} tokens long, but the model's context leaves room for {room}; "
                "shorten --prompt."
            )
        return ids

    def rank(
        self,
        requests: Sequence[Sequence[int]],
        k: int,
        excluded: Sequence[np.ndarray] | None = None,
        beams: int | None = None,
    ) -> Ranking:
        """The k best items of each request (token ids from `prompt_ids`), without its `excluded` rows."""
        started = time.perf_counter()
        ranking = self.search.search(requests, k, excluded, beams)
        self.seconds += time.perf_counter() - started
        self.requests += len(requests)
        self.beams_seen += ranking.beams
        self.beams_invalid += ranking.invalid
        return ranking

    def stats(self) -> dict[str, int | float | str]:
        """What was decoded so far: `beams, scoring, invalid_rate, users_per_second`."""
        return {
            "beams": self.search.config.beams,
            "scoring": "vocab",
            "invalid_rate": self.beams_invalid / self.beams_seen if self.beams_seen else 0.0,
            "users_per_second": round(self.requests / self.seconds, 3) if self.seconds else 0.0,
        }
