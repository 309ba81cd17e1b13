"""Prompts, and what is read from answers."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.intentions import IntentionsConfig
from llmrec.intentions.llm import LONGEST, ask, item_prompts, lines, user_prompts


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("a hose for roses\na long hose", ["a hose for roses", "a long hose"]),
        ("1. a hose for roses\n2) a long hose", ["a hose for roses", "a long hose"]),
        ('- "a hose for roses"\n• **a long hose**', ["a hose for roses", "a long hose"]),
        ("Here are three requests:\n\na hose for roses", ["a hose for roses"]),
        ("<think>a plan\nof words</think>\na hose for roses", ["a hose for roses"]),
        ("<think>never\nended thoughts", []),
        ("A hose for roses\na hose for roses\nhose", ["A hose for roses"]),
        ("3 lamps for the desk\n2024 calendar for a wall", ["3 lamps for the desk", "2024 calendar for a wall"]),
        ("word " * (LONGEST + 1), []),
        ("", []),
    ],
)
def test_lines(answer: str, found: list[str]) -> None:
    assert lines(answer, 3) == found


@given(st.text(), st.integers(1, 4))
def test_lines_of_any_answer(answer: str, most: int) -> None:
    found = lines(answer, most)
    assert len(found) <= most
    for text in found:
        assert text == " ".join(text.split())
        assert 1 < len(text.split()) <= LONGEST


def test_prompts_tell_the_item_and_the_history(catalog: Catalog, log: Interactions) -> None:
    items, users = item_prompts(catalog, log, 3), user_prompts(catalog, log, 2)
    assert list(items) == catalog.ids
    assert "Steel Roof Rack" in items["i1"]
    for item, review in log.frame.select("item_id", "review").iter_rows():
        assert review in items[item]
    titles = [catalog.row(item)["title"] for item in log.frame.filter(pl.col("user_id") == "u0")["item_id"]]
    assert "\n".join(f"- {title}" for title in titles) in users["u0"]


def test_prompts_of_hostile_texts(log: Interactions) -> None:
    """Braces, newlines and 100 kB in a title or a review: taken as they are, or cut."""
    text = "{text} {0} {{\n" + "x" * 100_000
    shop = Catalog.from_frame(pl.DataFrame({"item_id": [f"i{n}" for n in range(12)], "title": [text] * 12}))
    shouting = Interactions(log.frame.with_columns(review=pl.lit("{reviews}\n" * 9999)))
    prompts = [*item_prompts(shop, shouting, 3).values(), *user_prompts(shop, log, 1).values()]
    assert all("{text} {0} {{ x" in prompt and len(prompt) < 4000 for prompt in prompts)


def test_asked_once_in_all(endpoint: Any, catalog: Catalog, log: Interactions, tmp_path: Path) -> None:
    endpoint.reply = lambda prompt, before: "\n".join(f"{place} wish {hash(prompt)}" for place in "abc")
    config = IntentionsConfig("llm", url=endpoint.url, model="m", held_out_share=0.25)
    found = ask(config, catalog, log, tmp_path)
    assert set(found.items) == set(catalog.ids)
    assert set(found.users) == {f"u{n}" for n in range(6)}
    assert len(found.held_out) == 3
    assert len(endpoint.prompts) == len(set(endpoint.prompts)) == 18
    again = ask(
        IntentionsConfig("llm", url="http://127.0.0.1:9/v1", model="m", held_out_share=0.25), catalog, log, tmp_path
    )
    assert again == found, "from the disk: nobody is there to ask"


def test_stopped_half_way_and_gone_on_with(endpoint: Any, catalog: Catalog, log: Interactions, tmp_path: Path) -> None:
    endpoint.reply = lambda prompt, before: (400, "", {}) if len(endpoint.prompts) == 8 else "a first wish"
    config = IntentionsConfig("llm", url=endpoint.url, model="m", concurrent=1)
    with pytest.raises(UserError, match="400"):
        ask(config, catalog, log, tmp_path)
    refused = endpoint.prompts[7]
    endpoint.reply = lambda prompt, before: "a first wish"
    ask(config, catalog, log, tmp_path)
    twice = {prompt for prompt in endpoint.prompts if endpoint.prompts.count(prompt) > 1}
    assert twice == {refused}
    assert len(endpoint.prompts) == 19


def test_users_alone(endpoint: Any, catalog: Catalog, log: Interactions, tmp_path: Path) -> None:
    found = ask(IntentionsConfig("llm", url=endpoint.url, model="m", per_item=0), catalog, log, tmp_path)
    assert len(endpoint.prompts) == 6
    assert found.items == found.held_out == {}
