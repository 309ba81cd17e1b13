"""A running application around a recommender, for tests of HTTP."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmrec.recommender.recommender import Recommender

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

    from llmrec.serve.workers import Peers

Served = Callable[..., AbstractContextManager["TestClient"]]


@contextmanager
def _served(
    load: Callable[[], Recommender],
    folder: Path | None = None,
    token: str | None = None,
    peers: "Peers | None" = None,
    ready: bool = True,
    **limits: Any,
) -> Iterator["TestClient"]:
    from fastapi.testclient import TestClient

    from llmrec.serve.http import make_app
    from llmrec.serve.limits import Limits
    from llmrec.serve.live import LiveBundle
    from llmrec.serve.metrics import Metrics
    from llmrec.serve.service import Service

    service = Service(LiveBundle(load, folder, peers=peers), Limits(**limits), Metrics())
    with TestClient(make_app(service, token), raise_server_exceptions=False) as client:
        while ready and client.get("/readyz").status_code != 200:
            assert service.failure is None
            time.sleep(0.01)
        yield client


@pytest.fixture(scope="session")
def served() -> Served:
    """`served(load, folder, token, **limits)` runs the application; by default, until the model is loaded first."""
    return _served


@pytest.fixture(scope="module")
def client(recommender: Recommender, served: Served) -> Iterator["TestClient"]:
    """A client of the tiny recommender, whose items can't be changed."""
    with served(lambda: recommender) as client:
        yield client
