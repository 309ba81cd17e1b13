"""What stands before the application: token, rate, body, hang-ups; and the states loading and full."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from fastapi.testclient import TestClient

from llmrec.recommender.recommender import Recommender
from llmrec.serve.guard import Guard, RateLimit
from llmrec.serve.limits import Limits
from llmrec.serve.metrics import Metrics

Served = Callable[..., AbstractContextManager[TestClient]]
ASKED = {"history": ["i1"], "k": 2}


def test_a_token_is_asked_for(recommender: Recommender, served: Served) -> None:
    with served(lambda: recommender, token="secret") as client:
        assert client.get("/livez").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            answer = client.post("/v1/recommend", json=ASKED, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        allowed = {"authorization": "Bearer secret"}
        assert client.post("/v1/recommend", json=ASKED, headers=allowed).status_code == 200


def test_a_rate_is_kept(recommender: Recommender, served: Served) -> None:
    with served(lambda: recommender, rate=0.5) as client:
        assert client.get("/v1/model").status_code == 200
        answer = client.get("/v1/model")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == 200


def test_the_bucket_of_a_client_fills_again() -> None:
    rate = RateLimit(2.0)
    assert [rate.take("a", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rate.take("b", 0.0) == 0
    assert [rate.take("a", 0.5), rate.take("a", 0.5)] == [0, 0.5]
    assert [rate.take("a", 100.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]


def test_a_large_body_is_refused(recommender: Recommender, served: Served) -> None:
    with served(lambda: recommender, body=1000) as client:
        answer = client.post("/v1/recommend", json={"prompt": "tea " * 1000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_request_ids_are_kept_or_made(client: TestClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.get("/livez", headers={"x-request-id": "two words"}).headers["x-request-id"]
    assert len(made) == 32


def test_before_the_model_is_there(recommender: Recommender, served: Served) -> None:
    go = threading.Event()

    def load() -> Recommender:
        assert go.wait(30)
        return recommender

    with served(load, ready=False) as client:
        assert client.get("/livez").status_code == 200
        for answer in (client.get("/readyz"), client.post("/v1/recommend", json=ASKED), client.get("/v1/items/i1")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
            assert answer.headers["retry-after"] == "2"
        go.set()


def test_a_full_queue_and_a_deadline(recommender: Recommender, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    go, started = threading.Event(), threading.Event()

    def stuck(*others: Any, **options: Any) -> None:
        started.set()
        assert go.wait(30)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr(recommender.ranker, "rank", stuck)
    with served(lambda: recommender, queue=1, deadline=0.5, batch_wait=0.0) as client:
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/v1/recommend", json=ASKED)))
        thread.start()
        assert started.wait(30)
        full = client.post("/v1/recommend", json=ASKED)
        thread.join()
        go.set()
    if full.status_code != 504:  # on a slow machine the first request has left already
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
    assert (first[0].status_code, first[0].json()["error"]["code"]) == (504, "deadline")


class Client:
    """A client of an ASGI application that sends `messages` and then nothing more."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        return self.messages.pop(0) if self.messages else await asyncio.Future()

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def scope() -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": [], "client": ("127.0.0.1", 1)}


def test_a_stalled_body_is_given_up() -> None:
    async def app(*others: Any) -> None:
        raise AssertionError("the body is not there")

    guard = Guard(app, Limits(read_seconds=0.05), Metrics(), None)
    client = Client({"type": "http.request", "body": b"{", "more_body": True})
    asyncio.run(guard(scope(), client.receive, client.send))
    assert client.sent[0]["status"] == 408
    assert b"too_slow" in client.sent[1]["body"]


def test_a_client_that_hangs_up_cancels_its_request() -> None:
    ended = []

    async def app(*others: Any) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    guard = Guard(app, Limits(), Metrics(), None)
    client = Client({"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"})
    asyncio.run(guard(scope(), client.receive, client.send))
    assert ended == [True]
    assert client.sent == []


def test_a_defect_is_a_plain_500() -> None:
    async def app(*others: Any) -> None:
        raise RuntimeError("secret detail")

    client = Client({"type": "http.request", "body": b"{}", "more_body": False})
    asyncio.run(Guard(app, Limits(), Metrics(), None)(scope(), client.receive, client.send))
    assert client.sent[0]["status"] == 500
    assert b"secret" not in client.sent[1]["body"]
