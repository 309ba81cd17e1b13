"""The files of a Space. It has not been run on the Hub here: these tests read what a Space is made of."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import SpaceCardData

from llmrec.cli import serve
from llmrec.cli.main import main
from llmrec.errors import UserError
from llmrec.recommender import bundle, hub
from llmrec.recommender.recommender import Recommender
from llmrec.serve.space import export_space

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """What looks like a wheel of llmrec."""
    path = tmp_path / "llmrec-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("llmrec/cli/main.py", "")
    return path


def fields(folder: Path) -> dict[str, object]:
    """The fields of the Space's README.md, as the Hub's client reads them."""
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    return SpaceCardData(**yaml.safe_load(front)).to_dict()


def instructions(folder: Path) -> list[list[str]]:
    """The lines of the Dockerfile that do something, each as its word and the rest."""
    lines = [line for line in (folder / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [line.split(" ", 1) for line in lines]


def test_a_space_for_a_bundle_on_the_hub(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = export_space(f"org/shop@{COMMIT}", wheel, out)
    assert {path.name for path in out.iterdir()} == {"README.md", "Dockerfile", wheel.name}
    assert fields(out) == {
        "title": "shop",
        "emoji": "\U0001f6d2",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "docker",
        "app_port": 7860,
        "pinned": False,
        "models": ["org/shop"],
    }
    steps = instructions(out)
    assert steps[0] == ["FROM", "python:3.11-slim"]
    assert ["COPY", f"{wheel.name} ./"] in steps
    assert ["RUN", f'pip install --no-cache-dir --user "./{wheel.name}[serve]"'] in steps
    assert ["EXPOSE", "7860"] in steps
    assert steps[-1][0] == "CMD"
    command = json.loads(steps[-1][1])
    assert command[:4] == ["llmrec", "serve", "--model", f"org/shop@{COMMIT}"]
    assert command[4:] == ["--host", "0.0.0.0", "--port", "7860"]
    assert written == {"target": "space", "model": f"org/shop@{COMMIT}", "command": " ".join(command)}
    assert (out / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_server_takes_the_command(wheel: Path, tmp_path: Path) -> None:
    """`llmrec serve` reads the flags of the Dockerfile."""
    export_space("org/shop@v2", wheel, tmp_path / "out")
    program, command, *flags = json.loads(instructions(tmp_path / "out")[-1][1])
    options = serve._parser().parse_args(flags)
    assert (program, command) == ("llmrec", "serve")
    assert (options.model, options.host, options.port) == ("org/shop@v2", "0.0.0.0", 7860)


def test_a_bundle_without_a_revision_gets_todays(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "commit_of", lambda name: COMMIT)
    assert export_space("org/shop", wheel, tmp_path / "out")["model"] == f"org/shop@{COMMIT}"


def test_a_space_that_contains_the_bundle(recommender: Recommender, wheel: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "bundle", tmp_path / "out"
    recommender.save_pretrained(model)
    (model / "secret.env").write_text("TOKEN=1")
    export_space(str(model), wheel, out)
    assert {path.name for path in out.iterdir()} == {"README.md", "Dockerfile", wheel.name, "model"}
    copied = {path.relative_to(out / "model").as_posix() for path in (out / "model").rglob("*") if path.is_file()}
    assert copied == set(hub.published_files(model))
    assert ["COPY", "model model"] in instructions(out), "as root, so that visitors can't change it"
    assert json.loads(instructions(out)[-1][1])[2:4] == ["--model", "model"]
    assert "models" not in fields(out)
    bundle.read_header(out / "model")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere", "no such folder, and not a Hub id"),
        ("a/b/c", "no such folder, and not a Hub id"),
        ('org/shop@v"]\nRUN x', "is not the name of a revision"),
        ("org/shop@", "is not the name of a revision"),
    ],
)
def test_models_that_no_space_can_serve(model: str, words: str, wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        export_space(model, wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `llmrec export` says, which ends with 2, in its one line."""

    def run(*words: str | Path) -> str:
        flags = ["export", "--model", "org/shop@v1", "--out", tmp_path / "out", *words]
        assert main(list(map(str, flags))) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return run


def test_mistakes_are_one_line(refused: Callable[..., str], wheel: Path, tmp_path: Path) -> None:
    space = ("--target", "space")
    assert "--target space needs --wheel FILE" in refused(*space)
    assert "can't be read as a wheel" in refused(*space, "--wheel", tmp_path / "none.whl")
    with zipfile.ZipFile(tmp_path / "other-1.0-py3-none-any.whl", "w") as file:
        file.writestr("other.py", "")
    assert "not a wheel of llmrec" in refused(*space, "--wheel", tmp_path / "other-1.0-py3-none-any.whl")
    assert "--dtype bfloat16" in refused(*space, "--wheel", wheel, "--dtype", "bfloat16")
    assert "--trust-remote-code" in refused(*space, "--wheel", wheel, "--trust-remote-code")
    assert f"--wheel {wheel}: is for --target space" in refused("--target", "vllm", "--wheel", wheel)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "exists already" in refused(*space, "--wheel", wheel)


def test_the_command_line_says_what_to_do(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["export", "--model", "org/shop@v1", "--target", "space", "--wheel", str(wheel), "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A Space for org/shop@v1 in {out}; publish it with",
        f"hf upload org/name {out} . --repo-type space",
    ]
