"""Tiny fine-tunings: what is trained, what stays, and that an interrupted run ends as an undisturbed one."""

import contextlib
import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from second_stream import second_renderer
from tolerances import CURVES
from transformers import TrainingArguments

from llmrec.data import EvalExamples
from llmrec.decode.choose import make_search
from llmrec.decode.config import DecodeConfig
from llmrec.errors import UserError
from llmrec.model.architecture import context_length
from llmrec.model.config import AdapterConfig
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Collator, validation_examples
from llmrec.train import finetune as finetuning
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, finetune, with_adapter
from llmrec.train.objective import Objective, answer_loss
from llmrec.train.trainer import claim, last_checkpoint, run_trainer

TASKS = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4, max_text_tokens=12)
FULL = TrainConfig(epochs=4, batch_size=8, evaluations=4, dtype="float32", validation_users=8)
LORA = replace(FULL, method="lora", lora=AdapterConfig(rank=4), learning_rate=5e-3)


def data(shop, validation=True):
    histories = [sequence for sequence in shop.sequences if len(sequence) > 2]
    targets = np.array([sequence[0] for sequence in histories], dtype=np.int32)
    cases = EvalExamples(np.arange(len(histories), dtype=np.int32), histories, targets)
    return TrainingData(shop.catalog, shop.sequences, cases if validation else None)


def train(shop, config, folder, validation=True):
    return finetune(shop.model, shop.renderer, data(shop, validation), TASKS, config, folder)[0]


def log(folder, key):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_learns(shop, tmp_path, config):
    model = train(shop, replace(config, epochs=15, dropout=0.0), tmp_path)
    losses = log(tmp_path, "loss")
    assert losses[-1] < 0.75 * losses[0]
    assert not model.training
    assert len(log(tmp_path, "eval_loss")) >= 4


ROWS_FIRST = {"rows_first": 0.5}


@pytest.mark.parametrize(
    "config",
    [FULL, LORA, replace(FULL, **ROWS_FIRST), replace(LORA, **ROWS_FIRST)],
    ids=["full", "lora", "full, rows first", "lora, rows first"],
)
def test_resumed_run_equals_undisturbed_run(make_shop, tmp_path, power_cut, config):
    undisturbed = weights(train(make_shop(), config, tmp_path / "one"))

    for stop in (24, 40, 80):
        with power_cut(stop), pytest.raises(RuntimeError, match="power cut"):
            train(make_shop(), config, tmp_path / "two")
        # As if the run had died while it wrote the next checkpoint.
        (tmp_path / "two" / "checkpoint-999").mkdir(exist_ok=True)
    assert last_checkpoint(tmp_path / "two").name == ("checkpoint-2" if config.rows_first else "checkpoint-8")
    resumed = weights(train(make_shop(), config, tmp_path / "two"))
    assert_same(resumed, undisturbed)
    assert not (tmp_path / "two" / "checkpoint-999").exists()
    for part in [".", "rows"] if config.rows_first else ["."]:
        for name in ("loss", "eval_loss"):
            assert log(tmp_path / "two" / part, name) == log(tmp_path / "one" / part, name)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(make_shop, tmp_path, monkeypatch, wrong):
    """The checkpoint before stays, and is the last one: the run goes on from there."""
    calls, whole = [], weights(train(make_shop(), FULL, tmp_path / "whole", validation=False))
    loss = Objective.__call__

    def later(*arguments, **named):
        calls.append(1)
        return loss(*arguments, **named) * (wrong if len(calls) > 12 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", later)
        with pytest.raises(UserError, match=r"step \d+ is not a finite number, at a learning rate of 0\.002") as caught:
            train(make_shop(), FULL, tmp_path / "run", validation=False)
    assert "\n" not in str(caught.value)
    kept = last_checkpoint(tmp_path / "run")
    assert kept is not None
    assert 0 < int(kept.name.split("-")[1]) <= 12
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept / "model.safetensors").values())
    assert_same(weights(train(make_shop(), FULL, tmp_path / "run", validation=False)), whole)


def test_checkpoints_of_another_program_stay(shop, tmp_path):
    """They would be resumed from, or removed to make room for ours."""
    theirs = tmp_path / "checkpoint-500"
    theirs.mkdir()
    (theirs / "model.safetensors").write_text("theirs")
    with pytest.raises(UserError, match=r"checkpoint-500: a checkpoint that llmrec did not make; name another folder"):
        train(shop, replace(FULL, epochs=1), tmp_path, validation=False)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-500"]
    assert [path.name for path in theirs.iterdir()] == ["model.safetensors"]


