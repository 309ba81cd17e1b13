"""The page at `/` needs nothing from elsewhere, and its policy lets it load nothing else."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from llmrec.recommender.recommender import Recommender

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Served = Callable[..., AbstractContextManager["TestClient"]]


def test_the_page_and_all_that_it_names_are_served(client: "TestClient") -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted, seen = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)), set()
    assert len(wanted) == 3
    while wanted:
        path = wanted.pop()
        seen.add(path)
        answer = client.get(f"/{path}")
        assert answer.status_code == 200, path
        wanted |= {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)} - seen
    assert len(seen) > 5


def test_nothing_inline_and_nothing_from_elsewhere(client: "TestClient") -> None:
    page = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert "://" not in page.text
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page.text)


def test_other_files_are_not_there(client: "TestClient") -> None:
    assert {client.get(f"/page/{name}").status_code for name in ("nope.js", "%2e%2e/http.py", "../page.py")} == {404}


def test_the_page_is_open_and_the_rest_is_not(recommender: Recommender, served: Served) -> None:
    with served(lambda: recommender, token="secret") as client:
        assert [client.get(path).status_code for path in ("/", "/page/app.js", "/v1/model")] == [200, 200, 401]
        assert client.post("/v1/explain", json={}).status_code == 401
