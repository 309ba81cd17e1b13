"""The HTTP service answers as `recommend --json` does."""

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from fastapi.testclient import TestClient

from llmrec.serve.http import make_app
from llmrec.serve.recommender import Recommender


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> TestClient:
    return TestClient(make_app(recommender))


def test_answers_as_the_python_api(client: TestClient, recommender: Recommender) -> None:
    answer = client.post("/recommend", json={"history": ["i1"], "prompt": "soap", "k": 4})
    assert answer.status_code == 200
    expected = recommender.recommend(history=["i1"], prompt="soap", k=4)
    assert answer.json()["items"] == [item.to_dict() for item in expected]
    assert answer.json()["seconds"] >= 0


@pytest.mark.parametrize(
    ("request_", "words"),
    [({"history": ["nope"]}, "nope"), ({}, "--history"), ({"prompt": "soap", "kk": 3}, "kk"), ({"k": 0}, "k")],
)
def test_mistakes_are_422(client: TestClient, request_: dict, words: str) -> None:
    answer = client.post("/recommend", json=request_)
    assert answer.status_code == 422
    assert words in answer.text


def test_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "items": 20}
