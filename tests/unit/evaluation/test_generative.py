"""llmrec under the evaluator, with a ranker whose answers are known."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.data.sequences import EvalExamples
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.search import Ranking
from llmrec.errors import UserError
from llmrec.evaluation import EvaluateConfig
from llmrec.evaluation.systems import GenerativeSystem, evaluate
from llmrec.recommender.recommender import Recommender

ITEMS = 6


class Downwards:
    """Ranks items by their number, highest first, whatever the history."""

    def __init__(self):
        self.search = SimpleNamespace(config=DecodeConfig(beams=20, batch_size=1))
        self.asked = 0

    def prompt_ids(self, history):
        return list(history)

    def rank(self, requests, k, filters=None):
        self.asked += len(requests)
        lists = [self._allowed(filters[row] if filters else Filter())[:k] for row in range(len(requests))]
        items = np.array([[*found, *[-1] * (k - len(found))] for found in lists])
        return Ranking(items, items.astype(np.float32), beams=0, invalid=0, invalid_first=0, width=k)

    def _allowed(self, filter):
        allowed = np.arange(ITEMS)
        return allowed[filter.normal().allows(allowed)][::-1].tolist()

    def stats(self):
        return {"requests": self.asked}


def cases(*pairs):
    histories, targets = zip(*pairs, strict=True)
    return EvalExamples(np.arange(len(pairs)), [np.array(history) for history in histories], np.array(targets))


def test_ranks_without_what_was_seen_and_among_some():
    system = GenerativeSystem(Downwards(), depth=3)
    asked = cases(([5, 4], 3), ([5, 3], 3), ([0], 1))
    assert system.ranks(asked, filter_seen=True).tolist() == [1, 2, np.inf]
    assert system.ranks(asked, filter_seen=False).tolist() == [3, 3, np.inf]
    among = np.array([0, 1, 3, 5])
    assert system.ranks(asked, filter_seen=True, among=among).tolist() == [1, 1, 3]
    assert system.ranks(asked, filter_seen=False, among=among).tolist() == [2, 2, 3]


def test_more_requests_than_go_at_once():
    system = GenerativeSystem(Downwards(), depth=6)
    assert system.ranks(cases(*[([0], 1 + at % 5) for at in range(21)]), True).tolist() == [
        5 - at % 5 for at in range(21)
    ]


def test_it_is_llmrec_unless_named():
    assert GenerativeSystem(Downwards(), 3).name == "llmrec"
    assert GenerativeSystem(Downwards(), 3, "llmrec-quota").name == "llmrec-quota"


CATALOG = Catalog.from_frame(pl.DataFrame({"item_id": list("abcdef"), "title": [""] * ITEMS}))
# Leave-one-out: test targets c, d and f, of which f is nobody's training item, as is e.
LOG = {"u": "abac", "v": "bcad", "w": "cdbf"}


def split(log=LOG):
    events = [(user, item, time) for user, items in log.items() for time, item in enumerate(items)]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Interactions.from_frame(frame).leave_one_out()


def measured(**settings):
    ranker = Downwards()
    recommender = Mock(spec=Recommender, catalog=CATALOG, ranker=ranker, store=SimpleNamespace(experts=None))
    config = EvaluateConfig(baselines=["popularity", "text-knn"], **settings)
    return evaluate(recommender, split(), config, np.eye(ITEMS)).metrics


def test_the_whole_evaluation():
    metrics = measured()
    assert metrics["protocol"]["items"] == ITEMS
    assert metrics["protocol"]["cold_items"] == 2
    assert metrics["protocol"]["split"] == "leave-one-out"
    assert list(metrics["systems"]) == list(metrics["milliseconds_per_user"]) == ["llmrec", "popularity", "text-knn"]
    assert metrics["systems"]["llmrec"]["cold"]["mrr@1"] == 1
    assert {"count 0", "count 1-4"} < set(metrics["systems"]["llmrec"])
    assert metrics["decode"] == {"requests": 3}
    cold = metrics["cold_candidates"]
    assert (cold["protocol"]["candidates"], cold["protocol"]["users"]) == (2, 1)
    assert {name: entry["all"]["mrr@5"] for name, entry in cold["systems"].items() if name != "random"} == {
        "llmrec": 1.0,
        "popularity": 0.5,
        "text-knn": 0.5,
    }


def test_what_made_items_cold_is_told():
    made = split()
    made.protocol |= {"regime": "strict", "cold_users": 3, "cold": {"kind": "held-out", "share": 0.05, "items": 2}}
    recommender = Mock(spec=Recommender, catalog=CATALOG, ranker=Downwards(), store=SimpleNamespace(experts=None))
    protocol = evaluate(recommender, made, EvaluateConfig(baselines=[])).metrics["protocol"]
    assert {name: protocol[name] for name in ("regime", "cold_users", "cold")} == {
        "regime": "strict",
        "cold_users": 3,
        "cold": {"kind": "held-out", "share": 0.05, "items": 2},
    }


def test_nobody_to_ask_is_said():
    recommender = Mock(spec=Recommender, catalog=CATALOG, ranker=Downwards(), store=SimpleNamespace(experts=None))
    with pytest.raises(UserError, match=r"evaluate\.part test: no user has an event there"):
        evaluate(recommender, split({"u": "ab"}), EvaluateConfig())
