"""The HTTP service answers as the Python API does; what is wrong gets a reason, in one form, and never a 5xx."""

import json
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from fastapi.testclient import TestClient
from tolerances import DENSE

from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Request
from llmrec.serve.limits import ApiError, Limits

JSON = {"content-type": "application/json"}


def items_of(answer: Any) -> list[dict[str, Any]]:
    beside = ("semantic_id", "training_events")
    items = [{name: value for name, value in item.items() if name not in beside} for item in answer["items"]]
    return [{**item, "score": pytest.approx(item["score"], abs=DENSE)} for item in items]


@pytest.mark.parametrize(
    "request_",
    [
        {"history": ["i1"], "prompt": "soap", "k": 4},
        {"history": ["i1", "nope"], "k": 3},
        {"history": [], "k": 3},
        {"history": ["i1"], "k": 9, "allow": ["i2", "i3", "i6", "i7"], "offsets": {"i3": 5.0}, "max_per_code": 3}
        | {"max_per_field": {"brand": 1}, "exact": True},
    ],
)
@pytest.mark.parametrize("path", ["/v1/recommend", "/recommend"])
def test_answers_as_the_python_api(
    client: TestClient, recommender: Recommender, request_: dict[str, Any], path: str
) -> None:
    answer = client.post(path, json=request_)
    assert answer.status_code == 200
    expected = recommender.recommend(**request_)
    assert items_of(answer.json()) == [item.to_dict() for item in expected]
    assert (answer.json()["reason"], answer.json()["notes"]) == (expected.reason, expected.notes)
    assert answer.json()["seconds"] >= 0


def test_an_id_that_is_a_number_is_refused_with_the_fix(client: TestClient) -> None:
    answer = client.post("/v1/recommend", json={"history": ["i1", 7]})
    message = 'history.1: found no text, expected one; write a number in quotation marks, such as "7".'
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, message)


def test_a_list_gets_a_list(client: TestClient, recommender: Recommender) -> None:
    requests = [
        {"history": ["i1"], "k": 3},
        {"prompt": "soap", "k": 12},
        {"history": ["i4"], "where": {"brand": "alba"}},
    ]
    answers = client.post("/v1/recommend", json=requests).json()
    for answer, request in zip(answers, requests, strict=True):
        assert items_of(answer) == [item.to_dict() for item in recommender.recommend(**request)]


def test_concurrent_requests_share_batches_and_get_their_own_answers(
    client: TestClient, recommender: Recommender
) -> None:
    requests = [{"history": [f"i{row}"], "k": 2 + row % 3, "exclude": [f"i{19 - row}"]} for row in range(12)]
    answers: list[Any] = [None] * len(requests)

    def ask(place: int) -> None:
        answers[place] = client.post("/v1/recommend", json=requests[place]).json()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer, request in zip(answers, requests, strict=True):
        assert items_of(answer) == [item.to_dict() for item in recommender.recommend(**request)]


def test_items_are_found_and_read(client: TestClient) -> None:
    found = client.get("/v1/items", params={"query": "ALBA soap"}).json()
    assert [item["item_id"] for item in found["items"]] == ["i1"]
    assert client.get("/v1/items", params={"query": "I7"}).json()["items"][0]["item_id"] == "i7"
    assert client.get("/v1/items", params={"limit": 2, "offset": 3}).json()["total"] == 20
    page = client.get("/v1/items", params={"limit": 2, "offset": 3}).json()["items"]
    assert [item["item_id"] for item in page] == ["i3", "i4"]
    assert client.get("/v1/items/i3").json() == page[0]
    assert page[0]["fields"]["brand"] == "Alba"
    assert page[0]["semantic_id"].startswith("<a_")


def test_what_the_server_says_of_itself(client: TestClient) -> None:
    assert client.get("/livez").json()["status"] == "ok"
    assert client.get("/readyz").json() == client.get("/health").json() == {"status": "ok", "items": 20}
    model = client.get("/v1/model").json()
    assert (model["items"], model["ranking"], model["can_change_items"]) == (20, "beam", False)
    assert model["limits"]["answers"] == 1000
    client.post("/v1/recommend", json={"history": ["i1"]})
    metrics = client.get("/metrics").text
    assert 'llmrec_requests_total{method="POST",route="/v1/recommend",status="200"}' in metrics
    assert "llmrec_items 20.0" in metrics


