"""Weights of a bundle: loaded to the last bit wherever they lie in the file, or refused by the name of a tensor."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from gguf_files import write_llama
from safetensors.torch import load_file, save_file

from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.model.adapter import with_adapter
from llmrec.model.base import load_base, make_base
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.recommender.recommender import Recommender
from llmrec.tasks.config import TasksConfig, load_templates, tokenizer_texts
from llmrec.train.config import TrainConfig

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def saved(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path, unsized: Callable[[Path], Path]) -> Path:
    return unsized(Path(shutil.copytree(saved, tmp_path / "copy")))


def shift(path: Path, offset: int) -> None:
    """Write a safetensors file anew so that its data begin `offset` bytes behind a multiple of 64."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = raw[8 : 8 + length].rstrip(b" ")
    head += b" " * ((offset - 8 - len(head)) % 64)
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + length :])


@pytest.mark.parametrize("offset", [0, 8, 40, 56])
def test_reloads_are_equal_to_the_last_bit(recommender: Recommender, bundle: Path, offset: int) -> None:
    shift(bundle / MODEL, offset)
    again = Recommender.from_pretrained(bundle)
    for tensor in chain(again.model.parameters(), again.model.buffers()):
        assert tensor.data_ptr() % 64 == 0
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        assert torch.equal(again.model(ids).logits, recommender.model(ids).logits)
    request = {"history": recommender.catalog.ids[:3], "prompt": "a soap"}
    assert again.recommend(**request) == recommender.recommend(**request)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_saved_weights_are_mapped_and_can_be_saved_there_again(saved: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(saved, tmp_path / "copy"))
    again = Recommender.from_pretrained(bundle)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [words[0].split("-") for words in lines if words[-1] == str(bundle / MODEL)]
    places = [range(int(start, 16), int(end, 16)) for start, end in ranges]
    mapped = {
        name for name, tensor in again.model.named_parameters() if any(tensor.data_ptr() in place for place in places)
    }
    raw = (bundle / MODEL).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 64 == 0
    tensors = json.loads(raw[8 : 8 + length])
    tensors.pop("__metadata__")
    assert mapped == {name for name, tensor in tensors.items() if tensor["data_offsets"][0] % 64 == 0}
    assert "model.embed_tokens.weight" in mapped
    again.save_pretrained(bundle)
    assert (bundle / MODEL).read_bytes() == raw


def test_a_base_is_trained_from_memory_of_its_own(bundle: Path) -> None:
    shift(bundle / MODEL, 40)
    model, _ = load_base(bundle)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "still tied"


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    found = load_file(path)
    for name, tensor in tensors.items():
        if tensor is None:
            del found[name]
        else:
            found[name] = tensor
    save_file(found, path, {"format": "pt"})


