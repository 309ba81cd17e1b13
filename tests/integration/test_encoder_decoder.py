"""A T5 made from scratch through all stages: the bundle is an ordinary checkpoint, and all that asks it works."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tolerances import SUMS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from llmrec import Catalog, Recommender
from llmrec.decode.tree import TreeSearch
from llmrec.recommender.discover import discover
from llmrec.recommender.explain import explain

Program = Callable[..., subprocess.CompletedProcess[str]]
FLAGS = ["--base.architecture", "t5", "--train.packing", "false", "--tasks.supervise", "target"]


@pytest.fixture(scope="module")
def run(llmrec: Program, tiny_run: Path, tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quickstart's configuration with a T5; what stands before its base is taken from the tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "t5"
    shutil.copytree(tiny_run, folder)
    result = llmrec("run", "--run", folder, *tiny_flags, *FLAGS, "--evaluate.diagnose", "20")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.from_pretrained(run / "model")


def test_the_bundle_is_an_ordinary_checkpoint(run: Path, recommender: Recommender) -> None:
    folder = run / "model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert "`AutoModelForSeq2SeqLM` and `AutoTokenizer`" in (folder / "README.md").read_text()
    inputs = tokenizer("A customer bought soap", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert model.generate(inputs, max_new_tokens=3).shape[0] == 1, "plain generate finds the start token"
    start = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        theirs, ours = (each(input_ids=inputs, decoder_input_ids=start).logits for each in (model, recommender.model))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=SUMS)


def test_it_ranks_by_the_tree_with_the_calibrated_fusion(run: Path, recommender: Recommender) -> None:
    assert isinstance(recommender.ranker.search, TreeSearch)
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert metrics["decode"]["ranking"] == recommender.fusion_weights.best
    assert metrics["decode"]["scoring"] == "catalogue"
    ranker = recommender.ranked_by("fusion")
    assert ranker.rank([ranker.prompt_ids([0, 1])], 5).items.min() >= 0
    assert metrics["decode"]["invalid_rate"] == 0
    diagnosis = json.loads((run / "evaluate" / "diagnosis.json").read_text())
    assert diagnosis


def test_saved_and_loaded_it_answers_the_same(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save_pretrained(tmp_path)
    again = Recommender.from_pretrained(tmp_path)
    history = recommender.catalog.ids[:3]
    for request in ({"history": history}, {"prompt": "a soap"}, {"history": history, "prompt": "a soap"}):
        one, other = (each.recommend(**request, k=5) for each in (recommender, again))
        assert [item.item_id for item in one] == [item.item_id for item in other]
        np.testing.assert_array_equal([item.score for item in one], [item.score for item in other])


def test_items_added_later_are_recommended_at_once(run: Path) -> None:
    recommender = Recommender.from_pretrained(run / "model")
    row = recommender.catalog.frame.head(1).with_columns(item_id=pl.lit("new"))
    recommender.add_items(Catalog.from_frame(row))
    [answer] = recommender.recommend(history=recommender.catalog.ids[:3], k=1, allow=["new"])
    assert answer.item_id == "new"


def test_it_describes_items_and_discovers_free_codes(recommender: Recommender) -> None:
    assert isinstance(explain(recommender, recommender.catalog.ids[0]).says, str)
    found = discover(recommender, [recommender.catalog.ids[:3]], k=2)
    assert len(found) == 2


def test_the_estimate_counts_it(llmrec: Program, run: Path, tiny_flags: list[str], recommender: Recommender) -> None:
    result = llmrec("estimate", "--run", run, *tiny_flags, *FLAGS, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["parameters"]["total"] == recommender.model.num_parameters()
    assert found["bytes"]["activations"] > 0
    assert found["operations"] > 0


def test_what_it_cannot_do_is_refused_before_anything_is_written(
    fails: Callable[..., str], run: Path, tiny_flags: list[str], tmp_path: Path
) -> None:
    line = "an encoder-decoder trains all weights, on the answers alone, one example per row; set"
    for base in (["--base.architecture", "t5"], ["--base.model", str(run / "base")]):
        for flags in ([], ["--train.method", "lora"]):
            assert f"{' '.join(base)}: {line}" in fails("run", "--run", tmp_path / "new", *tiny_flags, *base, *flags)
    assert not (tmp_path / "new").exists()