def test_docs_need_no_network(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://www.w3.org", "")
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert paths["/recommend"]["post"]["deprecated"]
    asked = paths["/v1/recommend"]["post"]
    assert asked["requestBody"]["content"]["application/json"]["examples"].keys() == {"history", "words", "list"}
    assert asked["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


DEEP = "[" * 100_000 + "]" * 100_000
BAD_BODIES = [
    "",
    "{",
    "null",
    "3",
    '"x"',
    "[]",
    "[[]]",
    "{}",
    "NaN",
    DEEP,
    '{"history": ' + DEEP + "}",
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    json.dumps({"history": ["i1"], **{f"f{n}": 0 for n in range(70_000)}}),
    '{"k": ' + "9" * 5000 + ', "history": ["i1"]}',
    *(
        '{"history": ["i1"], ' + more + "}"
        for more in [
            '"kk": 3',
            '"k": 0',
            '"k": -1',
            '"k": 1e400',
            '"k": NaN',
            '"k": "x"',
            '"k": 1.5',
            '"k": null',
            '"k": 1001',
            '"k": 400, "phrasings": 3',
            '"k": 99999999999999999999',
            '"phrasings": 0',
            '"phrasings": 900',
            '"prompt": 3',
            '"prompt": ""',
            '"prompt": "' + "a" * 8001 + '"',
            '"prompt": "tea \\ud83d cup"',
            '"exclude": "i1"',
            '"exclude": ["nope"]',
            '"exclude": [1]',
            '"exclude": ["\\udfff"]',
            '"allow": {}',
            '"where": {"brand": "\\udfff"}',
            '"where": {"\\udfff": "Alba"}',
            '"where": {"nope": "x"}',
            '"where": [1]',
            '"where": "brand"',
            '"offsets": {"i1": NaN}',
            '"offsets": {"i1": Infinity}',
            '"offsets": {"i1": -1e400}',
            '"offsets": {"i1": 1e39}',
            '"offsets": {"\\udfff": 1}',
            '"offsets": {"nope": 1}',
            '"offsets": [1, 2]',
            '"offsets": "x"',
            '"max_per_field": {"brand": 0}',
            '"max_per_field": {"brand": NaN}',
            '"max_per_field": {"nope": 1}',
            '"max_per_code": 0',
            '"unknown": "\\udfff"',
            '"unknown": "maybe"',
            '"empty_history": "no"',
            '"include_seen": "perhaps"',
            '"exact": 7',
            '"\\udfff": 1',
        ]
    ),
    '{"history": "i1"}',
    '{"history": [1]}',
    '{"history": [["i1"]]}',
    '{"history": ["\\ud83d"]}',
    '{"history": ["nope"], "unknown": "fail"}',
    json.dumps({"history": ["i1"] * 1001}),
    json.dumps([{"history": ["i1"]}] * 65),
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_bad_body_is_4xx_with_a_reason(client: TestClient, body: str) -> None:
    answer = client.post("/v1/recommend", content=body.encode(), headers=JSON)
    assert 400 <= answer.status_code < 500, answer.text
    content = answer.json()
    assert content.keys() == {"error", "request_id"}
    assert content["request_id"] == answer.headers["x-request-id"]
    message = content["error"]["message"]
    assert len(message.splitlines()) == 1
    assert "--" not in message
    assert len(message) < 600


BAD_ITEMS = [
    {},
    {"items": []},
    {"items": [{}]},
    {"items": [{"item_id": ""}]},
    {"items": [{"item_id": 3}]},
    {"items": [{"item_id": "a", "price": 3}]},
    {"items": [{"item_id": "a", "fields": {"title": "x"}}]},
    {"items": [{"item_id": "a", "fields": {"brand": None}}]},
    {"items": [{"item_id": "a", "title": "x" * 8001}]},
    {"items": [{"item_id": "a", "title": "x"}, {"item_id": "a", "title": "y"}]},
    {"items": [{"item_id": "a", "title": "x"}], "if_exists": "no"},
    {"items": [{"item_id": "a", "title": "x"}], "vectors": [[1.0]]},
    {"items": [{"item_id": str(n)} for n in range(1001)]},
    {"items": [{"item_id": "a", "title": "x"}]},
]


@pytest.mark.parametrize("body", BAD_ITEMS, ids=range(len(BAD_ITEMS)))
def test_bad_items_are_4xx(client: TestClient, body: dict[str, Any]) -> None:
    """The last one is right, but the items of this server can't be changed."""
    answer = client.post("/v1/items", json=body)
    assert answer.status_code in (409, 422)
    assert "--" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/items/nope", 404),
        ("GET", "/v1/items/%00", 404),
        ("GET", "/v1/items/%ff", 404),
        ("GET", "/v1/items/" + "a" * 2000, 422),
        ("GET", "/v1/items?limit=0", 422),
        ("GET", "/v1/items?offset=-1", 422),
        ("GET", "/v1/items?offset=1e400", 422),
        ("GET", "/v1/items?query=" + "a" * 9000, 422),
        ("GET", "/v1/items?query=%ff(", 200),
        ("PUT", "/v1/recommend", 405),
        ("POST", "/v1/model", 405),
    ],
)
def test_other_mistakes(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert status < 400 or answer.json()["error"]["code"]


def test_what_is_wrong_is_named(client: TestClient) -> None:
    wrong = client.post("/v1/recommend", json=[{"history": ["i1"]}, {"history": ["i1"], "k": 0}]).json()["error"]
    assert wrong == {"code": "invalid_request", "message": "k 0: expected at least 1.", "field": "1.k"}
    many = client.post("/v1/recommend", json={"history": ["i1"], "k": 2000}).json()["error"]
    assert many == {"code": "too_large", "message": "k: 2,000 answers, expected at most 1,000.", "field": "k"}
    assert client.post("/v1/recommend", content="{}").status_code == 415
    for path, body, message in (
        ("recommend", {"histroy": ["i1"]}, "histroy: no such field; known are allow, empty_history,"),
        ("recommend", {"history": "i1"}, "history: found one text, expected a list of texts."),
        ("items", {"items": [{"item_id": "i9", "name": "Mug"}]}, "items.0.name: no such field."),
    ):
        error = client.post(f"/v1/{path}", json=body).json()["error"]
        assert error["message"].startswith(message), error


@pytest.mark.parametrize(
    ("fields", "slow"),
    [
        ({}, False),
        ({"k": 101}, True),
        ({"exact": True}, True),
        ({"phrasings": 2}, True),
        ({"prompt": "a" * 1001}, True),
    ],
)
def test_what_takes_long_has_a_lane_of_its_own(fields: dict[str, Any], slow: bool) -> None:
    assert Limits().is_slow(Request(**({"history": ["i1"]} | fields))) is slow


def test_a_limit_names_its_field() -> None:
    with pytest.raises(ApiError, match="allow: 6 entries, expected at most 5") as error:
        Limits(ids=5).check(Request(["i1"], allow=[f"i{n}" for n in range(6)]))
    assert error.value.field == "allow"
