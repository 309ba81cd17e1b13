"""Tiny fine-tunings of a T5: the loss is that of transformers, dropout its own, and it learns what is planted."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmrec.config import Config
from llmrec.data import EvalExamples
from llmrec.decode.config import DecodeConfig
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig, DenseConfig
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import IGNORE, Mixture, build_tasks
from llmrec.tasks.pairs import PairCollator
from llmrec.train.config import TrainConfig, check_encoder_decoder
from llmrec.train.dropout import CodeDropout, OwnDropout
from llmrec.train.finetune import TrainingData, finetune
from llmrec.train.objective import answer_loss
from llmrec.train.trainer import last_checkpoint

TASKS = TasksConfig(
    mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4, max_text_tokens=12, supervise="target"
)
FULL = TrainConfig(epochs=4, batch_size=8, packing=False, evaluations=4, dtype="float32", validation_users=8)


@pytest.fixture
def t5(make_shop):
    return make_shop(architecture="t5")


@pytest.fixture
def batch(t5):
    """Prompts and answers of several lengths: item tokens, and texts with an end-of-sequence token."""
    config = TasksConfig(supervise="target")
    mixture = Mixture(build_tasks(config, t5.catalog, t5.sequences, t5.renderer), config, 1, 4, seed=0)
    examples = [mixture[row] for row in range(0, len(mixture), 5)]
    batch = PairCollator(t5.renderer, 160, start=t5.tokenizer.pad_token_id, with_items=True)(examples)
    return examples, batch


def data(shop, validation=True):
    histories = [sequence for sequence in shop.sequences if len(sequence) > 2]
    targets = np.array([sequence[0] for sequence in histories], dtype=np.int32)
    cases = EvalExamples(np.arange(len(histories), dtype=np.int32), histories, targets)
    return TrainingData(shop.catalog, shop.sequences, cases if validation else None)


def test_a_batch_holds_prompts_and_answers(t5, batch):
    examples, batch = batch
    for row, example in enumerate(examples):
        prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert t5.tokenizer.decode(prompt) == example.prompt
        said = batch["labels"][row][batch["labels"][row] != IGNORE]
        assert t5.tokenizer.decode(said) == example.answer + (t5.tokenizer.eos_token if example.ends else "")
        assert batch["decoder_input_ids"][row, 0] == t5.tokenizer.pad_token_id
        assert batch["decoder_input_ids"][row, 1 : 1 + len(said)].tolist() == said.tolist()
        assert batch["items"][row][batch["items"][row] >= 0].tolist() == list(example.items)
        assert (batch["items"][row, 1] >= 0) == bool(example.items), "at the first token of the answer"


def test_loss_is_that_of_transformers(t5, batch):
    """Of `labels` alone, which it shifts to make the decoder's input."""
    examples, batch = batch
    model = t5.model.eval()
    answers = batch["labels"][:, 1:].contiguous()
    prompts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    stock = model(**prompts, labels=answers).loss
    outputs = model(**prompts, decoder_input_ids=batch["decoder_input_ids"], use_cache=False)
    torch.testing.assert_close(answer_loss(outputs, batch["labels"]), stock)
    alone = [
        model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).loss * len(answer)
        for prompt, answer in zip(
            t5.renderer.encode_prompts([example.prompt for example in examples]),
            t5.renderer.encode_answers(examples),
            strict=True,
        )
    ]
    torch.testing.assert_close(stock * (answers != IGNORE).sum(), torch.stack(alone).sum())


