"""Recommendations of a run whose language model is not trained yet: by its experts alone."""

from pathlib import Path
from typing import Self

import numpy as np

from llmrec.collaborative.fused import FusedExperts
from llmrec.data import Catalog
from llmrec.data.prepare import load
from llmrec.errors import UserError
from llmrec.recommender.answer import BY_MODEL, BY_POPULARITY, best_by_scores, popularity
from llmrec.recommender.request import Answer, ItemLookup, Request, Selection, quotas_of


class ExpertRecommender:
    """Answers requests with a history by the fused experts of a run.

    Args:
        catalog: N items.
        experts: fitted on the same items.
    """

    def __init__(self, catalog: Catalog, experts: FusedExperts) -> None:
        self.catalog = catalog
        self.experts = experts
        self.lookup = ItemLookup(catalog)

    @classmethod
    def from_run(cls, data: Path, experts: Path) -> Self:
        """Load the stages `data` and `experts` of a run.

        Raises:
            UserError: the files are damaged.
        """
        return cls(load(data).catalog, FusedExperts.load(experts))

    def answer(self, request: Request) -> Answer:
        """The best items for a request.

        Raises:
            UserError: the request needs the language model, or names an unknown item or field.
        """
        needs = {
            "--prompt": request.prompt is not None,
            "--exact": request.exact,
            "--phrasings": request.phrasings > 1,
            "--max-per-code": request.max_per_code is not None,
        }
        for flag, used in needs.items():
            if used:
                raise UserError(
                    f"{flag}: needs the language model of the run, which is not trained yet; leave it out, or run "
                    "`llmrec train` first."
                )
        seen, notes = self.lookup.history(request.history or (), request.unknown)
        every = Selection.of(request, self.lookup)
        selection = every if request.include_seen else every.without(np.unique(seen))
        quotas = quotas_of(request, self.lookup, np.empty(0, np.int64))
        if not len(seen) and request.empty_history == "popularity":
            notes.append(BY_POPULARITY)
            scores = popularity(self.experts.experts.counts[self.experts.experts.rows])
        else:
            notes += [] if len(seen) else [BY_MODEL]
            scores = self.experts.scores([seen])[0]
        if request.offsets is not None:
            scores = scores + self.lookup.offsets(request.offsets)
        wanted = min(request.k, selection.left)
        rows, values = best_by_scores(scores, selection.allowed, wanted, list(quotas.values()))
        full = [f"{flag} lets no more through" for flag in quotas] if len(rows) < wanted else []
        texts = self.catalog.frame[rows].iter_rows(named=True)
        return Answer.ranked(texts, values, selection.reason(len(rows), request.k, full), notes)
