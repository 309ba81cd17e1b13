"""Hundreds of wrong command lines: exit code 2, one line on stderr, nothing on stdout, nothing written."""

import itertools
import os
from pathlib import Path

import pytest

from llmrec.cli.main import COMMANDS, main

BUNDLE = "no-such-bundle"
WRONG = ["", " ", "-1", "nan", "1e400", "10" * 30, "word", "\udcff\udc80", "a\x1b[31mb\nc\x07", "/dev/null", "x" * 5000]
"""Values, one of which is wrong for whatever a flag means; none makes a command succeed, as there is no bundle."""
FLAGS = {
    "recommend": ["--k", "--history", "--prompt", "--exclude", "--allow", "--where", "--boost", "--max-per", "--beams"],
    "explain": ["--item", "--prefix", "--history", "--device"],
    "discover": ["--history", "--histories", "--prompt", "--k", "--neighbours", "--beams"],
    "inspect": [],
    "add-items": ["--items", "--remove", "--out", "--encoder", "--item-column", "--if-exists"],
    "push": ["--repo-id", "--revision", "--message"],
    "serve": ["--host", "--port", "--batch-size", "--batch-wait", "--queue", "--deadline", "--rate", "--encoder"],
}
FLAGS["recommend"] += ["--max-per-code", "--ranking", "--cold-bonus", "--phrasings", "--device"]
FIELDS = [
    "data.path",
    "data.format",
    "data.user_core",
    "data.cold.share",
    "embed.dim",
    "tokenize.codes",
    "tokenize.levels",
    "tasks.mixture",
    "train.epochs",
    "train.batch_size",
    "train.learning_rate",
    "train.lora.rank",
    "decode.beams",
    "decode.ranking",
    "evaluate.k",
    "base.heads",
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must end with 2."""
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse's --help and its like
        raise AssertionError(f"{arguments}: exit {end.code}") from None
    except Exception as error:
        raise AssertionError(f"{arguments}: {type(error).__name__}: {error}") from error
    captured = capsys.readouterr()
    assert code == 2, arguments
    assert captured.out == "", arguments
    lines = captured.err.split("\n")
    assert len(lines) == 2, (arguments, captured.err)
    assert lines[0].startswith("llmrec: "), (arguments, captured.err)
    assert lines[0].isprintable(), (arguments, lines[0])
    return lines[0]


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    yield
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_with_every_wrong_value(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in itertools.product([*FLAGS[command], "--model"], WRONG):
        model = [] if flag == "--model" else ["--model", BUNDLE]
        enough = ["--prompt", "soap"] if command in ("recommend", "discover") and flag != "--prompt" else []
        enough += ["--item", "i1"] if command == "explain" and flag == "--device" else []
        enough += ["--items", "new.csv"] if command == "add-items" and flag not in ("--items", "--remove") else []
        enough += ["--repo-id", "org/name"] if command == "push" and flag != "--repo-id" else []
        refused([command, *model, *enough, flag, value], capsys)
        refused([command, *model, *enough, f"{flag}={value}"], capsys)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_with_every_wrong_value(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ["", "nan", "-7", "[", "{a: 1}", "word", "\udcff", "a\x1b[31m\nb", "2024-13-45", "[[1]]"]:
        if field == "data.path":
            value = f"nowhere/{value}"
        arguments = ["--data.format", "table"] if field == "data.path" else []
        line = refused(["run", "--run", "run", *arguments, f"--{field}", value], capsys)
        assert field.split(".")[0] in line, line
        Path("run").rmdir() if Path("run").exists() and not list(Path("run").iterdir()) else None


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("tasks",)])
def test_flags_that_there_are_not(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--nonsense"], ["--nonsense", "3"], ["stray"], ["--json", "--json=maybe"], ["\udcff"], ["--"]):
        refused([command, *words], capsys)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "train:\n\tepochs: 3",
        "train: {epochs: 3, epochs: [",
        "train:\n  epochs: 2024-13-45",
        "train:\n  epochs: 2024-01-01",
        "train:\n  ? [a]\n  : 3",
        "1: {2: 3}",
        "[" * 3000,
        "a: &a [*a]",
        "- train",
        "train: *nobody",
        "train: !!python/object/apply:os.system [ls]",
        "\x00",
        "train:\n  epochs: !!binary aGk=",
    ],
)
def test_configuration_files(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path.parent / f"{tmp_path.name}.yaml"
    path.write_text(text)
    assert "--config" in refused(["run", "--run", "run", "--config", str(path)], capsys) or "train" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3", "epochs: found 3, expected one of the sections data, embed, tokenize,"),
        ("train: 3", "train: found 3, expected fields below it."),
        ("", "found nothing, expected sections such as `train:`."),
    ],
)
def test_what_is_no_section(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path.parent / f"{tmp_path.name}.yaml"
    path.write_text(text)
    assert said in refused(["run", "--run", "run", "--config", str(path)], capsys)


def test_configurations_that_are_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path.parent / f"{tmp_path.name}.pipe"
    os.mkfifo(pipe)
    noise = tmp_path.parent / f"{tmp_path.name}.noise"
    noise.write_bytes(bytes(range(256)))
    for name in (pipe, noise, "/dev/zero", tmp_path, "", "nowhere.yaml", "x" * 300, "a\x00b"):
        refused(["run", "--run", "run", "--config", str(name)], capsys)


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "can't listen there" in refused(["serve", "--model", BUNDLE, "--port", port], capsys)
    for port in ("99999", "-1", "65536"):
        assert f"--port {port}: expected 0 to 65535" in refused(["serve", "--model", BUNDLE, "--port", port], capsys)


def test_stopping_by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmrec.recommender.bundle.locate", stop)
    assert main(["recommend", "--model", BUNDLE, "--prompt", "soap"]) == 130
    assert capsys.readouterr().err == "llmrec: stopped\n"
    monkeypatch.setattr("llmrec.cli.stages.open_run", stop)
    assert main(["run", "--run", "run"]) == 130
    assert capsys.readouterr().err == "llmrec: stopped; the same command goes on from here\n"