def test_folders_that_are_only_called_like_checkpoints_stay(tmp_path):
    theirs = [tmp_path / name for name in ("checkpoint-best", "checkpoint-5-kept", "my-checkpoint-5")]
    for path in theirs:
        path.mkdir()
        (path / "notes").write_text("mine")
    cut_off, whole = tmp_path / "checkpoint-7", tmp_path / "checkpoint-3"
    claim(tmp_path)
    for path in (cut_off, whole):
        path.mkdir()
        (path / "weights").touch()
    (whole / "whole").touch()
    claim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".llmrec", "checkpoint-3", *(path.name for path in theirs)}
    assert last_checkpoint(tmp_path) == whole
    cut_off.symlink_to(theirs[0])
    with pytest.raises(UserError, match="checkpoint-7: llmrec did not make it and does not remove it"):
        claim(tmp_path)
    assert (theirs[0] / "notes").read_text() == "mine"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_rows_first_trains_nothing_else_at_first(make_shop, tmp_path, monkeypatch, tied, method):
    shop = make_shop(tied)
    before, items = weights(shop.model), shop.vocabulary.all_ids
    seen = {}

    def note(model, *args, folder, **kwargs):
        seen[folder.name] = (weights(shop.model), sum(p.numel() for p in model.parameters() if p.requires_grad))
        return run_trainer(model, *args, folder=folder, **kwargs)

    monkeypatch.setattr(finetuning, "run_trainer", note)
    config = replace(FULL, method=method, lora=AdapterConfig(rank=4), rows_first=0.4)
    model = train(shop, config, tmp_path / "main", validation=False)
    assert list(seen) == ["rows", "main"]
    assert seen["rows"][1] == 9 * 32 * (1 if tied else 2)
    wrapped = re.compile(r"base_model\.model\.|\.token_adapter|\.base_layer")
    after = {wrapped.sub("", name): tensor for name, tensor in seen["main"][0].items()}
    for name, tensor in before.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(after[name][: items[0]], tensor[: items[0]])
            assert not torch.isclose(after[name][items], tensor[items]).all(dim=1).any()
        else:
            assert torch.equal(after[name], tensor), name
    trained = model.merge_and_unload() if method == "lora" else model
    assert not torch.equal(
        trained.state_dict()["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"]
    )
    assert (trained.get_input_embeddings().weight is trained.get_output_embeddings().weight) == tied


def test_rows_first_leaves_the_rest_a_step(shop, tmp_path):
    train(shop, replace(FULL, epochs=1, rows_first=0.99), tmp_path, validation=False)
    assert last_checkpoint(tmp_path).name == "checkpoint-1"


def test_packing_is_the_same_training(make_shop, tmp_path):
    config = replace(FULL, dropout=0.0, epochs=2)
    for packing in (False, True):
        train(make_shop(), replace(config, packing=packing), tmp_path / str(packing))
    for name in ("loss", "eval_loss"):
        padded, packed = (log(tmp_path / str(packing), name) for packing in (False, True))
        np.testing.assert_allclose(packed, padded, rtol=CURVES)


