"""The client against a server of our own, in a thread."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmrec.errors import UserError
from llmrec.intentions import IntentionsConfig
from llmrec.intentions.answers import ATTEMPTS, LONGEST_WAIT, Answers, Endpoint, Pace

ANSWER = "something small for the kitchen"


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path / "answers.jsonl", "m")


class Waits(list[float]):
    """Notes the seconds instead of waiting."""

    def __call__(self, seconds: float) -> None:
        if seconds:
            self.append(seconds)


def client(url: str, wait: Callable[[float], Any] | None = None, **fields: Any) -> Endpoint:
    return Endpoint(IntentionsConfig("llm", url=url, model="m", **fields), wait)


def test_every_prompt_is_answered_once(endpoint: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint.reply = lambda prompt, before: f"wants {prompt}"
    prompts = [f"thing {n}" for n in range(20)]
    client(f"{endpoint.url}/", key_variable="MY_KEY").answer(prompts, answers)
    assert sorted(endpoint.prompts) == sorted(prompts)
    assert [answers[prompt] for prompt in prompts] == [f"wants {prompt}" for prompt in prompts]
    assert set(endpoint.paths) == {"/v1/chat/completions"}
    assert set(endpoint.keys) == {"Bearer secret"}


def test_no_key_no_header(endpoint: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client(endpoint.url).answer(["a"], answers)
    assert endpoint.keys == [None]


@pytest.mark.parametrize(
    "trouble",
    [
        (429, "slow down", {}),
        (503, "", {}),
        (200, "<html>oops</html>", {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"message": {"content": 3}}]}', {}),
        (200, "[1]", {}),
    ],
)
def test_passing_trouble(endpoint: Any, answers: Answers, trouble: tuple[int, str, dict]) -> None:
    endpoint.reply = lambda prompt, before: trouble if before < 2 else ANSWER
    waits = Waits()
    client(endpoint.url, waits).answer(["a"], answers)
    assert answers["a"] == ANSWER
    assert len(endpoint.prompts) == 3
    assert waits == [1, 2]


@pytest.mark.parametrize(("told", "waited"), [("7", 7), ("100000", LONGEST_WAIT), ("Fri, 31 Dec 2027", 1)])
def test_the_endpoint_says_how_long_to_wait(endpoint: Any, answers: Answers, told: str, waited: float) -> None:
    endpoint.reply = lambda prompt, before: ANSWER if before else (429, "", {"Retry-After": told})
    waits = Waits()
    client(endpoint.url, waits).answer(["a"], answers)
    assert waits == [waited]


def test_an_empty_answer_is_an_answer(endpoint: Any, answers: Answers) -> None:
    endpoint.reply = lambda prompt, before: (200, '{"choices": [{"message": {"content": null}}]}', {})
    client(endpoint.url).answer(["a"], answers)
    assert answers["a"] == ""


def test_trouble_for_good_loses_no_answer(endpoint: Any, answers: Answers) -> None:
    endpoint.reply = lambda prompt, before: (500, "broken", {}) if prompt == "bad" else ANSWER
    waits = Waits()
    with pytest.raises(UserError) as error:
        client(endpoint.url, waits, concurrent=1).answer(["a", "b", "bad", "c", "d"], answers)
    for part in (endpoint.url, "500", "broken", f"{ATTEMPTS} times", "goes on"):
        assert part in str(error.value)
    assert endpoint.prompts.count("bad") == ATTEMPTS
    assert waits == [1, 2, 4, 8, 16]
    assert "a" in answers
    assert "b" in answers
    kept = [prompt for prompt in "abcd" if prompt in answers]
    assert sorted(kept) == sorted(prompt for prompt in endpoint.prompts if prompt != "bad"), (
        "all that was answered is kept"
    )


def test_answers_under_way_at_a_failure_are_kept(endpoint: Any, answers: Answers) -> None:
    failed = threading.Event()

    def reply(prompt: str, before: int) -> Any:
        if prompt == "bad":
            failed.set()
            return 400, "no such model", {}
        failed.wait(10)
        return ANSWER

    endpoint.reply = reply
    with pytest.raises(UserError, match=r"400.*intentions\.model m"):
        client(endpoint.url, concurrent=2).answer(["slow", "bad"], answers)
    assert answers["slow"] == ANSWER


@pytest.mark.parametrize(("status", "said"), [(401, "MY_KEY, which is not set"), (404, "intentions.model m")])
def test_refusals_are_not_repeated(endpoint: Any, answers: Answers, status: int, said: str) -> None:
    endpoint.reply = lambda prompt, before: (status, "refused", {})
    with pytest.raises(UserError) as error:
        client(endpoint.url, concurrent=1, key_variable="MY_KEY").answer(["a"], answers)
    assert endpoint.prompts == ["a"]
    assert f"status {status}" in str(error.value)
    assert said in str(error.value)


def test_nobody_there(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*ConnectError"):
        client("http://127.0.0.1:9/v1", Waits()).answer(["a"], answers)


class Clock:
    """Time that passes only where it is waited."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_pace() -> None:
    clock = Clock()
    pace = Pace(30, clock)
    assert [pace.reserve() for _ in range(3)] == [0, 2, 4], "places are taken, not time spent"
    clock.now += 100
    assert [pace.reserve() for _ in range(2)] == [0, 2], "unused places are not saved up"
    assert [Pace(None, clock).reserve() for _ in range(3)] == [0, 0, 0]


def test_rate_limit(endpoint: Any, answers: Answers) -> None:
    """Retries count as well: six requests at 20 a minute take 15 seconds and their places are 3 seconds apart."""
    clock, times = Clock(), []

    def reply(prompt: str, before: int) -> Any:
        times.append(clock.now - 100)
        return (429, "", {}) if prompt == "b" and not before else ANSWER

    endpoint.reply = reply
    config = IntentionsConfig("llm", url=endpoint.url, model="m", requests_per_minute=20, concurrent=1)
    Endpoint(config, clock.wait, clock).answer(["a", "b", "c", "d", "e"], answers)
    assert times == [0, 3, 6, 9, 12, 15]
