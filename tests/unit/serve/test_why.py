"""`POST /v1/explain` says what each part of a request brings, as requests without that part show."""

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from tolerances import DENSE

from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Answer, Recommendation, Request
from llmrec.serve.why import measured, parts_of

if TYPE_CHECKING:
    from fastapi.testclient import TestClient


def score_of(recommender: Recommender, item_id: str, **request: Any) -> Any:
    options = {"k": 20, "include_seen": True, "empty_history": "model", **request}
    score = next(item.score for item in recommender.recommend(**options) if item.item_id == item_id)
    return pytest.approx(score, abs=DENSE)


def lead_of(recommender: Recommender, item_id: str, **request: Any) -> float:
    """The score of an item above the mean of all 19 others."""
    items = recommender.recommend(**{"k": 20, "include_seen": True, "empty_history": "model", **request})
    scores = {item.item_id: item.score for item in items}
    own = scores.pop(item_id)
    assert len(scores) == 19
    return own - sum(scores.values()) / 19


def test_what_moves_all_scores_speaks_for_none() -> None:
    """Without the history, the scores of a fusion are higher for all items, also for the one that it speaks for."""

    def answer(**scores: float) -> Answer:
        ranked = sorted(scores.items(), key=lambda pair: -pair[1])
        return Answer(Recommendation(rank, item, score, "", {}) for rank, (item, score) in enumerate(ranked, 1))

    asked = [answer(a=-11.0, b=-12.0), answer(b=-5.0)]
    scored = [answer(a=-11.0, b=-12.0, c=-20.0), answer(a=-7.0, b=-5.0, c=-6.0)]
    whole, without = measured("a", [*asked, *scored])
    assert (whole.score, whole.rank, whole.lead) == (-11.0, 1, 5.0)
    assert (without.score, without.rank, without.lead) == (-7.0, None, -1.5)
    assert measured("a", [answer(a=-11.0)] * 2)[0].lead == -11.0, "the catalogue has one item"


def test_each_part_is_left_out(client: "TestClient", recommender: Recommender) -> None:
    request = {"history": ["i1", "nope", "i5"], "prompt": "gentle soap", "k": 17}
    found = client.post("/v1/explain", json={"item_id": "i8", "request": request}).json()
    assert found["ranking"] == "beam"
    assert found["score"] == score_of(recommender, "i8", history=["i1", "i5"], prompt="gentle soap")
    expected = [
        ("prompt", 0, "gentle soap", {"history": ["i1", "i5"]}),
        ("history", 2, "i5", {"history": ["i1"], "prompt": "gentle soap"}),
        ("history", 0, "i1", {"history": ["i5"], "prompt": "gentle soap"}),
        ("word", 0, "gentle", {"history": ["i1", "i5"], "prompt": "soap"}),
        ("word", 1, "soap", {"history": ["i1", "i5"], "prompt": "gentle"}),
    ]
    assert [(part["kind"], part["place"], part["text"]) for part in found["parts"]] == [row[:3] for row in expected]
    lead = lead_of(recommender, "i8", history=["i1", "i5"], prompt="gentle soap")
    for part, (_, _, _, rest) in zip(found["parts"], expected, strict=True):
        assert part["score"] == score_of(recommender, "i8", **rest)
        assert part["change"] == pytest.approx(lead - lead_of(recommender, "i8", **rest), abs=DENSE)
        answer = [item.item_id for item in recommender.recommend(**rest, k=17)]
        assert part["rank"] == (answer.index("i8") + 1 if "i8" in answer else None)


def test_a_part_that_is_all_there_is(client: "TestClient", recommender: Recommender) -> None:
    empty = score_of(recommender, "i8", history=[])
    for request in ({"history": ["i1"]}, {"prompt": "soap"}):
        parts = client.post("/v1/explain", json={"item_id": "i8", "request": request}).json()["parts"]
        assert [part["score"] for part in parts] == [empty]


def test_filters_decide_ranks_and_not_scores(client: "TestClient") -> None:
    asked = {"item_id": "i8", "request": {"history": ["i1", "i5"], "k": 20}}
    free = client.post("/v1/explain", json=asked).json()
    asked["request"] |= {"where": {"brand": "Alba"}, "exclude": ["i8"]}
    filtered = client.post("/v1/explain", json=asked).json()
    assert free["score"] == pytest.approx(filtered["score"], abs=DENSE)
    assert free["rank"] >= 1
    assert {filtered["rank"], *(part["rank"] for part in filtered["parts"])} == {None}


