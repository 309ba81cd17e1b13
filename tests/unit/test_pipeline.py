"""Which fields name files of the user, that none of them may lie where a stage is written, what makes a stage anew."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmrec import pipeline
from llmrec.config import INPUTS, Config, check_inputs
from llmrec.data import DataConfig
from llmrec.data.config import ColumnsConfig
from llmrec.embed.encoder import EmbedConfig
from llmrec.errors import UserError
from llmrec.intentions import IntentionsConfig
from llmrec.model.config import BaseConfig
from llmrec.preference.config import PreferenceConfig
from llmrec.quantize.config import TokenizeConfig
from llmrec.resources import resource_folder
from llmrec.rundir import LOCK, RunDirectory
from llmrec.stage import Stage
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig

NO_FILES = {
    "data.encoding",
    "data.columns.user",
    "data.columns.item",
    "data.columns.item_in_items",
    "data.columns.time",
    "data.columns.rating",
    "data.columns.review",
    "data.columns.title",
    "data.columns.image",
    "embed.template",
    "intentions.url",
    "intentions.model",
    "intentions.key_variable",
    "base.token_prefix",
    "decode.device",
}
"""Fields of free text that name neither a file nor a folder."""


def texts(section: Any, name: str) -> Iterator[str]:
    """The fields that take any text, by their dotted names."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from texts(value, f"{name}{field.name}.")
        elif field.type in (str, str | None, list[str] | str | None):
            yield f"{name}{field.name}"


def test_every_field_that_may_name_a_file_is_known() -> None:
    assert set(texts(Config(), "")) == {*INPUTS, *NO_FILES}


def places(run: RunDirectory) -> list[Path]:
    """Where a run may write."""
    return list(run.places([*pipeline.FOLDERS, pipeline.COMPARE]))


def config(field: str, path: str) -> Config:
    """One whose `field` names `path`."""
    data = DataConfig(format="table", path="events.csv", items="items.csv")
    sections: dict[str, Any] = {
        "data.path": lambda: Config(data=replace(data, path=path)),
        "data.items": lambda: Config(data=replace(data, items=path)),
        "embed.model": lambda: Config(embed=EmbedConfig(model=path)),
        "embed.image_encoder": lambda: Config(
            data=replace(data, columns=ColumnsConfig(image="photo")),
            embed=EmbedConfig(vectors="image", image_encoder=path),
        ),
        "embed.cache": lambda: Config(embed=EmbedConfig(cache=path)),
        "embed.vectors": lambda: Config(embed=EmbedConfig(vectors=["text", path])),
        "tokenize.file": lambda: Config(tokenize=TokenizeConfig(file=path)),
        "intentions.path": lambda: Config(intentions=IntentionsConfig("file", path=path)),
        "intentions.local_model": lambda: Config(intentions=IntentionsConfig("llm", local_model=path)),
        "base.model": lambda: Config(base=BaseConfig(model=path)),
        "preference.feedback": lambda: Config(preference=PreferenceConfig("s-dpo", feedback=path)),
        "tasks.prompts": lambda: Config(tasks=TasksConfig(prompts=path)),
    }
    made: Config = sections[field]()
    return made


@pytest.mark.parametrize("field", INPUTS)
@pytest.mark.parametrize(
    "place", ["data", "data/deep/in", "train/bundle", "compare/x", ".model.partial", ".embed.old/x"]
)
def test_inputs_where_a_stage_is_written(
    tmp_path: Path, field: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / place / "input").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path / place)
    run, before = RunDirectory("."), sorted(tmp_path.rglob("*"))
    for name in (f"{place}/input", place, str(tmp_path / place / "input"), f"../{tmp_path.name}-link/input"):
        with pytest.raises(UserError, match=f"{field} {name}: lies in .*, which belongs to the run directory"):
            pipeline.run(config(field, name), run)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("field", INPUTS)
def test_inputs_elsewhere(tmp_path: Path, field: str) -> None:
    run = RunDirectory(tmp_path / "run")
    for name in ("run/mine", "run/datasets/x", "data/x", "run/config.yaml"):
        (tmp_path / name).mkdir(parents=True)
        check_inputs(config(field, str(tmp_path / name)), places(run))


@pytest.mark.parametrize(("field", "on_a_hub"), INPUTS.items())
def test_a_name_on_a_hub_is_no_path_unless_there_is_such_a_path(
    tmp_path: Path, field: str, on_a_hub: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if on_a_hub:
        check_inputs(config(field, "base/tiny"), places(RunDirectory(".")))
    else:
        with pytest.raises(UserError, match="lies in base"):
            check_inputs(config(field, "base/tiny"), places(RunDirectory(".")))
    os.makedirs("base/tiny")
    with pytest.raises(UserError, match="lies in base"):
        check_inputs(config(field, "base/tiny"), places(RunDirectory(".")))


def test_the_split_of_a_local_dataset_is_no_part_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("data/shop")
    for name in ("data/shop@train", "data/shop:small", "data/shop:small@train"):
        dataset = Config(data=DataConfig(format="datasets", path=name))
        with pytest.raises(UserError, match=f"data.path {name}: lies in data"):
            check_inputs(dataset, places(RunDirectory(".")))


def test_what_the_training_lacks_is_named_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lacking = Config(train=TrainConfig(attention="flash_attention_2"))
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.attention flash_attention_2: no CUDA GPU here"):
        pipeline.check(lacking, run, "evaluate")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    pipeline.check(lacking, run, "tokenize")  # nothing is trained


def stage_of(make: Callable[[Config, Any], object], config: Config) -> Stage:
    """The stage that `make` asks a run directory for."""
    found: list[Stage] = []
    make(config, SimpleNamespace(build=found.append, path=Path, main=True))
    return found[0]


def test_the_base_depends_on_the_prompts(tmp_path: Path) -> None:
    """Its tokenizer learns from them."""
    prompts = shutil.copytree(resource_folder("prompts"), tmp_path / "prompts")
    config = Config(tasks=TasksConfig(prompts=str(prompts)))
    assert stage_of(pipeline.base_stage, Config()).files == {}
    before = stage_of(pipeline.base_stage, config).files
    (prompts / "search.yaml").write_text((prompts / "search.yaml").read_text() + "# another line")
    after = stage_of(pipeline.base_stage, config).files
    assert [name for name in before if after[name] != before[name]] == [str(prompts / "search.yaml")]
