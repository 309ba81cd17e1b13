"""`--tasks.user_tokens true` as a user runs it: trained, evaluated, asked, and served to many users."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl

from llmrec.recommender.recommender import Recommender

Program = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_with_tokens_of_users(llmrec: Program, run_copy: Path, tiny_flags: list[str], tmp_path: Path) -> None:
    on = [*tiny_flags, "--tasks.user_tokens", "true"]
    shown = json.loads(llmrec("tasks", "show", "--run", run_copy, *on, "--task", "sequential", "--json").stdout)
    text = shown["tasks"][0]["examples"][0]["spans"][0]
    assert "<user_a_" in text["text"]
    assert not text["trained"]

    result = llmrec("run", "--run", run_copy, *on, "--evaluate.max_users", "40", "--evaluate.baselines", "[]")
    assert result.returncode == 0, result.stderr
    model = run_copy / "model"
    recommender = Recommender.from_pretrained(model)
    history = recommender.catalog.ids[:30]  # a prompt shows the last 20
    prompt = recommender.tokenizer.decode(recommender.ranker.prompt_ids(range(30)))
    assert recommender.renderer.users.text(range(30)) in prompt.replace(" ", "")
    expected = [answer.item_id for answer in recommender.recommend(history, k=3)]

    asked = llmrec("recommend", "--model", model, "--history", *history, "--k", "3", "--json")
    assert [item["item_id"] for item in json.loads(asked.stdout)["items"]] == expected
    pl.DataFrame({"user_id": ["u"], "history": [history]}).write_parquet(tmp_path / "users.parquet")
    out = tmp_path / "recs.parquet"
    result = llmrec("predict", "--model", model, "--input", tmp_path / "users.parquet", "--output", out, "--k", "3")
    assert result.returncode == 0, result.stderr
    assert pl.read_parquet(out)["item_id"].to_list() == expected
