"""Histories that say more than item tokens, as a user runs it: trained, evaluated, asked, and served to many users."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl

from llmrec.recommender.recommender import Recommender

Program = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_with_tokens_of_users_and_titles(
    llmrec: Program, run_copy: Path, tiny_flags: list[str], tmp_path: Path
) -> None:
    on = [*tiny_flags, "--tasks.user_tokens", "true", "--tasks.max_history", "6", "--tasks.title_tokens", "4"]
    shown = json.loads(llmrec("tasks", "show", "--run", run_copy, *on, "--task", "sequential", "--json").stdout)
    spans = shown["tasks"][0]["examples"][0]["spans"]
    assert "<user_a_" in spans[0]["text"]
    learnt = "".join(span["text"] for span in spans if span["trained"]).replace(" ", "")
    assert learnt.startswith("<a_"), "items are learnt, titles between them are not"
    assert all(piece[0] in "abcdefg" for piece in learnt.split("<")[1:])

    result = llmrec("run", "--run", run_copy, *on, "--evaluate.max_users", "40", "--evaluate.baselines", "[]")
    assert result.returncode == 0, result.stderr
    model = run_copy / "model"
    recommender = Recommender.from_pretrained(model)
    history = recommender.catalog.ids[:30]  # a prompt shows the last 6
    prompt = recommender.tokenizer.decode(recommender.ranker.prompt_ids(range(30))).replace(" ", "")
    assert recommender.renderer.users.text(range(30)) in prompt
    for title in recommender.renderer.clip(recommender.catalog.frame["title"][24:30].to_list(), 4):
        assert title.replace(" ", "") in prompt
    expected = [answer.item_id for answer in recommender.recommend(history, k=3)]

    asked = llmrec("recommend", "--model", model, "--history", *history, "--k", "3", "--json")
    assert [item["item_id"] for item in json.loads(asked.stdout)["items"]] == expected
    pl.DataFrame({"user_id": ["u"], "history": [history]}).write_parquet(tmp_path / "users.parquet")
    out = tmp_path / "recs.parquet"
    result = llmrec("predict", "--model", model, "--input", tmp_path / "users.parquet", "--output", out, "--k", "3")
    assert result.returncode == 0, result.stderr
    assert pl.read_parquet(out)["item_id"].to_list() == expected
