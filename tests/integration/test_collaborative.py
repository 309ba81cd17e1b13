"""`--tokenize.collaborative` as a user runs it: trained with a dense head, grown, served, exported, trained further."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data import Catalog
from llmrec.embed import Embeddings
from llmrec.recommender.recommender import Recommender
from llmrec.serve.live import AddItems, LiveBundle

Program = Callable[..., subprocess.CompletedProcess[str]]
OPTION = ["--tokenize.collaborative", "16", "--tokenize.collaborative_weight", "1"]
SMALL = ["--train.dense.weight", "1", "--evaluate.max_users", "20", "--evaluate.baselines", "[]"]


def catalog(item: str) -> Catalog:
    return Catalog.from_frame(pl.DataFrame({"item_id": [item], "title": ["a gentle shampoo"]}))


def test_a_run_with_collaborative_semantic_ids(
    llmrec: Program, fails: Callable[..., str], run_copy: Path, tiny_flags: list[str], tmp_path: Path
) -> None:
    flags, plain = [*tiny_flags, *OPTION, *SMALL], pl.read_parquet(run_copy / "tokenize" / "item_codes.parquet")
    result = llmrec("run", "--run", run_copy, *flags)
    assert result.returncode == 0, result.stderr
    tokenize, model = run_copy / "tokenize", run_copy / "model"
    codes = pl.read_parquet(tokenize / "item_codes.parquet")
    assert codes["item_id"].equals(plain["item_id"])
    assert not codes["codes"].equals(plain["codes"])
    files = {name: (tokenize / name).read_bytes() for name in ("quantizer.safetensors", "item_codes.parquet")}
    shutil.rmtree(tokenize)
    assert llmrec("tokenize", "--run", run_copy, *flags).returncode == 0
    assert files == {name: (tokenize / name).read_bytes() for name in files}, "made again, it is the same"

    recommender = Recommender.from_pretrained(model)
    items = recommender.item_tokenizer
    vectors = Embeddings.load(run_copy / "embed", recommender.catalog.ids).vectors
    assert (items.dims, items.quantizer.dims) == (vectors.shape[1], vectors.shape[1] + 16)
    np.testing.assert_array_equal(items.quantizer.encode(items.inputs(items.item_ids, vectors)), items.codes[:, :3])
    history = recommender.catalog.ids[:3]
    expected = [answer.item_id for answer in recommender.recommend(history, k=3)]
    asked = llmrec("recommend", "--model", model, "--history", *history, "--k", "3", "--json")
    assert [item["item_id"] for item in json.loads(asked.stdout)["items"]] == expected
    assert llmrec("inspect", "--model", model, "--json").returncode == 0

    out = tmp_path / "features"
    measured = llmrec("export-features", "--run", run_copy, "--out", out, "--json")
    assert measured.returncode == 0, measured.stderr
    assert pl.read_parquet(out / "items.parquet")["codes"].to_list() == items.codes[:, :3].tolist()

    # By the command, and by a server: what `with_items` gives.
    catalog("new").frame.write_parquet(tmp_path / "items.parquet")
    grown = llmrec("add-items", "--model", model, "--items", tmp_path / "items.parquet")
    assert grown.returncode == 0, grown.stderr
    live = LiveBundle(lambda: Recommender.from_pretrained(model), model)
    live.open()
    by_text, by_vector = AddItems(catalog("live"), None, "refuse"), AddItems(catalog("given"), vectors[:1], "refuse")
    assert [each.added for each in live.work([by_text, by_vector])] == [["live"], ["given"]]
    larger = Recommender.from_pretrained(model).item_tokenizer
    text = items.embed(recommender.store._with_our_fields(catalog("new"), np.array([-1])))
    added = items.with_items(["new", "live", "given"], np.concatenate([text, text, vectors[:1]]))
    assert larger.item_ids == added.item_ids
    np.testing.assert_array_equal(larger.codes, added.codes)
    assert larger.joined.known.tolist() == [*items.joined.known, False, False, False]

    again = ["--base.model", str(model)]
    line = fails("train", "--run", tmp_path / "other", *tiny_flags, *SMALL, *again)
    assert "--tokenize.collaborative 0:" in line
    assert line.endswith("with tokenize.collaborative 16; set it to 16, or name another base model.")
    further = llmrec("train", "--run", tmp_path / "further", *flags, *again)
    assert further.returncode == 0, further.stderr
    kept = Recommender.from_pretrained(tmp_path / "further" / "train" / "bundle").item_tokenizer
    np.testing.assert_array_equal(kept.codes, items.codes)
    np.testing.assert_array_equal(kept.joined.behaviour, items.joined.behaviour)
    figures = [json.loads((run / "tokenize" / "report.json").read_text()) for run in (run_copy, tmp_path / "further")]
    assert figures[0]["distortion"] == figures[1]["distortion"], "its report is of the same vectors"


def test_compared_with_other_tokenizers(llmrec: Program, run_copy: Path, tiny_flags: list[str]) -> None:
    result = llmrec("compare-tokenizers", "--run", run_copy, *tiny_flags, "--methods", "rq-kmeans,collaborative")
    assert result.returncode == 0, result.stderr
    methods = json.loads((run_copy / "compare" / "comparison.json").read_text())["methods"]
    assert methods["collaborative"]["tokenize"]["collaborative"] == 64
    hits = {name: entry["runs"][0]["report"]["emb_hr@20"]["raw"] for name, entry in methods.items()}
    assert hits["collaborative"] > hits["rq-kmeans"], "items that are taken together are nearer"
