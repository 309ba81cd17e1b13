"""Bundles as a stranger might publish them: each is refused in one line, or loads to the same answers."""

import json
import os
import resource
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from llmrec.atomic import UMASK
from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.model.base import make_base
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.recommender import bundle, safety
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.store import change_items
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
def model(model_bundle: Path, tmp_path: Path, unsized: Callable[[Path], Path]) -> Path:
    return unsized(Path(shutil.copytree(model_bundle, tmp_path / "model")))


@pytest.fixture
def adapter(adapter_bundle: Path, tmp_path: Path, unsized: Callable[[Path], Path]) -> Path:
    return unsized(Path(shutil.copytree(adapter_bundle, tmp_path / "adapter")))


def test_a_file_of_another_size_is_damaged(model_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_bundle, tmp_path / "model"))
    path = folder / "prompts" / "search.yaml"
    path.write_text(path.read_text() + "# more\n")
    assert "the file is damaged: restore it" in refusal(folder)
    path.unlink()
    assert "search.yaml: is missing, but llmrec.json lists it" in refusal(folder)
    shutil.copy(model_bundle / "prompts" / "search.yaml", path)
    (folder / bundle.TRIE).unlink()  # which only saves time
    assert answers(folder) == answers(model_bundle)


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
        {"vision_config": [{"transformers_weights": "adapter_model.bin"}]},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_a_config_that_sends_elsewhere(changes: dict[str, Any], model: Path) -> None:
    edit(model / "config.json", **changes)
    assert "is not allowed in a bundle" in refusal(model)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "__attn_implementation_internal"])
@pytest.mark.parametrize("value", ["someone/kernel", "kernels-community/flash-attn@v1", 3, {"text_config": "a/b"}, "x"])
def test_attention_goes_by_known_names(key: str, value: Any, model: Path) -> None:
    edit(model / "config.json", **{key: value})
    assert f"{key} " in (said := refusal(model))
    assert "expected one of eager" in said
    edit(model / "config.json", vision_config=[{key: value}], **{key: "eager"})
    assert "expected one of eager" in refusal(model)


@pytest.mark.parametrize("place", ["quantizer", "prompts", "model.safetensors", "llmrec.json", "quantizer/report.json"])
def test_links_are_refused(place: str, model: Path, tmp_path: Path) -> None:
    """A link could lead `add-items` into another bundle, or `push` to a secret."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(model / place, elsewhere)
    (model / place).symlink_to(elsewhere)
    assert "link" in refusal(model)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="link"):
        change_items(model, None, lambda store: store)
    with pytest.raises(UserError, match="link"):
        bundle.push(model, "org/name")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_snapshot_of_the_hub_is_a_folder_of_links(model: Path, tmp_path: Path) -> None:
    expected, cache = answers(model), tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    for number, path in enumerate(path for path in model.rglob("*") if path.is_file()):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cache / "blobs" / str(number))
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    assert answers(snapshot) == expected
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (snapshot / "generation_config.json").unlink(missing_ok=True)
    (snapshot / "generation_config.json").symlink_to(secret)
    assert "is a link" in refusal(snapshot)


def test_a_pipe_does_not_hang(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    assert "no plain file" in refusal(model)


@pytest.mark.parametrize("name", ["item_index.parquet", "quantizer/item_codes.parquet"])
def test_a_small_table_that_is_huge_in_memory(name: str, model: Path) -> None:
    rows = 30_000_000
    frame = pl.DataFrame({"item_id": pl.repeat("x" * 50, rows, eager=True)})
    frame = frame.with_columns(title=pl.col("item_id"), codes=pl.lit([1, 2, 3], dtype=pl.List(pl.Int32)))
    frame.write_parquet(model / name)
    assert (model / name).stat().st_size < 10_000_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "bytes hold" in refusal(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**18, "no more than 256 MiB to see it"


def test_a_text_file_that_is_too_large(model: Path) -> None:
    (model / "prompts" / "search.yaml").write_bytes(b"#" * (2**20 + 1))
    assert "1,048,577 bytes, expected at most 1,048,576" in refusal(model)


def test_an_encoder_that_a_bundle_names_is_not_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model / bundle.QUANTIZER / "quantizer.json"
    embed = json.loads(path.read_text())["embed"] | {"encoder": "sentence-transformers", "model": "someone/encoder"}
    edit(path, embed=embed)
    loaded = []
    monkeypatch.setattr(
        "sentence_transformers.SentenceTransformer", lambda name, **options: loaded.append(name) or 1 / 0
    )
    added = Catalog.from_frame(pl.DataFrame({"item_id": ["new"], "title": ["a new soap"]}))
    with pytest.raises(UserError, match=r"encoder is missing: .*'someone/encoder'"):
        Recommender.from_pretrained(model).add_items(added)
    assert not loaded
    with pytest.raises(UserError, match=r"embed\.model mine/encoder: cannot be loaded"):
        Recommender.from_pretrained(model, encoder="mine/encoder").add_items(added)
    assert loaded == ["mine/encoder"]


def test_an_encoder_where_none_is_asked_for(model: Path) -> None:
    with pytest.raises(UserError, match="encoder mine: this bundle embeds without sentence-transformers"):
        Recommender.from_pretrained(model, encoder="mine")


def test_a_folder_with_files_of_another_kind_is_not_written(recommender: Recommender, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds README\.md and no llmrec\.json, so no bundle"):
        recommender.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_all_files_of_a_bundle_have_the_mode_of_the_umask(model_bundle: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in model_bundle.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~UMASK}


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
        ({"keep_layers": -1}, "keep_layers -1, expected 0 or a number above it"),
        ({"keep_layers": False}, "keep_layers False"),
        ({"user_tokens": 1}, "user_tokens 1, expected true or false"),
        ({"user_tokens": True}, "lacks 8 item tokens, the first is '<user_a_0>'"),
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
