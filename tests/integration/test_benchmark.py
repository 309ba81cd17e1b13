"""`llmrec benchmark` as a user runs it: contenders, seeds, one of them again, and with the language model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXPERTS = ["--experts.models", "[decayed-markov,smoothed-markov,text,popularity]"]
SHOP = {"data.synthetic_items": 200, "data.synthetic_users": 300, "data.user_core": 1, "data.item_core": 1}


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def words() -> list[str]:
    return [
        "--config",
        "quickstart.yaml",
        *(word for name, value in SHOP.items() for word in (f"--{name}", str(value))),
    ]


@pytest.fixture(scope="module")
def folder(llmrec: Callable, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of baselines, a trained one among them, and of experts."""
    run = tmp_path_factory.mktemp("benchmark") / "run"
    baselines = ["--evaluate.baselines", "[popularity,markov,decayed-markov,sasrec]", "--evaluate.sasrec.epochs", "1"]
    done = llmrec("benchmark", *words, "--run", run, *EXPERTS, *baselines, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert "experts - " in done.stdout
    return run


def stamps(run: Path) -> dict[str, bytes]:
    """The manifests of all contenders, by their folders."""
    found = run.glob("benchmark/*/seed-*/*/manifest.json")
    return {str(path.parent.relative_to(run / "benchmark")): path.read_bytes() for path in found}


def content(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "benchmark" / "benchmark.json").read_text()))


def test_each_contender_has_its_runs(folder: Path) -> None:
    found = content(folder)
    assert found["seeds"] == 2
    # decayed-markov is an expert too, so it is fitted once, with them.
    assert {path.name for path in (folder / "benchmark").iterdir() if path.is_dir()} == {
        *("popularity", "markov", "sasrec", "experts")
    }
    systems = found["systems"]
    assert {name: (entry["family"], len(entry["runs"])) for name, entry in systems.items()} == {
        "popularity": ("untrained", 1),
        "markov": ("untrained", 1),
        "decayed-markov": ("untrained", 2),
        "sasrec": ("collaborative", 2),
        "experts": ("fused, no language model", 2),
    }
    first, second = (run["seen_left_out"]["all"]["ndcg@10"] for run in systems["sasrec"]["runs"])
    assert first != second
    assert systems["sasrec"]["mean"]["ndcg@10"] == pytest.approx((first + second) / 2)
    assert systems["sasrec"]["std"]["ndcg@10"] == pytest.approx(abs(first - second) / 2**0.5)
    experts = systems["experts"]["runs"][0]
    assert experts["seen_left_out"]["all"]["recall@10"] > experts["seen_kept"]["all"]["recall@10"] > 0.2
    assert 0 < systems["popularity"]["runs"][0]["lists"]["coverage@10"] < 0.2 < experts["lists"]["coverage@10"]
    assert set(experts["worth"]["recall@10"]) == {"decayed-markov", "smoothed-markov", "text", "popularity"}
    assert all(run["peak_memory_gib"] > 0 for entry in systems.values() for run in entry["runs"])
    paired = found["paired"]["recall@10"]
    assert list(paired["systems"]) == ["experts"]
    gain = systems["experts"]["mean"]["recall@10"] - systems[paired["best"]]["mean"]["recall@10"]
    assert paired["systems"]["experts"]["difference"] == pytest.approx(gain)


def test_the_document_and_the_picture(folder: Path) -> None:
    text = (folder / "benchmark" / "benchmark.md").read_text()
    for part in ("## Lists and cost", "## Paired differences", "## What each expert is worth", "| sasrec | collabor"):
        assert part in text
    assert (folder / "benchmark" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_a_contender_is_measured_again_alone(folder: Path, llmrec: Callable, words: list[str]) -> None:
    before, figures = stamps(folder), content(folder)
    baselines = ["--evaluate.baselines", "[popularity,markov,decayed-markov,sasrec]", "--evaluate.sasrec.epochs", "1"]
    command = ["benchmark", *words, "--run", folder, *EXPERTS, *baselines, "--seeds", "2"]
    assert llmrec(*command, "--json").returncode == 0
    assert stamps(folder) == before
    assert llmrec(*command, "--redo", "sasrec").returncode == 0
    after = stamps(folder)
    assert {name.split("/")[0] for name in before if after[name] != before[name]} == {"sasrec"}
    again = content(folder)
    for name, entry in figures["systems"].items():
        assert again["systems"][name]["mean"] == entry["mean"], "the same seeds give the same figures"
    done = llmrec(*command, "--redo", "bsarec")
    assert done.returncode == 2
    assert "--redo bsarec: no such contender; known are popularity, markov, sasrec, experts" in done.stderr


def test_another_baseline_leaves_the_others_as_they_are(folder: Path, llmrec: Callable, words: list[str]) -> None:
    before = stamps(folder)
    more = ["--evaluate.baselines", "[popularity,markov,decayed-markov,item-knn]"]
    done = llmrec("benchmark", *words, "--run", folder, *EXPERTS, *more, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["systems"]) == {"popularity", "markov", "decayed-markov", "item-knn", "experts"}
    after = stamps(folder)
    assert {name for name in before if after[name] != before[name]} == set()


def test_the_language_model_alone_and_with_the_experts(folder: Path, llmrec: Callable, words: list[str]) -> None:
    sizes = {"base.hidden_size": 64, "base.layers": 2, "base.heads": 2, "base.vocabulary": 800, "tokenize.codes": 32}
    training = {"train.epochs": 1, "train.evaluations": 1, "train.dense.weight": 1, "decode.beams": 10}
    training |= {"train.distill.weight": 0.5, "train.distill.dense_weight": 0.5}
    words = [*words, *EXPERTS, *flags(sizes | training), "--evaluate.baselines", "[markov]"]
    done = llmrec("benchmark", *words, "--run", folder, "--language-model", "--evaluate.rankings", "[beam]", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    families = {name: entry["family"] for name, entry in found["systems"].items()}
    assert families == {
        "markov": "untrained",
        "language-model": "language model",
        "language-model, beam": "language model",
        "experts": "fused, no language model",
        "llmrec": "everything fused",
    }
    recall = {name: entry["mean"]["recall@10"] for name, entry in found["systems"].items()}
    assert recall["llmrec"] > recall["language-model, beam"]
    worth = found["paired"]["recall@10"]["experts"]
    assert worth["difference"] == pytest.approx(recall["llmrec"] - recall["experts"])
    shared = folder / "benchmark" / "llmrec" / "seed-0"
    links = {name: (shared / name).is_symlink() for name in ("train", "experts", "teacher", "model")}
    assert links == {"train": True, "experts": True, "teacher": True, "model": False}, "nothing is trained twice"
    assert (shared / "model" / "experts.json").exists()
    alone = folder / "benchmark" / "language-model" / "seed-0"
    assert not (alone / "model" / "experts.json").exists(), "what was taught by experts ranks without them"
    assert not (shared / "train").readlink().is_absolute(), "a copy of the run leads to itself"


def test_nothing_to_measure_is_one_line(llmrec: Callable, words: list[str], tmp_path: Path) -> None:
    for asked, message in (
        (["--experts.models", "[]", "--evaluate.baselines", "[]"], "--evaluate.baselines []: nothing to measure"),
        (["--seeds", "0"], "--seeds 0: expected at least 1"),
    ):
        done = llmrec("benchmark", *words, "--run", tmp_path / "run", *asked)
        assert done.returncode == 2
        assert message in done.stderr
