"""The Hub is asked once, for ten seconds at most, before anything is loaded from it."""

import socket
from pathlib import Path
from typing import Any

import pytest

from llmrec.model.base import load_base, load_tokenizer
from llmrec.resources import HUB_SECONDS, hub_options


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[tuple[str, float]]:
    """Let the Hub answer, or raise an error; what it is asked."""
    asked: list[tuple[str, float]] = []

    def model_info(api: Any, name: str, timeout: float) -> None:
        asked.append((name, timeout))
        if error is not None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    return asked


def hub_error() -> Exception:
    import httpx
    from huggingface_hub.errors import RepositoryNotFoundError

    request = httpx.Request("GET", "https://hub.test/org/name")
    return RepositoryNotFoundError("no such repository", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (None, {}),
        (OSError("no network"), {"local_files_only": True}),
        (TimeoutError("too slow"), {"local_files_only": True}),
        (hub_error(), {}),
    ],
)
def test_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception | None, options: dict[str, bool]) -> None:
    asked = answer(monkeypatch, error)
    assert hub_options("org/name") == options
    assert asked == [("org/name", HUB_SECONDS)]


def test_a_folder_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = answer(monkeypatch, None)
    assert hub_options(tmp_path) == {"local_files_only": True}
    assert not asked


@pytest.mark.parametrize("load", [load_tokenizer, load_base])
def test_a_hub_that_cannot_be_reached_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    """Neither retries nor pauses: names are looked up once a call."""
    lookups: list[str] = []

    def no_network(host: str, *others: Any, **more: Any) -> Any:
        lookups.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ValueError, match=r"--base.model org/name-of-nobody|base.model org/name-of-nobody"):
        load("org/name-of-nobody")
    assert len(lookups) <= 2
