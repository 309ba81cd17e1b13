"""schemathesis asks what the OpenAPI description allows and what it does not: no 5xx, and only described answers.

The server listens on a socket, and its items can be changed.
"""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("schemathesis", reason="the fuzz extra is not installed")

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as described

from llmrec.recommender.recommender import Recommender
from llmrec.serve.http import make_app
from llmrec.serve.limits import Limits
from llmrec.serve.live import LiveBundle
from llmrec.serve.metrics import Metrics
from llmrec.serve.server import Server
from llmrec.serve.service import Service

CHECKS = [
    not_a_server_error,
    described.status_code_conformance,
    described.content_type_conformance,
    described.response_schema_conformance,
]


@pytest.fixture(scope="module")
def address(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    recommender.save_pretrained(folder)
    service = Service(LiveBundle(lambda: Recommender.from_pretrained(folder), folder), Limits(), Metrics())
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        server = Server(make_app(service, patient=True), service.limits)
        thread = threading.Thread(target=server.listen, args=(own,), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{own.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def description(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_described_answers_only(description: Any, mode: GenerationMode) -> None:
    """What fits the description, and what does not."""
    for found in description.get_all_operations():
        try:
            cases = found.ok().as_strategy(generation_mode=mode)
            given(case=cases)(ask)()
        except Unsatisfiable:  # no parameter that could be wrong
            assert mode == GenerationMode.NEGATIVE


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def ask(case: Any) -> None:
    answer = case.call()
    case.validate_response(answer, checks=CHECKS)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["code"]
        assert error["message"]


def test_after_all_that_it_answers(address: str) -> None:
    answer = httpx.post(f"{address}/v1/recommend", json={"history": [], "k": 3}, timeout=60)
    assert len(answer.json()["items"]) == 3