@pytest.mark.parametrize("changes", [{"rslora": True}, {"dora": True}, {"targets": ["q_proj", "up_proj"]}], ids=str)
def test_lora_options_reach_the_adapter(shop, changes):
    adapted = with_adapter(shop.model, shop.vocabulary.all_ids, AdapterConfig(rank=4, alpha=8, **changes))
    layers = {name.rsplit(".", 1)[-1]: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(layers) == set(changes.get("targets", everything))
    assert layers["q_proj"].scaling["default"] == (4.0 if "rslora" in changes else 2.0)
    assert layers["q_proj"].use_dora["default"] == ("dora" in changes)


def test_unknown_lora_targets_are_named(shop, tmp_path):
    config = replace(LORA, lora=AdapterConfig(targets=["q_proj", "quary"]))
    with pytest.raises(UserError, match=r"train\.lora\.targets: Qwen3\w+ has no layers named quary; it has .*q_proj"):
        train(shop, config, tmp_path)


@pytest.mark.parametrize(
    "config", [FULL, replace(LORA, lora=AdapterConfig(rank=4, merge=True))], ids=["full", "merged"]
)
def test_a_base_of_few_bits_stays_frozen(shop, tmp_path, config):
    shop.model.is_quantized = True
    with pytest.raises(UserError, match=r"base\.bits below 32 needs train\.method lora train\.lora\.merge false"):
        train(shop, config, tmp_path)


def test_finished_run_is_not_trained_again(make_shop, tmp_path):
    once = weights(train(make_shop(), FULL, tmp_path))
    assert_same(weights(train(make_shop(), FULL, tmp_path)), once)


def test_checkpoints_that_are_not_whole_are_ignored(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, whole in ((9, True), (10, True), (100, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "whole").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_lora_trains_the_adapter_and_the_item_rows_only(make_shop, tmp_path, tied):
    shop = make_shop(tied)
    before = weights(shop.model)
    model = train(shop, LORA, tmp_path, validation=False)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = [p for name, p in trainable.items() if "trainable_tokens_delta" in name]
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trainable)
    assert [tuple(p.shape) for p in rows] == [(9, 32)] * (1 if tied else 2)

    merged = model.merge_and_unload()
    after = weights(merged)
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied
    items = shop.vocabulary.all_ids
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old = np.delete(np.arange(len(shop.tokenizer)), items)
        assert torch.equal(after[name][old], before[name][old])
        assert not torch.equal(after[name][items], before[name][items])
    norms = [name for name in before if "norm" in name]
    assert norms
    assert all(torch.equal(after[name], before[name]) for name in norms)
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_adapter_changes_nothing(make_shop, tied):
    shop = make_shop(tied)
    ids = torch.tensor([[5, 6, *shop.vocabulary.all_ids[:4]]])
    plain = shop.model.eval()(ids).logits
    adapted = with_adapter(shop.model, shop.vocabulary.all_ids, LORA.lora).eval()(ids).logits
    torch.testing.assert_close(adapted, plain)


@pytest.mark.parametrize("case", ["one stream", "two streams", "encoder-decoder"])
def test_among_items_validation_measures_what_decoding_ranks_by(make_shop, tmp_path, case):
    """With softmax catalogue, the validation loss per code times L is the mean -log-probability of the target in the
    exact ranking of all items."""
    shop, tasks = make_shop(architecture="t5" if case == "encoder-decoder" else "qwen3"), TASKS
    known, config = data(shop), replace(FULL, softmax="catalogue", epochs=1, evaluations=1)
    if case == "two streams":
        shop.renderer.behaviour = second_renderer(shop, without=np.array([3, 8]))
    if case == "encoder-decoder":
        config, tasks = replace(config, packing=False), replace(TASKS, supervise="target")
    model = finetune(shop.model, shop.renderer, known, tasks, config, tmp_path)[0]
    search = make_search(model, shop.vocabulary, shop.trie, DecodeConfig(beams=len(shop.codes), dtype="float32"))
    cases = known.validation.sample(config.validation_users, config.seed)
    prompts = [example.prompt for example in validation_examples(shop.renderer, cases)]
    found = search.search(shop.renderer.encode_prompts(prompts), len(shop.codes))
    mine = found.scores[found.items == cases.targets[:, None]]
    assert len(mine) == len(cases)
    assert log(tmp_path, "eval_loss") == pytest.approx([-float(mine.mean()) / shop.codes.shape[1]], rel=CURVES)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_accumulation_is_the_same_step(make_shop, tmp_path, method):
    config = replace(FULL, method=method, dropout=0.0, lora=AdapterConfig(dropout=0.0), epochs=2)
    one = weights(train(make_shop(), config, tmp_path / "1x8"))
    four = weights(train(make_shop(), replace(config, accumulation=4), tmp_path / "4x2"))
    np.testing.assert_allclose(log(tmp_path / "4x2", "loss"), log(tmp_path / "1x8", "loss"), rtol=CURVES)
    np.testing.assert_allclose(log(tmp_path / "4x2", "eval_loss"), log(tmp_path / "1x8", "eval_loss"), rtol=CURVES)
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=0, atol=2e-3)


def test_gradient_checkpointing_is_the_same_step(make_shop, tmp_path):
    config = replace(FULL, method="lora", lora=AdapterConfig(dropout=0.0), epochs=1)
    train(make_shop(), config, tmp_path / "plain")
    train(make_shop(), replace(config, gradient_checkpointing=True), tmp_path / "checkpointed")
    plain, checkpointed = (log(tmp_path / name, "loss") for name in ("plain", "checkpointed"))
    np.testing.assert_allclose(checkpointed, plain, rtol=1e-4)


def overfit(**changes):
    """The validation targets contradict what is learnt, so that their loss turns upwards soon."""
    return replace(FULL, epochs=30, evaluations=30, learning_rate=2e-2, dropout=0.0, patience=2, **changes)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_patience_stops_and_keeps_the_best(shop, tmp_path, method):
    model = train(shop, overfit(method=method), tmp_path)
    losses = log(tmp_path, "eval_loss")
    assert len(losses) < 30
    assert np.argmin(losses) == len(losses) - 3
    batch = Collator(shop.renderer, 160)(validation_examples(shop.renderer, data(shop).validation.sample(8, 0)))
    labels = batch.pop("labels")
    with torch.inference_mode():
        assert answer_loss(model(**batch), labels).item() == pytest.approx(min(losses), abs=1e-4)


def test_patience_survives_an_interruption(make_shop, tmp_path, power_cut):
    undisturbed = weights(train(make_shop(), overfit(), tmp_path / "one"))
    losses = log(tmp_path / "one", "eval_loss")
    # Cut after the first evaluation that is no better, when half of the patience is spent.
    state = json.loads((last_checkpoint(tmp_path / "one") / "trainer_state.json").read_text())
    evaluated = [line["step"] for line in state["log_history"] if "eval_loss" in line]
    cut = FULL.batch_size * (evaluated[-2] + 1)
    with power_cut(cut), pytest.raises(RuntimeError, match="power cut"):
        train(make_shop(), overfit(), tmp_path / "two")
    assert last_checkpoint(tmp_path / "two").name == f"checkpoint-{evaluated[-2]}"
    assert_same(weights(train(make_shop(), overfit(), tmp_path / "two")), undisturbed)
    assert log(tmp_path / "two", "eval_loss") == losses


@pytest.mark.parametrize("stop", [16, 1000], ids=["interrupted", "finished"])
def test_dropout_goes_after_training(shop, tmp_path, power_cut, stop):
    with power_cut(stop), contextlib.suppress(RuntimeError):
        train(shop, replace(FULL, epochs=1), tmp_path, validation=False)
    assert last_checkpoint(tmp_path) is not None
    assert not any(module._forward_hooks for module in shop.model.modules())


def test_runs_with_bfloat16(shop, tmp_path):
    model = train(shop, replace(FULL, epochs=1, dtype="bfloat16"), tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert np.isfinite(log(tmp_path, "eval_loss")).all()


@pytest.mark.parametrize(("softmax", "expected"), [("vocabulary", None), ("level", False), ("catalogue", False)])
def test_no_process_takes_the_output_head_for_unused(shop, tmp_path, monkeypatch, softmax, expected):
    """The loss among codes reads its rows after the forward pass, where DDP does not see it."""
    found = []

    def made(**options):
        found.append(options["ddp_find_unused_parameters"])
        return TrainingArguments(**options)

    monkeypatch.setattr("llmrec.train.trainer.TrainingArguments", made)
    train(shop, replace(FULL, epochs=1, softmax=softmax), tmp_path)
    assert found == [expected]


def test_prompts_must_fit_the_context(shop, tmp_path):
    assert context_length(shop.model) == 160
    tasks, long = replace(TASKS, max_history=70), copy.copy(shop.renderer)
    long.max_history = 70
    with pytest.raises(UserError, match=r"tasks\.max_history 70 .* the model's context is 160; lower them"):
        finetune(shop.model, long, data(shop), tasks, FULL, tmp_path)
    with pytest.raises(
        UserError, match=r"tasks\.max_history 70: the model was made for 4; make it with max_history=70"
    ):
        finetune(shop.model, shop.renderer, data(shop), tasks, FULL, tmp_path)


def test_a_process_that_sees_several_gpus_trains_on_one(make_shop, tmp_path, monkeypatch, caplog):
    """With all of them, transformers would multiply the batch (DataParallel), and the loss with it."""
    config = replace(FULL, epochs=1, dropout=0.0)
    train(make_shop(), config, tmp_path / "one")
    single = TrainingArguments.__post_init__

    def several(arguments):
        single(arguments)
        arguments._n_gpu = 3

    monkeypatch.setattr(TrainingArguments, "__post_init__", several)
    train(make_shop(), config, tmp_path / "several")
    assert "Training on one of the 3 GPUs; accelerate launch" in caplog.text
    assert log(tmp_path / "several", "loss") == log(tmp_path / "one", "loss")
    assert last_checkpoint(tmp_path / "several").name == last_checkpoint(tmp_path / "one").name


def test_weights_of_two_bytes_are_not_trained_in_full(shop, tmp_path):
    shop.model.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"train\.method full: the weights are torch\.bfloat16.*base\.dtype float32"):
        train(shop, FULL, tmp_path)


@pytest.mark.parametrize("rows_first", [0.0, 0.4])
def test_lora_on_a_bfloat16_base_leaves_it_as_it_is(make_shop, tmp_path, rows_first):
    shop = make_shop()
    shop.model.to(torch.bfloat16)
    before = weights(shop.model)
    model = train(shop, replace(LORA, epochs=2, rows_first=rows_first, dtype="float32"), tmp_path)
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    after = weights(model.merge_and_unload())
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name in (name for name in before if "norm" in name):
        assert torch.equal(after[name], before[name])
    losses = log(tmp_path, "loss")
    assert losses[-1] < losses[0]
