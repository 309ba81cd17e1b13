"""The report of a run: what it says, what it leaves out, and that it is one safe, accessible page."""

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from llmrec.cli.command import config_parser, parse
from llmrec.cli.main import main
from llmrec.cli.stages import configuration
from llmrec.errors import UserError
from llmrec.pipeline import FOLDERS
from llmrec.run_report import PAGE, next_steps, run_report, write_run_report
from llmrec.rundir import RunDirectory

RELEASED = Path(__file__).parents[1] / "data" / "released" / "run"
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page; fails on elements that are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.all("h2")]


def check(page: Page) -> None:
    """One self-contained, accessible page: no script, nothing from elsewhere, names for all that is seen."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    attributes = [pair for _, found in page.elements for pair in found.items()]
    assert all(value.startswith(("#", "data:image/")) for name, value in attributes if name in ("src", "href"))
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert page.all("html") == [{"lang": "en"}]
    assert any(found.get("name") == "viewport" for found in page.all("meta"))
    assert any(found.get("content", "").startswith("default-src 'none'") for found in page.all("meta"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(len(found.get("alt", "")) > 20 for found in page.all("img"))
    assert all(found.get("scope") in ("col", "row") for found in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found["href"] for found in page.all("a")} == {f"#{name}" for name in page.sections}
    assert {found["aria-labelledby"] for found in page.all("section") if "aria-labelledby" in found} <= set(ids)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a run that an earlier version released."""
    return Path(shutil.copytree(RELEASED, tmp_path / "shop run"))


def test_the_page_has_what_the_run_has(run: Path) -> None:
    page = Page(run_report(run, FOLDERS))
    check(page)
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    for name, slices in metrics["systems"].items():
        assert name in page.text
        assert f"{slices['all']['recall@10']:.4f}" in page.text
    manifest = json.loads((run / "train" / "manifest.json").read_text())
    assert f"{manifest['seconds']:,.1f}" in page.text
    assert f"{manifest['peak_memory_gib']:.2f}" in page.text
    first = json.loads((run / "train" / "log.jsonl").read_text().splitlines()[0])
    assert f"{first['loss']:.4f}" in page.text
    steps = json.loads((run / "data" / "split.json").read_text())["steps"]
    assert f"{steps[-1]['interactions']:,}" in page.text
    assert "shop run" in page.text
    assert "llmrec serve --model" in page.text
    expected = ["results", "slices", "training", "fusion", "codes", "data", "settings", "stages", "files", "next"]
    assert page.sections == expected
    assert run_report(run, FOLDERS) == run_report(run, FOLDERS), "the same run has the same page"


