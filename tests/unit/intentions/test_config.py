"""The section `intentions`: mistakes, and what counts for a finished stage."""

import pytest

from llmrec.errors import UserError
from llmrec.intentions import IntentionsConfig


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "file"}, "intentions.path"),
        ({"source": "reviews", "path": "x.csv"}, "intentions.path"),
        ({"source": "llm"}, "intentions.url"),
        ({"source": "llm", "url": "http://h/v1"}, "intentions.model"),
        ({"source": "llm", "url": "http://h/v1", "model": "m", "local_model": "l"}, "one of the two"),
        ({"source": "llm", "url": "localhost:8000", "model": "m"}, "intentions.url localhost:8000"),
        ({"source": "llm", "url": "https://me:secret@h/v1", "model": "m"}, "OPENAI_API_KEY"),
        ({"source": "llm", "url": "https://h/v1?key=secret", "model": "m"}, "OPENAI_API_KEY"),
        ({"per_item": 0, "per_user": 0}, "intentions.per_item 0"),
        ({"per_item": -1}, "intentions.per_item -1"),
        ({"concurrent": 0}, "intentions.concurrent 0"),
        ({"held_out_share": 1.0}, "intentions.held_out_share 1.0"),
        ({"requests_per_minute": 0.0}, "intentions.requests_per_minute 0.0"),
        ({"requests_per_minute": float("nan")}, "intentions.requests_per_minute nan"),
        ({"seed": -1}, "intentions.seed -1"),
    ],
)
def test_mistakes(fields: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        IntentionsConfig(**fields)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_where_and_how_fast_a_model_is_asked_steers_nothing() -> None:
    here = IntentionsConfig("llm", url="http://a/v1", model="m", concurrent=1, requests_per_minute=3)
    there = IntentionsConfig("llm", url="http://b/v1", model="m", key_variable="OTHER")
    assert here.cache_key() == there.cache_key()
    assert here.cache_key() != IntentionsConfig("llm", url="http://a/v1", model="n").cache_key()