def test_the_rank_of_the_whole_request_is_that_of_its_answer(client: "TestClient") -> None:
    request = {"history": ["i1", "i5"], "prompt": "soap", "k": 5}
    for item in client.post("/v1/recommend", json=request).json()["items"]:
        found = client.post("/v1/explain", json={"item_id": item["item_id"], "request": request}).json()
        assert (found["rank"], found["score"]) == (item["rank"], pytest.approx(item["score"], abs=DENSE))


def test_the_model_sees_the_newest_items_and_no_item_tokens(recommender: Recommender) -> None:
    history = [f"i{row % 20}" for row in range(recommender.max_history + 3)]
    request = Request(history, "<a_1> balm <b_2>")
    parts = list(parts_of(request, recommender.store, recommender.renderer))
    places = [part.place for part in parts if part.kind == "history"]
    assert places == list(range(len(history) - 1, 2, -1))
    assert [part.text for part in parts if part.kind == "word"] == []  # the only word is the whole prompt


def test_many_parts_are_measured_up_to_the_limit(client: "TestClient") -> None:
    request = {"history": ["i1"], "prompt": " ".join(["a"] * 40)}
    found = client.post("/v1/explain", json={"item_id": "i8", "request": request}).json()
    assert len(found["parts"]) == 31
    assert found["notes"] == ["Measured the first 31 parts only."]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"item_id": "nope", "request": {"history": ["i1"]}}, 404, "item_id"),
        ({"item_id": "i1", "request": {}}, 422, "request.history"),
        ({"item_id": "i1", "request": {"history": ["i1"], "k": 0}}, 422, "request.k"),
        ({"item_id": "i1", "request": {"history": ["i1"], "kk": 1}}, 422, "request.kk"),
        ({"item_id": "i1", "request": {"history": ["i1"] * 1001}}, 422, "history"),
        ({"item_id": "i1", "request": {"history": ["i1"], "allow": ["i1"] * 1563}}, 422, "allow"),
        ({"item_id": "i1", "request": {"prompt": " "}}, 422, "prompt"),
        ({"item_id": 1, "request": {"prompt": "x"}}, 422, "item_id"),
        ({"request": {"prompt": "x"}}, 422, "item_id"),
    ],
)
def test_mistakes(client: "TestClient", body: dict[str, Any], status: int, field: str) -> None:
    answer = client.post("/v1/explain", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


def test_only_rankings_of_the_bundle(client: "TestClient") -> None:
    assert client.get("/v1/model").json()["rankings"] == ["beam"]
    request = {"history": ["i1"], "k": 3}
    plain, named = (client.post(f"/v1/recommend{end}", json=request).json() for end in ("", "?ranking=beam"))
    assert plain["items"] == named["items"]
    for path, body in (("recommend", request), ("explain", {"item_id": "i1", "request": request})):
        refused = client.post(f"/v1/{path}?ranking=dense", json=body)
        assert refused.json()["error"]["message"] == "ranking dense: this server has beam."
        assert client.post(f"/v1/{path}?ranking=best", json=body).status_code == 422
    assert client.post("/v1/explain?ranking=quota", json=body).json()["error"]["field"] == "ranking"


def test_answers_name_codes_and_a_prefix_finds_its_items(client: "TestClient") -> None:
    items = client.get("/v1/items", params={"limit": 100}).json()["items"]
    known = {item["item_id"]: item for item in items}
    for item in client.post("/v1/recommend", json={"history": ["i1"], "k": 5}).json()["items"]:
        assert {key: item[key] for key in known["i1"]} == known[item["item_id"]]
    semantic_id = known["i8"]["semantic_id"]
    for end in range(1, semantic_id.count("<") + 1):
        prefix = ">".join(semantic_id.split(">")[:end]) + ">"
        found = client.get("/v1/items", params={"prefix": prefix}).json()
        expected = [item["item_id"] for item in items if item["semantic_id"].startswith(prefix)]
        assert [item["item_id"] for item in found["items"]] == expected
        assert "i8" in expected
    words = {"prefix": semantic_id.split(">")[0] + ">", "query": "cream"}
    assert all("cream" in item["title"] for item in client.get("/v1/items", params=words).json()["items"])


@pytest.mark.parametrize("prefix", ["a", "<a_99>", "<b_0>", "<a_0><b_0><c_0><d_0>", "12,3", "<a_0>x", "<" * 900])
def test_what_is_no_prefix(client: "TestClient", prefix: str) -> None:
    answer = client.get("/v1/items", params={"prefix": prefix})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "prefix")