def refusal(bundle: Path) -> str:
    with pytest.raises(UserError) as caught:
        Recommender.from_pretrained(bundle)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({LAYER: None}, f"lacks tensor {LAYER}"),
        ({"model.embed_tokens.weight": None}, "lacks tensor"),
        ({"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}, "has the unknown tensor model.layers.7"),
        ({LAYER: torch.zeros(3, 5)}, f"has another shape of tensor {LAYER}"),
        ({LAYER: torch.full((64, 32), torch.nan)}, f"tensor {LAYER} holds NaN or infinity"),
        ({LAYER: torch.full((64, 32), torch.inf)}, f"tensor {LAYER} holds NaN or infinity"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(bundle: Path, changes: dict, said: str) -> None:
    change(bundle / MODEL, **changes)
    assert said in refusal(bundle)


def test_one_unrelated_tensor_is_no_model(bundle: Path) -> None:
    save_file({"anything": torch.zeros(2)}, bundle / MODEL, {"format": "pt"})
    assert "lacks tensor" in refusal(bundle)


def test_another_architecture_is_refused(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "tensor" in refusal(bundle)


def test_a_base_that_lacks_weights_is_named(bundle: Path) -> None:
    change(bundle / MODEL, **{LAYER: None})
    with pytest.raises(UserError, match=rf"base\.model .*lacks 1 tensors of Qwen3ForCausalLM, such as {LAYER}"):
        load_base(bundle)


@pytest.fixture
def adapter(saved: Path, tmp_path: Path, unsized: Callable[[Path], Path]) -> Path:
    """A bundle with an adapter of the saved model."""
    again = Recommender.from_pretrained(saved)
    tokens = again.renderer.vocabulary.all_ids
    again.model = with_adapter(again.model, tokens, AdapterConfig(rank=2))
    again.base_model = again.model.peft_config["default"].base_model_name_or_path = str(saved)
    again.save_pretrained(tmp_path / "adapter")
    return unsized(tmp_path / "adapter")


def test_an_adapter_loads_into_memory_of_its_own(adapter: Path) -> None:
    model = Recommender.from_pretrained(adapter).model
    assert all(tensor.data_ptr() % 64 == 0 for tensor in model.parameters())


@pytest.mark.parametrize("dora", [False, True])
def test_merging_on_a_bfloat16_base_rounds_once(saved: Path, tmp_path: Path, dora: bool) -> None:
    """An adapter that was trained on float32 weights; the checkpoint of its base has them in bfloat16."""
    from llmrec.model.adapter import merged, with_adapter

    again, base = Recommender.from_pretrained(saved), tmp_path / "base"
    again.model.to(torch.bfloat16).save_pretrained(base)
    again.tokenizer.save_pretrained(base)
    again.model = with_adapter(again.model.float(), again.renderer.vocabulary.all_ids, AdapterConfig(rank=2, dora=dora))
    torch.manual_seed(0)
    for name, parameter in again.model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.1)
    again.base_model = again.model.peft_config["default"].base_model_name_or_path = str(base)
    again.save_pretrained(tmp_path / "adapter")
    loaded = Recommender.from_pretrained(tmp_path / "adapter").merge().model
    assert loaded.dtype == torch.bfloat16
    expected = dict(merged(again.model).named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name].to(torch.bfloat16)), name


def rebase(adapter: Path, base: str) -> None:
    """Let a bundle with an adapter name another base model."""
    for name, field in (("llmrec.json", "base_model"), ("adapter_config.json", "base_model_name_or_path")):
        content = json.loads((adapter / name).read_text())
        (adapter / name).write_text(json.dumps(content | {field: base}))


@pytest.mark.parametrize("name", ["org/name-of-nobody", "no/such/folder", "/no/such/folder"])
def test_a_base_that_the_bundle_names_is_not_asked_of_the_hub(
    adapter: Path, saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebase(adapter, name)
    lookups: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *others, **more: lookups.append(host))
    assert f"base model {name}: it is not on this machine" in refusal(adapter)
    again = Recommender.from_pretrained(adapter, base=saved)
    assert again.recommend(prompt="a soap", k=3)
    assert not lookups


@pytest.mark.parametrize("name", ["models/nowhere", "/no/such/folder", "models/of/mine"])
def test_a_base_that_is_not_there_is_a_missing_folder(
    adapter: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(host: str, *others: Any, **more: Any) -> Any:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(UserError, match=rf"base {name}: can't be loaded: there is no such folder here, and"):
        Recommender.from_pretrained(adapter, base=name)


def test_an_adapter_of_a_relative_path_loads_from_any_folder(
    base: Path, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    made = Recommender.from_base(base.name, recommender.item_tokenizer)
    made.model = with_adapter(made.model, made.renderer.vocabulary.all_ids, AdapterConfig(rank=2))
    made.save_pretrained(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    again = Recommender.from_pretrained("bundle")
    request = {"history": made.catalog.ids[:2], "k": 5}
    assert again.recommend(**request) == made.recommend(**request)
    assert again.merge().base_model == str(base.resolve())


def test_a_base_where_none_belongs(bundle: Path) -> None:
    with pytest.raises(UserError, match="a whole model; only an adapter has a base"):
        Recommender.from_pretrained(bundle, base=bundle)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "nan"])
def test_an_adapter_that_is_not_whole_is_refused(adapter: Path, damage: str) -> None:
    path = adapter / "adapter_model.safetensors"
    name = next(name for name in load_file(path) if "lora_B" in name)
    tensor = load_file(path)[name]
    changes = {
        "missing": {name: None},
        "unexpected": {name.replace("layers.0", "layers.5"): tensor},
        "shape": {name: tensor[:1].clone()},
        "nan": {name: torch.full_like(tensor, torch.nan)},
    }
    change(path, **changes[damage])
    said = {"missing": "lacks tensor", "unexpected": "unknown tensor", "shape": "another shape of tensor", "nan": "NaN"}
    assert said[damage] in refusal(adapter)


def test_a_dense_head_with_nan_is_refused(bundle: Path, recommender: Recommender) -> None:
    from dataclasses import replace

    import numpy as np

    from llmrec.index.dense import DenseIndex
    from llmrec.model.adapter import DenseHead

    texts = np.random.default_rng(0).normal(size=(len(recommender.catalog), 8)).astype(np.float32)
    index = DenseIndex.of(DenseHead(32, 8, 4), texts)
    replace(index, vectors=torch.full_like(index.vectors, torch.nan)).save(bundle / "dense.safetensors")
    assert "items holds NaN or infinity" in refusal(bundle)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_catalog: Catalog) -> Path:
    """A base model with 3 layers."""
    folder = tmp_path_factory.mktemp("base")
    config = BaseConfig(hidden_size=32, layers=3, heads=4, vocabulary=320, context=256)
    for part in make_base(config, tokenizer_texts(tiny_catalog, load_templates())):
        part.save_pretrained(folder)
    return folder


def cut(base: Path, recommender: Recommender, count: int) -> Recommender:
    """An untrained recommender on the first `count` layers of `base`."""
    return Recommender.from_base(base, recommender.item_tokenizer, config=BaseConfig(keep_layers=count))


@pytest.mark.parametrize("merge", [True, False])
def test_a_bundle_has_the_layers_that_training_kept(
    base: Path, recommender: Recommender, merge: bool, tmp_path: Path
) -> None:
    short = cut(base, recommender, 2)
    rows = [[item, item + 1, item + 2] for item in range(6)]
    frame = pl.DataFrame(
        [(str(user), short.catalog.ids[item], time) for user, row in enumerate(rows) for time, item in enumerate(row)],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    train = TrainConfig(method="lora", lora=AdapterConfig(rank=2, merge=merge), epochs=1, learning_rate=0.05)
    short.fit(Interactions(frame), tasks=TasksConfig(mixture={"sequential": 1}), train=train)
    if merge:
        short.merge()
    short.save_pretrained(tmp_path)
    again = Recommender.from_pretrained(tmp_path)
    whole = json.loads((base / "config.json").read_text())
    assert (whole["num_hidden_layers"], again.model.config.num_hidden_layers) == (3, 2)
    assert (tmp_path / MODEL).exists() == merge
    if merge:
        saved = json.loads((tmp_path / "config.json").read_text())
        assert (saved["num_hidden_layers"], len(saved["layer_types"])) == (2, 2)
    request = {"history": short.catalog.ids[:2], "k": 5}
    assert again.recommend(**request) == short.recommend(**request)
    again.save_pretrained(tmp_path / "again")
    assert Recommender.from_pretrained(tmp_path / "again").recommend(**request) == short.recommend(**request)


def test_more_layers_than_the_base_has_are_refused(base: Path, recommender: Recommender, adapter: Path) -> None:
    with pytest.raises(UserError, match=r"base\.keep_layers 4: the base model has 3 layers; choose at most 3"):
        cut(base, recommender, 4)
    header = json.loads((adapter / "llmrec.json").read_text())
    (adapter / "llmrec.json").write_text(json.dumps(header | {"keep_layers": 9}))
    assert "llmrec.json: keep_layers 9: the base model has 1 layers" in refusal(adapter)


def test_an_adapter_of_a_gguf_file_loads_by_the_name_of_the_file(recommender: Recommender, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    write_llama(tmp_path / "tiny.gguf")
    made = cut(tmp_path / "tiny.gguf", recommender, 1)
    made.model = with_adapter(made.model, made.renderer.vocabulary.all_ids, AdapterConfig(rank=2))
    made.save_pretrained(tmp_path / "bundle")
    again = Recommender.from_pretrained(tmp_path / "bundle")
    request = {"history": made.catalog.ids[:2], "k": 5}
    assert again.recommend(**request) == made.recommend(**request)
    (tmp_path / "tiny.gguf").rename(tmp_path / "moved.gguf")
    assert "tiny.gguf: it is not on this machine" in refusal(tmp_path / "bundle")
    moved = Recommender.from_pretrained(tmp_path / "bundle", base=tmp_path / "moved.gguf")
    assert moved.recommend(**request) == made.recommend(**request)
