"""Configuration: every shipped YAML is valid, every mistake is one line, every field is explained."""

import dataclasses
import re
from pathlib import Path

import pytest
from docstring_parser import parse_from_object

from llmrec.cli.command import config_parser, parse
from llmrec.cli.main import main
from llmrec.config import SET_FIRST, Config
from llmrec.resources import resource_folder

CONFIGS = sorted(resource_folder("configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if path.parent.name != "accelerate"]  # of its launcher; have a test of their own
SECTIONS = {section.name: section.default_factory for section in dataclasses.fields(Config)}


def names(path: Path) -> str:
    return str(path.relative_to(resource_folder("configs")))


def test_there_are_configs() -> None:
    assert "quickstart.yaml" in map(names, CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_shipped_config_parses(path: Path) -> None:
    options = parse(config_parser("run", "all stages"), ["--config", str(path), "--run", "unused"])
    for name, kind in SECTIONS.items():
        assert isinstance(getattr(options, name), kind)


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_shipped_config_opens_with_its_command(path: Path) -> None:
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    command = next(line for line in header if line.startswith("# Command: llmrec "))
    assert f"--config configs/{names(path)} " in command


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that must end with 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trian.epochs", "3"], ["'trian.epochs'", "did you mean 'train.epochs'"]),
        (["--train.epoch", "3"], ["'train.epoch'", "did you mean 'train.epochs'"]),
        (["--tokenize.rq_vae.hiden", "3"], ["'tokenize.rq_vae.hiden'", "did you mean 'tokenize.rq_vae.hidden'"]),
        (["--train.epochs", "many"], ["--train.epochs", "int", "many"]),
        (["--train.epochs"], ["--train.epochs", "expected one argument"]),
        (["--train.lora.merge", "perhaps"], ["--train.lora.merge", "bool", "perhaps"]),
        (["--embed.encoder", "tfidf"], ["--embed.encoder", "'tfidf-svd'", "tfidf"]),
        (["--tasks.mixture", "{sequentiel: 1}"], ["--tasks.mixture", "sequential", "sequentiel"]),
        (["--data.synthetic_items", "0"], ["--data.synthetic_items 0", "at least 1"]),
        (["--data.format", "table"], ["--data.path is missing"]),
        (["--base.heads", "3"], ["--base.heads 3", "even"]),
        (["--tokenize.rq_vae.latent", "0"], ["--tokenize.rq_vae.latent", "expected at least 1"]),
        (["--train", "3"], ["train", "3"]),
        (["--config", "nowhere.yaml"], ["--config nowhere.yaml", "no such file"]),
        (["stray"], ["stray"]),
    ],
)
def test_mistake_on_the_command_line(
    arguments: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(["run", "--run", str(tmp_path / "run"), *arguments], capsys)
    for part in said:
        assert part in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trian:\n  epochs: 3\n", ["'trian", "did you mean 'train"]),
        ("train:\n  epoch: 3\n", ["'train.epoch'", "did you mean 'train.epochs'"]),
        ("tokenize:\n  rq_vae:\n    hiden: [3]\n", ["'tokenize.rq_vae.hiden'", "'tokenize.rq_vae.hidden'"]),
        ("train:\n  epochs: many\n", ["--train.epochs", "int", "many"]),
        ("embed:\n  encoder: tfidf\n", ["--embed.encoder", "'tfidf-svd'", "tfidf"]),
        ("decode:\n  beams: 0\n", ["--decode.beams 0", "at least 1"]),
        ("train: [unclosed\n", ["config.yaml", "line 2"]),
        ("train: 3\n", ["config.yaml", "train", "3"]),
        ("just words\n", ["config.yaml", "just words"]),
        ("# nothing\n", ["config.yaml", "expected sections"]),
        ("trian: 3\n", ["config.yaml", "trian"]),
    ],
)
def test_mistake_in_yaml(text: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    line = error_of(["run", "--config", str(path), "--run", str(tmp_path / "run")], capsys)
    for part in said:
        assert part in line
    assert not (tmp_path / "run").exists()


def test_missing_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--run DIR is missing" in error_of(["run"], capsys)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean train?" in error_of(["trian"], capsys)


def test_command_line_beats_yaml_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train:\n  epochs: 3\n  warmup: 0.5\n", encoding="utf-8")
    parser = config_parser("run", "all stages")
    file, flag = ["--config", str(path)], ["--run", "unused", "--train.epochs", "4"]
    for arguments in (file + flag, flag + file, [f"--config={path}", *flag], [*flag, f"--config={path}"]):
        options = parse(parser, arguments)
        assert (options.train.epochs, options.train.warmup, options.train.accumulation) == (4, 0.5, 1)


def fields_of(kind: type, prefix: str) -> list[tuple[str, str]]:
    """(flag, meaning) of every field, nested sections opened; fails for a field without a docstring."""
    kinds = [base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base)]
    meanings = {param.arg_name: param.description for base in kinds for param in parse_from_object(base).params}
    found: list[tuple[str, str]] = []
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(item.default_factory):
            found += fields_of(item.default_factory, f"{prefix}.{item.name}")
        else:
            assert meanings.get(item.name), f"{kind.__name__}.{item.name} has no docstring"
            found.append((f"--{prefix}.{item.name}", meanings[item.name]))
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_help_explains_every_field(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "--help-all"])
    assert end.value.code == 0
    printed = re.sub(r"\s+", "", capsys.readouterr().out)
    for flag, meaning in fields_of(SECTIONS[section], section):
        assert flag in printed
        assert re.sub(r"\s+", "", meaning) in printed, f"{flag} is not explained"


def test_help_shows_the_fields_that_people_set_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    every = {flag for section, kind in SECTIONS.items() for flag, _ in fields_of(kind, section)}
    shown = set(re.findall(r"^  (--[a-z]+\.[\w.]+)", printed, re.MULTILINE))
    assert shown == {f"--{name}" for name in SET_FIRST} <= every
    assert len(shown) == 20
    assert f"{len(every) - 20} more fields, with their meaning: llmrec run --help-all" in printed
    for flag in ("--run", "--config", "--json", "--verify", "--help-all"):
        assert f"  {flag}" in printed
