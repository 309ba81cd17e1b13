"""Bundles as a stranger might publish them: each is refused in one line, or loads to the same answers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from llmrec.errors import UserError
from llmrec.model.base import make_base
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.recommender import bundle, safety
from llmrec.recommender.recommender import Recommender
from llmrec.train.finetune import with_adapter

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def model_bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "model"
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a base that is saved beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    model, tokenizer = make_base(config, recommender.catalog.texts("{title}"))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = Recommender.from_base(folder / "base", recommender.item_tokenizer, recommender.catalog)
    tokens = adapted.renderer.vocabulary.all_ids
    adapted.model = with_adapter(adapted.model, tokens, AdapterConfig(rank=2))
    adapted.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def model(model_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_bundle, tmp_path / "model"))


@pytest.fixture
def adapter(adapter_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter_bundle, tmp_path / "adapter"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    """The one line that loading `folder` ends with."""
    with pytest.raises(UserError) as caught:
        Recommender.from_pretrained(folder)
    [line] = str(caught.value).splitlines()
    assert len(line) < 1000
    return line


def answers(folder: Path) -> list[str]:
    return [item.item_id for item in Recommender.from_pretrained(folder).recommend(history=["i1", "i7"], k=5)]


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_pickle_beside_safetensors_is_not_read_and_alone_is_refused(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    expected = answers(folder)
    names = {"model": (safety.MODEL, "pytorch_model.bin"), "adapter": (safety.ADAPTER, "adapter_model.bin")}
    good, bad = names[kind]
    torch.save(Trap(tmp_path / "sprung"), folder / bad)
    assert answers(folder) == expected
    (folder / good).unlink()
    assert f"{good} is missing; the weights of a bundle are safetensors" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../model/model.safetensors", "/etc/model.safetensors", 3])
def test_an_index_of_shards_points_to_safetensors_beside_it(shard: str | int, model: Path) -> None:
    index = model / f"{safety.MODEL}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}))
    assert f"found the shard {shard!r}" in refusal(model)
    index.write_text("{}")
    assert "found the shard None" in refusal(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "adapter_model.bin"},
        {"attn_implementation": "someone/kernel"},
        {"vision_config": [{"attn_implementation": "someone/kernel"}]},
    ],
)
def test_a_config_that_sends_elsewhere(changes: dict[str, Any], model: Path) -> None:
    edit(model / "config.json", **changes)
    assert "is not allowed in a bundle" in refusal(model)


def test_code_in_a_bundle_is_never_run(model: Path, tmp_path: Path) -> None:
    """Where transformers has code of its own for the model it uses that; where it hasn't, the bundle is refused."""
    expected = answers(model)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Evil: ...\n")
    (model / "custom_generate").mkdir()
    shutil.copy(model / "evil.py", model / "custom_generate" / "generate.py")
    auto = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM")}
    edit(model / "config.json", auto_map=auto)
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    assert answers(model) == expected
    edit(model / "config.json", model_type="evil")
    assert "can't be loaded" in refusal(model)
    assert not (tmp_path / "sprung").exists()


def test_a_model_with_an_adapter_beside_it(model: Path, adapter: Path) -> None:
    shutil.copy(adapter / safety.ADAPTER_CONFIG, model)
    assert f"{safety.ADAPTER_CONFIG} beside a whole model" in refusal(model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model_name_or_path": "someone/else"}, "an adapter of 'someone/else', but llmrec.json says"),
        ({"peft_type": "XLORA"}, "peft_type 'XLORA', expected LORA"),
        ({"megatron_config": {}, "megatron_core": "os"}, "megatron_core 'os', but adapters of a bundle don't set it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head']"),
        ({"layer_replication": [[0, 1]] * 99999}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"trainable_token_indices": {"embed_tokens": [10**9]}}, "can't be loaded"),
        ({"r": -3}, "can't be loaded"),
        ({"r": 10**15}, "can't be loaded"),
    ],
)
def test_an_adapter_of_something_else(changes: dict[str, Any], said: str, adapter: Path) -> None:
    edit(adapter / safety.ADAPTER_CONFIG, **changes)
    assert said in refusal(adapter)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": -3}, "levels -3, expected a number from 1 to 26"),
        ({"levels": True}, "levels True"),
        ({"levels": 10**30}, "levels 1000"),
        ({"level_sizes": []}, "level_sizes []"),
        ({"level_sizes": [4, 4, 1.5]}, "level_sizes [4, 4, 1.5], expected one number above 0 per level"),
        ({"level_sizes": [4, 4, -4]}, "level_sizes [4, 4, -4]"),
        ({"level_sizes": [10**12, 4, 4]}, "1000000000008 item tokens in llmrec.json"),
        ({"max_history": "20"}, "max_history '20', expected a number above 0"),
        ({"max_history": 0}, "max_history 0"),
        ({"base_model": ["a"]}, "base_model ['a'], expected text"),
        ({"token_prefix": 3}, "token_prefix 3, expected text"),
        ({"token_prefix": "<a_0>"}, "expected letters"),
        ({"weights": "pickle"}, "weights 'pickle', expected model or adapter"),
        ({"scoring": {}}, "scoring {}, expected one of"),
        ({"surprise": 1}, "unexpected keyword argument 'surprise'"),
    ],
)
def test_a_header_of_wrong_values(changes: dict[str, Any], said: str, model: Path) -> None:
    header = json.loads((model / bundle.HEADER).read_text())
    if changes.get("level_sizes"):
        changes = {"level_sizes": [*changes["level_sizes"], *header["level_sizes"][3:]]}
    edit(model / bundle.HEADER, **changes)
    assert said in refusal(model)