@pytest.mark.parametrize(
    ("tasks", "train", "said"),
    [
        (TASKS, replace(FULL, method="lora"), "--train.method full"),
        (TASKS, replace(FULL, rows_first=0.5), "--train.rows_first 0"),
        (TASKS, replace(FULL, packing=True), "--train.packing false"),
        (replace(TASKS, supervise="every-item"), FULL, "--tasks.supervise target"),
        (TasksConfig(), TrainConfig(), "--train.packing false --tasks.supervise target"),
    ],
)
def test_what_an_encoder_decoder_cannot_do_is_refused(t5, tmp_path, tasks, train, said):
    line = rf"an encoder-decoder trains all weights, .*; set {re.escape(said)}\."
    with pytest.raises(UserError) as caught:
        check_encoder_decoder("--base.model", tasks, train)
    assert re.search(line, caught.value.with_flags)
    with pytest.raises(UserError, match=r"^base\.model: an encoder-decoder"):
        finetune(t5.model, t5.renderer, data(t5), tasks, train, tmp_path)
    with pytest.raises(UserError, match=r"^base\.architecture t5: an encoder-decoder"):
        Config(base=BaseConfig(architecture="t5"), tasks=tasks, train=train)


def test_own_dropout_works_in_training_only_and_goes(t5, batch):
    inputs = {name: batch[1][name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    model = t5.model

    def logits(training):
        model.train(training)
        return model(**inputs).logits.detach()

    plain = logits(False)
    assert torch.equal(logits(True), plain), "a T5 made here has none"
    dropout = OwnDropout(model, 0.3)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert {layer.dropout for layer in model.modules() if hasattr(layer, "key_value_proj_dim")} == {0.3}
    assert torch.equal(logits(False), plain)
    assert not torch.equal(logits(True), logits(True))
    dropout.remove()
    assert torch.equal(logits(True), plain)


def test_codes_are_hidden_from_both_parts(t5, tmp_path):
    """A loaded T5 has an embedding of its own in each part, tied by its weights."""
    t5.model.save_pretrained(tmp_path)
    model = type(t5.model).from_pretrained(tmp_path)
    model.encoder.embed_tokens = nn.Embedding.from_pretrained(model.shared.weight, freeze=False)
    model.encoder.embed_tokens.weight = model.shared.weight
    tokens = torch.from_numpy(t5.vocabulary.ids[1])
    dropout = CodeDropout(model.train(), t5.vocabulary.ids[1], 0.9)
    for part in (model.encoder, model.decoder):
        shown = part.embed_tokens(tokens.repeat(40)).abs().sum(1) > 0
        assert 0 < shown.float().mean() < 0.25
    dropout.remove()
    assert (model.decoder.embed_tokens(tokens).abs().sum(1) > 0).all()


def test_resumed_run_equals_undisturbed_run(make_shop, tmp_path, power_cut):
    def train(folder):
        shop = make_shop(architecture="t5")
        return finetune(shop.model, shop.renderer, data(shop), TASKS, replace(FULL, code_dropout=0.2), folder)[0]

    undisturbed = train(tmp_path / "one").state_dict()
    with power_cut(100), pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "two")
    assert last_checkpoint(tmp_path / "two") is not None
    resumed = train(tmp_path / "two").state_dict()
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in resumed.items())


def test_learns_what_is_planted(t5, tmp_path):
    """Each item is followed by the same other one; the dense head learns it, too."""
    rng = np.random.default_rng(0)
    after = rng.permutation(20)
    pairs = np.stack([np.tile(np.arange(20), 10), np.tile(after, 10)], axis=1).astype(np.int32)
    known = TrainingData(t5.catalog, list(pairs), vectors=rng.normal(size=(20, 8)).astype(np.float32))
    config = replace(FULL, epochs=16, batch_size=20, learning_rate=5e-3, dropout=0.0, dense=DenseConfig(0.3, 16))
    tasks = replace(TASKS, mixture={"sequential": 1.0})
    model, dense = finetune(t5.model, t5.renderer, known, tasks, config, tmp_path)
    assert not model.training
    search = TreeSearch(model, t5.vocabulary, t5.trie, DecodeConfig(dtype="float32", beams=20), 0)
    prompts = [t5.renderer.prompt("sequential", 0, history=t5.renderer.history([item])) for item in range(20)]
    prefilled = search.prefill(t5.renderer.encode_prompts(prompts))
    assert (search.rank(prefilled, 1).items[:, 0] == after).mean() >= 0.9
    assert (dense.log_probabilities(prefilled.hidden).argmax(1).numpy() == after).mean() >= 0.9
