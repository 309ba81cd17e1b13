"""`llmrec tasks show`: what training would see, on a run whose stages stand."""

import json
from pathlib import Path

import pytest

from llmrec.cli.main import main


def show(run: Path, *words: str) -> int:
    return main(["tasks", "show", "--config", str(run / "config.yaml"), "--run", str(run), *words])


def test_examples_as_json(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture = "{sequential: 1, chat: 0.5, shared-codes: 1}"
    recorded = (run_copy / "config.yaml").read_text()
    assert show(run_copy, "--tasks.mixture", mixture, "--examples", "3", "--json") == 0
    tasks = {task["task"]: task for task in json.loads(capsys.readouterr().out)["tasks"]}
    assert list(tasks) == ["sequential", "chat", "shared-codes"]
    assert (run_copy / "config.yaml").read_text() == recorded, "looking changes nothing"
    assert tasks["chat"]["examples_per_epoch"] == round(tasks["chat"]["rows"] / 2)
    for task in tasks.values():
        assert len(task["examples"]) == 3
        assert all(example["spans"][-1]["trained"] for example in task["examples"])


def test_examples_as_text(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(run_copy, "--task", "sequential, search ", "--examples", "1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert show(run_copy, "--task", "search", "--examples", "1") == 0
    head, example, end = capsys.readouterr().out.splitlines()
    assert head.startswith("search: ")
    assert example.endswith("\u27e7")
    assert example.count("\u27e6<a_") == 1
    assert end == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--task", "serach"], "--task serach: not in the mixture, which has sequential"),
        (["--examples", "0"], "--examples 0"),
        (["--tasks.mixture", "{preference: 1}"], "--intentions.source"),
        (["--tasks.mixture", "{juggling: 1}"], "unknown task 'juggling'"),
        (["--tasks.mixture", "{sequential:1}"], "write a colon and a space after each name: '{sequential: 1}'"),
    ],
)
def test_mistakes(run_copy: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(run_copy, *words) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_only_show_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list"]) == 2
    assert "tasks show" in capsys.readouterr().err