def test_settings_that_differ_from_their_defaults(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["epochs"], config["decode"]["beams"] = 77, 20
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = run_report(run, FOLDERS)
    assert re.search(r'<th scope="row">train.epochs</th><td>77</td><td>[\d.]+</td>', text)
    assert "decode.beams" not in text


@pytest.mark.parametrize(
    ("kept", "sections"),
    [
        (["data"], ["data", "settings", "stages", "files", "next"]),
        (["data", "embed"], ["data", "settings", "stages", "files", "next"]),
        (["data", "embed", "tokenize"], ["codes", "data", "settings", "stages", "files", "next"]),
    ],
)
def test_what_a_run_lacks_is_left_out(kept: list[str], sections: list[str], tmp_path: Path) -> None:
    for name in kept:
        shutil.copytree(RELEASED / name, tmp_path / "run" / name)
    page = Page(run_report(tmp_path / "run", FOLDERS))
    check(page)
    assert page.sections == sections
    assert len(page.all("img")) == ("tokenize" in kept)
    assert "recall@10" not in page.text
    assert f"llmrec run --config {tmp_path / 'run' / 'config.yaml'}" in page.text


def test_what_is_out_of_date_is_left_out(run: Path) -> None:
    """The item tokenizer was made again, so the model and its evaluation are of another one."""
    manifest = json.loads((run / "tokenize" / "manifest.json").read_text())
    (run / "tokenize" / "manifest.json").write_text(json.dumps({**manifest, "key": "f" * 64}))
    page = Page(run_report(run, FOLDERS))
    assert page.sections == ["codes", "data", "settings", "stages", "files", "next"]
    assert "llmrec serve" not in page.text


def refine(run: Path) -> None:
    """Give the run two finished rounds of `refine`: copies of its tokenizer with fewer collisions, and other losses."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "refine": {"rounds": 2}}))
    stage = run / "refine"
    for number, name in ((1, "tokenize-1"), (2, "bundle/quantizer")):
        shutil.copytree(run / "tokenize", stage / name)
        report = json.loads((stage / name / "report.json").read_text())
        (stage / name / "report.json").write_text(json.dumps({**report, "collision_rate": number / 100}))
        (stage / f"round-{number}").mkdir()
        lines = [{"step": step, "loss": 70.0 + number - step} for step in (1, 2)]
        (stage / f"round-{number}" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = {"stage": "refine", "key": "0", "inputs": {}, "config": {"refine": {"rounds": 2}}}
    train = json.loads((run / "train" / "manifest.json").read_text())
    (stage / "manifest.json").write_text(json.dumps({**train, **made}))


def test_the_semantic_ids_are_those_of_the_last_round(run: Path) -> None:
    refine(run)
    page = Page(run_report(run, FOLDERS))
    check(page)
    assert "2.00% of the items share all their codes" in page.text
    text = run_report(run, FOLDERS)
    shares = re.findall(r'<th scope="row">(first|round \d)</th><td>[\d.]+%</td><td>([\d.]+)%</td>', text)
    assert [(name, float(share)) for name, share in shares][1:] == [("round 1", 1), ("round 2", 2)]
    assert shares[0][0] == "first"
    assert re.search(r"Training loss, round 2</th><td>71.0000</td><td>70.0000</td>", text)
    shutil.rmtree(run / "refine" / "tokenize-1")  # the user may delete it
    assert "round 1</th><td>1" not in run_report(run, FOLDERS)
    assert "2.00% of the items share all their codes" in run_report(run, FOLDERS)


def test_inspect_shows_each_tokenizer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refine(run)
    assert main(["inspect", "--run", str(run)]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^tokenize.*$", text, re.MULTILINE) == [
        "tokenize",
        "tokenize, refined in round 1",
        "tokenize, refined in round 2",
    ]
    assert main(["inspect", "--run", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: report["collision_rate"] for name, report in found["refine"].items()} == {"1": 0.01, "2": 0.02}
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "refine": {"rounds": 0}}))
    assert main(["inspect", "--run", str(run), "--json"]) == 0
    assert "refine" not in json.loads(capsys.readouterr().out)


def test_no_finished_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished stage there"):
        run_report(tmp_path, FOLDERS)


def test_text_of_others_stays_text(run: Path) -> None:
    """Titles, words, columns, names of steps and of the folder hold markup and commands of a terminal."""
    report = json.loads((run / "tokenize" / "report.json").read_text())
    entry = {"code": 0, "items": 3, "words": ["bath"], "typical": [{"item_id": "1", "title": f"{EVIL}\x1b[31m\u202e"}]}
    (run / "tokenize" / "report.json").write_text(json.dumps({**report, "words": [entry]}))
    split = json.loads((run / "data" / "split.json").read_text())
    split["steps"][0]["step"] = f"rows of {EVIL}"
    (run / "data" / "split.json").write_text(json.dumps(split))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["title_column"] = "<script>"  # the name that the field had then
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    evil = run.rename(run.with_name("<script>alert('run')<b>"))
    text = run_report(evil, FOLDERS)
    page = Page(text)
    check(page)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert page.text.count("<script>alert(1)</script>") == 2, "the title and the step"
    assert page.text.count("data.columns.title<script>title") == 1
    assert "<script>alert('run')<b>" in page.text


def steps(folder: Path, ours: float, theirs: float, losses: list[float], config: dict[str, object]) -> str:
    """The commands that a run with these figures suggests."""
    for name, content in {
        "model/manifest.json": {"stage": "model", "key": "0", "inputs": {}},
        "evaluate/manifest.json": {"stage": "evaluate", "key": "1", "inputs": {"model": "0"}},
        "evaluate/metrics.json": {
            "systems": {
                name: {"all": {"recall@10": value}} for name, value in {"llmrec": ours, "markov": theirs}.items()
            }
        },
        "config.yaml": config,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    lines = [json.dumps({"step": step, "eval_loss": loss}) for step, loss in enumerate(losses)]
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "log.jsonl").write_text("\n".join(lines))
    return "\n".join(f"{what}: {command}" for what, command in next_steps(folder, FOLDERS))


def test_next_steps_follow_from_the_figures(tmp_path: Path) -> None:
    calm = {"train": {"epochs": 4}, "evaluate": {"diagnose": 500}}
    text = steps(tmp_path / "a b", 0.2, 0.1, [3.0, 2.0, 2.5], calm)
    assert "llmrec recommend --model '" in text, "a path with a space is quoted"
    assert "--experts.models" not in text
    assert "--train.epochs" not in text
    assert "diagnose" not in text
    text = steps(tmp_path / "a b", 0.1, 0.2, [3.0, 2.5, 2.0], {"train": {"epochs": 4}})
    assert "markov ranks better here: fuse experts with it: llmrec run --config" in text
    assert "--train.epochs 8" in text
    assert "--evaluate.diagnose 500" in text
    commands = [line[line.index("llmrec run") :] for line in text.split("\n") if "llmrec run" in line]
    assert len(commands) == 3
    for command in commands:
        configuration(parse(config_parser("run", "all stages"), shlex.split(command)[2:]))
    fused = steps(tmp_path / "a b", 0.1, 0.2, [3.0], {"experts": {"models": ["markov"]}})
    assert "--experts.models" not in fused
    assert "--train.epochs" not in fused, "one value tells nothing"


def test_written_into_the_evaluation(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = RunDirectory(run)
    write_run_report(directory, FOLDERS)
    path = run / "evaluate" / PAGE
    assert path.read_text() == run_report(run, FOLDERS)
    written = path.stat().st_mtime_ns
    write_run_report(directory, FOLDERS)
    assert path.stat().st_mtime_ns == written, "nothing changed"


def test_a_file_of_the_user_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(RELEASED, run)
    manifest = json.loads((run / "evaluate" / "manifest.json").read_text())
    (run / "evaluate" / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    (run / "evaluate" / PAGE).write_text("mine")
    with caplog.at_level("WARNING", logger="llmrec"):
        write_run_report(RunDirectory(run), FOLDERS)
    assert (run / "evaluate" / PAGE).read_text() == "mine"
    assert "is not of llmrec, so it stays" in caplog.text


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that ends with 2 says, in its one line."""

    def run(*words: str | Path) -> str:
        assert main(list(map(str, words))) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return run


def test_inspect_writes_it_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["inspect", "--run", str(RELEASED), "--report", str(out)]) == 0
    assert capsys.readouterr().out == f"The report: {out}\n"
    check(Page(out.read_text()))
    assert "is there already" in refused("inspect", "--run", RELEASED, "--report", out)
    assert "reports are of runs" in refused("inspect", "--model", RELEASED / "model", "--report", tmp_path / "b.html")
    assert "can't be written" in refused("inspect", "--run", RELEASED, "--report", tmp_path / "no" / "b.html")