def test_json_too_deep_to_read(model: Path) -> None:
    (model / bundle.HEADER).write_text("[" * 100_000)
    assert "not valid JSON" in refusal(model)


@pytest.mark.parametrize(
    "phrasing",
    ["{history.__class__}", "{history[0]}", "{history!r}", "{history:>999999999}", "{0}", "{history}{history}", 3],
)
def test_a_prompt_that_reaches_into_its_values(phrasing: Any, model: Path) -> None:
    path = model / bundle.PROMPTS / "sequential.yaml"
    template = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(template | {"templates": [phrasing]}))
    assert "sequential.yaml: template" in refusal(model)


def test_a_prompt_that_makes_objects(model: Path, tmp_path: Path) -> None:
    path = model / bundle.PROMPTS / "sequential.yaml"
    path.write_text(
        f"name: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tmp_path}/x']]"
    )
    assert "not valid YAML" in refusal(model)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 99}, "schema 99"),
        ({"config": {"levels": "{history.__class__}"}}, "not a saved item tokenizer"),
        ({"config": {"levels": 10**9}}, "more levels in config than in level_sizes"),
        ({"config": {"levels": -1}}, "tokenize.levels -1: expected at least 1"),
        ({"config": {"levels": 1, "surprise": 1}}, "surprise"),
        ({"method": "os.system"}, "not a saved item tokenizer"),
        ({"level_sizes": 3}, "not a saved item tokenizer"),
        ({"embed": {"encoder": "os.system"}}, "not a saved item tokenizer"),
        ({"embed": {"dim": -1}}, "embed.dim -1: expected at least 1"),
    ],
)
def test_a_quantizer_of_wrong_values(changes: dict[str, Any], said: str, model: Path) -> None:
    edit(model / bundle.QUANTIZER / "quantizer.json", **changes)
    assert said in refusal(model)


def test_a_bundle_does_not_say_where_this_machine_caches(model: Path, tmp_path: Path) -> None:
    path = model / bundle.QUANTIZER / "quantizer.json"
    edit(path, embed=json.loads(path.read_text())["embed"] | {"cache": str(tmp_path / "elsewhere")})
    loaded = Recommender.from_pretrained(model)
    assert loaded.item_tokenizer.encoder is not None
    assert loaded.item_tokenizer.encoder.config.cache is None


def test_codes_outside_their_levels(model: Path) -> None:
    path = model / bundle.QUANTIZER / "item_codes.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("codes").list.eval(pl.element() - 100)).write_parquet(path)
    (model / bundle.TRIE).unlink()
    loaded = refusal(model)
    assert "outside its level" in loaded


@pytest.mark.parametrize("base", ["/etc/model", "../model", "C:\\model", "a/b/c", "", "https://somewhere/x"])
def test_a_bundle_of_the_hub_names_a_base_of_the_hub(base: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.hub, "download", lambda name: adapter)
    bundle.write_header(replace(bundle.read_header(adapter), base_model=base), adapter)
    with pytest.raises(UserError, match=r"name org/name: an adapter of .* which is not a model of the Hub"):
        bundle.locate("org/name")


def test_a_folder_here_does_not_stand_for_a_base_of_the_hub(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle.hub, "download", lambda name: adapter)
    bundle.write_header(replace(bundle.read_header(adapter), base_model="org/base"), adapter)
    monkeypatch.chdir(tmp_path)
    assert bundle.locate("org/name") == adapter
    (tmp_path / "org" / "base").mkdir(parents=True)
    with pytest.raises(UserError, match="which is not a model of the Hub"):
        bundle.locate("org/name")


def test_an_adapter_of_a_local_base_is_not_pushed(adapter: Path) -> None:
    with pytest.raises(
        UserError, match=r"which is not a model of the Hub; train with train\.lora\.merge true, or from"
    ):
        bundle.push(adapter, "org/name")
