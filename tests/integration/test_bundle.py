"""The bundle is an ordinary checkpoint: it loads without llmrec, and ranks after loading as before saving."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tolerances import SUMS, assert_same_ranking

from llmrec import ItemTokenizer, Recommender, TrainConfig
from llmrec.cli.main import main
from llmrec.data import Split
from llmrec.data.prepare import load
from llmrec.decode.config import DecodeConfig
from llmrec.model.config import AdapterConfig
from llmrec.recommender.bundle import readable
from llmrec.recommender.request import Recommendation

Program = Callable[..., subprocess.CompletedProcess[str]]

WITHOUT_LLMREC = """
import sys
sys.modules["llmrec"] = None  # from here on `import llmrec` fails
import numpy as np
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

kind, folder, base, text, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
if kind == "model":
    model = AutoModelForCausalLM.from_pretrained(folder)
elif kind == "auto-peft":
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
else:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model = PeftModel.from_pretrained(model, folder)
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
with torch.no_grad():
    np.save(target, model.eval()(inputs).logits.numpy())
"""


@pytest.fixture(scope="module")
def adapter_run(
    llmrec: Program, tiny_run: Path, tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose bundle is an adapter; what stands before the training is taken from the tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    shutil.copytree(tiny_run, folder)
    result = llmrec("run", "--run", folder, *tiny_flags, "--train.method", "lora", "--train.lora.merge", "false")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("kind", ["model", "peft", "auto-peft"])
def test_loads_without_llmrec(
    kind: str, tiny_run: Path, adapter_run: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    run = tiny_run if kind == "model" else adapter_run
    recommender = Recommender.from_pretrained(run / "model")
    codes = recommender.item_tokenizer.codes[:2]
    text = "A customer bought " + "".join(recommender.renderer.vocabulary.text(row) for row in codes)
    command = [sys.executable, "-c", WITHOUT_LLMREC, kind, run / "model", run / "base", text, tmp_path / "logits.npy"]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path, env=environment)
    theirs = np.load(tmp_path / "logits.npy")
    inputs = recommender.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        ours = recommender.model.eval()(inputs).logits.numpy()
    assert ours.shape[1] <= 3 + codes.size + len("A customer bought ")
    np.testing.assert_allclose(theirs, ours, atol=SUMS)


def test_adapter_is_small(adapter_run: Path) -> None:
    """LoRA matrices and the rows of the item tokens; no whole embedding matrix."""
    recommender = Recommender.from_pretrained(adapter_run / "model")
    tokens = recommender.renderer.vocabulary.all_ids
    shapes = {}
    with safe_open(adapter_run / "model" / "adapter_model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            shapes[name] = tuple(file.get_slice(name).get_shape())
    rows = {name: shape for name, shape in shapes.items() if "lora_" not in name}
    assert list(rows.values()) == [(len(tokens), 64)]
    for name, shape in shapes.items():
        if name not in rows:
            assert AdapterConfig.rank in shape, (name, shape)
    assert not (adapter_run / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("run", ["tiny_run", "adapter_run"])
def test_only_plain_formats(run: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(run) / "model"
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".yaml", ".parquet", ".md", ".jinja", ".txt"}


@pytest.fixture
def fitted(tiny_run: Path) -> Callable[[TrainConfig], Recommender]:
    """A recommender fitted on the tiny run's data, in this process."""

    def fit(train: TrainConfig) -> Recommender:
        prepared = load(tiny_run / "data")
        recommender = Recommender.from_base(
            tiny_run / "base",
            ItemTokenizer.load(tiny_run / "tokenize"),
            prepared.catalog,
            decode_config=DecodeConfig(beams=10, dtype="float32"),
        )
        return recommender.fit(prepared.split.train, train=train)

    return fit


def answers(recommender: Recommender, split: Split) -> list[list[Recommendation]]:
    """For three histories, a sentence, and both."""
    users = split.train.frame.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    found = [recommender.recommend(history=history) for history in users[:3]]
    found.append(recommender.recommend(prompt="a warm sleeping bag"))
    found.append(recommender.recommend(history=users[3], prompt="a warm sleeping bag"))
    return found


def assert_close(before: list[list[Recommendation]], after: list[list[Recommendation]]) -> None:
    """The same items in the same order but for ties; the scores may differ in the last bits."""
    for one, other in zip(before, after, strict=True):
        pairs = [([item.item_id for item in found], [item.score for item in found]) for found in (one, other)]
        assert_same_ranking(*pairs[0], *pairs[1])


@pytest.mark.parametrize("kind", ["full", "adapter", "merged"])
def test_rankings_survive_saving(
    kind: str, fitted: Callable[[TrainConfig], Recommender], tiny_run: Path, tmp_path: Path
) -> None:
    split = load(tiny_run / "data").split
    recommender = fitted(TrainConfig(method="full" if kind == "full" else "lora", epochs=1))
    before = answers(recommender, split)
    assert all(len(found) == 10 for found in before)
    if kind == "merged":
        unmerged, before = before, answers(recommender.merge(), split)
        assert_close(unmerged, before)
    recommender.save_pretrained(tmp_path / "model")
    weights = "adapter_model" if kind == "adapter" else "model"
    assert (tmp_path / "model" / f"{weights}.safetensors").exists()
    loaded = Recommender.from_pretrained(tmp_path / "model", recommender.decode_config)
    assert answers(loaded, split) == before


@pytest.mark.parametrize("run", ["tiny_run", "adapter_run"])
def test_inspect_says_what_takes_the_room(
    run: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(run) / "model"
    capsys.readouterr()
    assert main(["inspect", "--model", str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    found = content["bytes"]
    whole = run == "tiny_run"
    assert (
        found["weights" if whole else "adapter"] == content["files"][f"{'' if whole else 'adapter_'}model.safetensors"]
    )
    assert found["item_token_rows"] == sum(content["bundle"]["level_sizes"]) * 64 * 4
    assert found["total"] == sum(content["files"].values()) - content["files"]["manifest.json"]
    assert main(["inspect", "--model", str(folder)]) == 0
    assert f"total: {readable(found['total'])}" in capsys.readouterr().out
    assert (
        f"{readable(found['item_token_rows'])} of it the rows of the item tokens" in (folder / "README.md").read_text()
    )


def test_an_adapter_of_a_run_is_refused_where_nobody_else_has_its_base(
    adapter_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["push", "--model", str(adapter_run / "model"), "--repo-id", "org/name"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "is not a model of the Hub; train with --train.lora.merge true, or from a --base.model of the Hub" in line
