"""The HTTP service answers as `recommend json` does."""

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from fastapi.testclient import TestClient

from llmrec.recommender.recommender import Recommender
from llmrec.serve.http import make_app


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> TestClient:
    return TestClient(make_app(recommender))


def test_answers_as_the_python_api(client: TestClient, recommender: Recommender) -> None:
    answer = client.post("/recommend", json={"history": ["i1"], "prompt": "soap", "k": 4})
    assert answer.status_code == 200
    expected = recommender.recommend(history=["i1"], prompt="soap", k=4)
    assert answer.json()["items"] == [item.to_dict() for item in expected]
    assert answer.json()["reason"] is None
    assert answer.json()["seconds"] >= 0


def test_every_filter_of_the_python_api(client: TestClient, recommender: Recommender) -> None:
    request = {"history": ["i1"], "k": 9, "allow": ["i2", "i3", "i6", "i7"], "offsets": {"i3": 5.0}}
    request |= {"max_per_field": {"brand": 1}, "max_per_code": 3, "exact": True}
    answer = client.post("/recommend", json=request).json()
    expected = recommender.recommend(**request)
    assert answer["items"] == [item.to_dict() for item in expected]
    assert len(expected) == 2
    assert answer["reason"] == expected.reason
    assert "max_per_field brand=1" in answer["reason"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"history": ["nope"], "unknown": "fail"}, "nope"),
        ({}, "history"),
        ({"prompt": "soap", "kk": 3}, "kk"),
        ({"k": 0}, "k"),
    ],
)
def test_mistakes_are_422(client: TestClient, request_: dict, words: str) -> None:
    answer = client.post("/recommend", json=request_)
    assert answer.status_code == 422
    assert words in answer.text


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "tea \\ud83d cup", "k": 1}',
        '{"history": ["\\ud83d"], "k": 1}',
        '{"history": ["i1"], "where": {"brand": "\\udfff"}}',
        '{"history": ["i1"], "where": {"\\udfff": "Alba"}}',
        '{"history": ["i1"], "offsets": {"\\udfff": 1}}',
        '{"history": ["i1"], "\\udfff": 1}',
        '{"history": ["i1"], "unknown": "\\udfff"}',
    ],
)
def test_half_a_surrogate_pair_is_422(client: TestClient, body: str) -> None:
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.json()["error"].splitlines()) == 1


def test_notes_of_the_history(client: TestClient, recommender: Recommender) -> None:
    answer = client.post("/recommend", json={"history": ["i1", "nope"], "k": 2}).json()
    assert answer["items"] == [item.to_dict() for item in recommender.recommend(["i1"], k=2)]
    assert answer["notes"] == recommender.recommend(["i1", "nope"]).notes
    assert client.post("/recommend", json={"history": []}).json()["notes"][0].startswith("The history is empty")


def test_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "items": 20}
