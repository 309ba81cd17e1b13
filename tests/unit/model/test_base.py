"""The base model: made from text, or loaded from a folder that may be broken in many ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec import device
from llmrec.config import Config
from llmrec.errors import UserError
from llmrec.model import quantized
from llmrec.model.architecture import context_length
from llmrec.model.base import load_base, load_tokenizer, make_base, weight_dtype
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.model.layers import cut_layers
from llmrec.train.config import TrainConfig

TEXTS = ["a gentle shampoo", "a gentle soap", "hand balm for dry hands"] * 3
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
TINY = {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 280, "context": 64}


@pytest.fixture(scope="module")
def made():
    return make_base(BaseConfig(**TINY), TEXTS)


@pytest.fixture
def folder(made, tmp_path):
    for part in made:
        part.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "t5"])
def test_made_model_is_an_ordinary_one(architecture, tmp_path):
    model, tokenizer = make_base(BaseConfig(**TINY, architecture=architecture), TEXTS)
    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(tokenizer) <= 280
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.num_attention_heads == 2
    assert getattr(model.config, "num_key_value_heads", 1) == 1
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    again, tokens = load_base(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert tokens(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (tokens.pad_token_id, tokens.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_made_weights_follow_the_seed():
    one, same, other = (make_base(BaseConfig(**TINY, seed=seed), TEXTS)[0].lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("architecture", ["qwen3", "t5"])
def test_sizes_of_heads_and_feed_forward_blocks(architecture):
    sizes = {"architecture": architecture, "heads": 6, "head_size": 64, "feed_forward": 1024}
    model, _ = make_base(BaseConfig(**TINY | sizes), TEXTS)
    shapes = {name.rsplit(".", 2)[-2]: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    query, up = ("q", "wi") if architecture == "t5" else ("q_proj", "up_proj")
    assert (shapes[query], shapes[up]) == ((384, 16), (1024, 16))
    with pytest.raises(UserError, match=r"base\.heads 6: .* or set an even base\.head_size"):
        BaseConfig(**TINY | {"heads": 6})


def test_an_encoder_decoder_has_layers_on_both_sides():
    model, tokenizer = make_base(BaseConfig(**TINY | {"architecture": "t5", "layers": 3}), TEXTS)
    assert [len(part.block) for part in (model.encoder, model.decoder)] == [3, 3]
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id
    assert context_length(model) == 64
    with pytest.raises(UserError, match=r"base\.keep_layers 1: T5ForConditionalGeneration .* set it to 0"):
        cut_layers(model, 1, "--base.keep_layers 1")
    with pytest.raises(UserError, match=r"base\.pretrain_epochs 1 .* not for t5; set it to 0"):
        BaseConfig(architecture="t5", pretrain_epochs=1)


def test_a_made_model_is_not_cut():
    with pytest.raises(UserError, match=r"base\.keep_layers 1 cuts a pretrained model"):
        make_base(BaseConfig(**TINY, keep_layers=1), TEXTS)
    with pytest.raises(UserError, match=r"base\.keep_layers 1 cuts base\.model; name one, or set it to 0"):
        Config(base=BaseConfig(**TINY, keep_layers=1))


def test_a_key_of_the_released_version_stays():
    """A field that it lacked counts only if it is set: a finished stage is not made again."""
    assert "keep_layers" not in BaseConfig(model="org/name").cache_key()
    assert BaseConfig(model="org/name", keep_layers=8).cache_key()["keep_layers"] == 8
    assert "dtype" not in BaseConfig(model="org/name").cache_key()
    assert BaseConfig(model="org/name", dtype="bfloat16").cache_key()["dtype"] == "bfloat16"


def test_a_chat_template_can_be_left_out(folder, tmp_path):
    _, tokenizer = load_base(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    assert load_base(folder)[1].chat_template == TEMPLATE
    plain = load_base(folder, chat_template=False)[1]
    plain.save_pretrained(tmp_path / "plain")
    assert load_tokenizer(tmp_path / "plain").chat_template is None
    with pytest.raises(UserError, match=r"base\.chat_template false is for base\.model; name one"):
        Config(base=BaseConfig(**TINY, chat_template=False))


@given(text=st.text())
def test_made_tokenizer_reads_any_text(made, text):
    _, tokenizer = made
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def cut(path):
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "can't be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "can't be loaded"),
        (lambda folder: cut(folder / "config.json"), "can't be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "frob"}'), "frob"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "can't be loaded"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "has no fast tokenizer"),
    ],
)
def test_broken_checkpoints_are_named(folder, break_it, match):
    break_it(folder)
    with pytest.raises(UserError, match=match) as caught:
        load_base(folder)
    assert str(caught.value).startswith(f"base.model {folder}: ")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"base\.model .*nowhere: .*can't be loaded: there is no such folder here"):
        load_base(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("dtype", "frozen", "fast", "expected"),
    [
        ("auto", False, True, torch.float32),
        ("auto", True, True, torch.bfloat16),
        ("auto", True, False, torch.float32),
        ("bfloat16", True, False, torch.bfloat16),
        ("float32", True, True, torch.float32),
    ],
)
def test_the_type_of_frozen_weights(folder, monkeypatch, dtype, frozen, fast, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "bfloat16_is_faster", lambda: fast)
    found = weight_dtype(BaseConfig(dtype=dtype), frozen)
    assert found == expected
    assert {p.dtype for p in load_base(folder, dtype=found)[0].parameters()} == {expected}


@pytest.mark.parametrize("found", [None, "an old one"])
def test_fewer_bits_say_what_is_missing(folder, monkeypatch, found):
    monkeypatch.setattr(quantized, "find_spec", lambda name: found)
    monkeypatch.setattr(quantized, "is_bnb_available", lambda min_version: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    missing = r"bitsandbytes before 0\.50 needs a CUDA GPU" if found else "bitsandbytes is not installed"
    with pytest.raises(UserError, match=rf"base\.bits 4: {missing}; pip install -U bitsandbytes, or set it to 32"):
        load_base(folder, bits=4)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"heads": 0}, r"base\.heads 0"),
        ({"layers": 0}, r"base\.layers 0"),
        ({"keep_layers": -1}, r"base\.keep_layers -1: expected at least 0"),
        ({"heads": 3, "hidden_size": 48}, r"base\.heads 3: the heads must be even"),
        ({"heads": 4, "hidden_size": 20}, r"base\.hidden_size 20"),
    ],
)
def test_base_config_refuses(settings, match):
    with pytest.raises(UserError, match=match):
        BaseConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"accumulation": 0}, r"train\.accumulation 0: expected at least 1"),
        (
            {"batch_size": 128, "accumulation": 3},
            r"train\.batch_size 128 is not a multiple of train\.accumulation 3",
        ),
        ({"dropout": 1.0}, r"train\.dropout 1\.0"),
        ({"rows_first": 1.0}, r"train\.rows_first 1\.0"),
        ({"epochs": 0}, r"train\.epochs 0"),
    ],
)
def test_train_config_refuses(settings, match):
    with pytest.raises(UserError, match=match):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dropout": -0.1}, r"train\.lora\.dropout -0\.1: expected at least 0"),
        ({"rank": 0}, r"train\.lora\.rank 0: expected at least 1"),
        ({"merge": "no"}, r"train\.lora\.merge 'no': expected true or false"),
    ],
)
def test_adapter_config_refuses(settings, match):
    with pytest.raises(UserError, match=match):
        AdapterConfig(**settings)
