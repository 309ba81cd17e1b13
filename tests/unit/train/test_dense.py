"""The dense loss against a slow loop over examples, and tiny fine-tunings that train a head beside the model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tolerances import CURVES

from llmrec.data import EvalExamples
from llmrec.errors import UserError
from llmrec.model.adapter import TEMPERATURE, DenseHead
from llmrec.model.config import AdapterConfig, DenseConfig
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import IGNORE, Collator, Mixture, build_tasks, predicting, validation_examples
from llmrec.tasks.render import Example
from llmrec.train.config import TrainConfig
from llmrec.train.dense import DenseLoss, dense_loss
from llmrec.train.finetune import TrainingData, finetune
from llmrec.train.objective import Objective, answer_loss
from llmrec.train.trainer import HEAD, last_checkpoint

TEXT = 12
TASKS = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4, max_text_tokens=12)
ALL = TasksConfig(max_history=4, max_text_tokens=12)
FULL = TrainConfig(
    epochs=4, batch_size=8, evaluations=4, dtype="float32", validation_users=8, dense=DenseConfig(weight=1.0, dim=8)
)
LORA = replace(FULL, method="lora", lora=AdapterConfig(rank=4), learning_rate=5e-3)
OWN = replace(FULL, dense=DenseConfig(weight=1.0, dim=8, item_vectors=True))


def vectors(n=20) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, TEXT)).astype(np.float32)


def head_of(shop) -> DenseHead:
    torch.manual_seed(2)
    return DenseHead(shop.model.config.hidden_size, TEXT, 8)


def without(sequences, items):
    """The sequences without the events of some items."""
    return [sequence[~np.isin(sequence, items)] for sequence in sequences]


def examples(shop, tasks=ALL):
    mixture = Mixture(build_tasks(tasks, shop.catalog, shop.sequences, shop.renderer), tasks, 1, 4, seed=0)
    return [mixture[i] for i in range(0, len(mixture), 3)]


def run(model, loss, batch, keep):
    """Model outputs and the dense loss of one batch, as the trainer takes them."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "items")}
    loss.items = batch["items"]
    if keep:
        inputs["logits_to_keep"] = predicting(batch["labels"])
    with loss.watching(model):
        outputs = model(**inputs, use_cache=False)
    return outputs, loss(batch["labels"])


def targets_by_hand(shop, ids, labels):
    """(position of the first code, item) of each item that is learnt in one example."""
    names = {tuple(tokens): item for item, tokens in reversed([*enumerate(shop.renderer_tokens)])}
    found = []
    for start in range(1, len(ids) - 1):
        if labels[start] != IGNORE and labels[start + 1] != IGNORE:
            item = names.get((int(ids[start]), int(ids[start + 1])))
            if item is not None:
                found.append((start, item))
    return found


@pytest.fixture
def shop(shop):
    shop.renderer_tokens = [tuple(tokens) for tokens in shop.vocabulary.token_ids(shop.codes).tolist()]
    return shop


def by_hand(shop, head, batch, known):
    """The loss of a padded batch: a plain forward pass per example, each item and depth by itself."""
    known, total, items = sorted(known), 0.0, 0
    table = torch.from_numpy(vectors()[known])
    places = torch.nn.functional.normalize(head.straight(table) + head.item(table), dim=1)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        hidden = shop.model.base_model(input_ids=ids[None]).last_hidden_state[0]
        for start, item in targets_by_hand(shop, ids.tolist(), labels.tolist()):
            if item not in known:
                continue
            items += 1
            for at in (start - 1, start):
                query = head.query(hidden[at])
                cosines = places @ query / query.norm()
                total = total + torch.nn.functional.cross_entropy(
                    cosines[None] / TEMPERATURE, torch.tensor([known.index(item)]), reduction="sum"
                )
    return total / 2, items


@pytest.mark.parametrize("keep", [True, False], ids=["needed logits", "all logits"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_loss_is_that_of_a_loop_over_examples(shop, packed, keep):
    cold = [4, 7, 12]
    sequences = without(shop.sequences, cold)
    known = set(np.concatenate(sequences).tolist())
    assert 10 < len(known) < 20
    head, model = head_of(shop), shop.model.eval()
    loss = DenseLoss(head, 2, vectors(), sequences)
    batch = Collator(shop.renderer, 160, packed, with_items=True)(examples(shop))
    padded = Collator(shop.renderer, 160, with_items=True)(examples(shop))
    expected, items = by_hand(shop, head, padded, known)
    rows = zip(padded["input_ids"].tolist(), padded["labels"].tolist(), strict=True)
    assert 20 < items < sum(len(targets_by_hand(shop, ids, labels)) for ids, labels in rows)
    _, total = run(model, loss, batch, keep)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-3)
    ours = torch.autograd.grad(total, [*head.parameters(), *model.parameters()], allow_unused=True)
    theirs = torch.autograd.grad(expected, [*head.parameters(), *model.parameters()], allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=CURVES, atol=1e-4)


def test_items_without_training_events_do_not_compete(shop):
    """Whatever their texts are, the loss is the same."""
    cold, batch = [4, 7], Collator(shop.renderer, 160, with_items=True)(examples(shop))
    totals = []
    for scale in (1, 50):
        table = vectors()
        table[cold] *= -scale
        loss = DenseLoss(head_of(shop), 2, table, without(shop.sequences, cold))
        totals.append(run(shop.model.eval(), loss, batch, True)[1])
    assert torch.equal(*totals)


def test_ids_that_are_cut_off_are_left_out(shop):
    """Contexts that end after an example's last code but one: the others' losses stay."""
    head, chosen = head_of(shop), validation_examples(shop.renderer, data(shop).validation)
    loss = DenseLoss(head, 2, vectors(), shop.sequences)
    lengths = [len(ids) for ids in shop.renderer.encode_prompts([example.prompt for example in chosen])]
    longest = max(lengths) + 2
    whole = Collator(shop.renderer, longest, with_items=True)(chosen)
    cut = Collator(shop.renderer, longest - 1, with_items=True)(chosen)
    stays = [i for i, length in enumerate(lengths) if length + 2 < longest]
    assert 0 < len(stays) < len(chosen)
    shorter = {name: tensor[stays] for name, tensor in whole.items()}
    torch.testing.assert_close(run(shop.model, loss, cut, True)[1], run(shop.model, loss, shorter, True)[1])


def test_items_that_share_an_id_are_told_apart(shop):
    """Each is learnt with its own vector, though their tokens are the same."""
    shop.renderer.item_text[9] = shop.renderer.item_text[2]
    chosen = [Example("Next: ", shop.renderer.item_text[item], ends=False, items=(item,)) for item in (2, 9)]
    loss = DenseLoss(head_of(shop), 2, vectors(), [np.arange(20)])
    batch = Collator(shop.renderer, 160, with_items=True)(chosen)
    assert torch.equal(*batch["input_ids"])
    at, place = loss._targets(batch["items"])
    assert place.tolist() == [2, 2, 9, 9]
    start = batch["items"].argmax(1).tolist()
    width = batch["items"].shape[1]
    assert at.tolist() == [start[0] - 1, start[0], width + start[1] - 1, width + start[1]]
    late = DenseLoss(head_of(shop), 2, vectors(), without([np.arange(20)], [2]))
    assert len(late._targets(batch["items"])[1]) == 2, "an item without training events is no target"


def test_ids_of_one_code_have_one_place(shop):
    """The mean over the depths is over those that there are."""
    loss = DenseLoss(head_of(shop), 1, vectors(), [np.arange(20)])
    loss.items = torch.tensor([[-1, 3, -1]])
    labels = torch.tensor([[IGNORE, int(shop.vocabulary.ids[0][3]), 5]])
    hidden = torch.randn(1, 3, 32)
    loss._hidden = hidden
    with torch.no_grad():
        scores = loss.head.queries(hidden[0, :1]) @ loss.head.items(loss.texts).T / TEMPERATURE
        torch.testing.assert_close(loss(labels), -scores.log_softmax(1)[0, 3])


def test_an_own_vector_is_added_to_the_text(shop):
    """With vectors of their own the items are found at normalize(text + own); without dropout all have theirs."""
    own = np.random.default_rng(8).normal(size=(20, 8)).astype(np.float32)
    loss = DenseLoss(head_of(shop), 1, vectors(), without([np.arange(20)], [4]), own)
    loss.items, labels = torch.tensor([[-1, 3, -1]]), torch.tensor([[IGNORE, int(shop.vocabulary.ids[0][3]), 5]])
    loss._hidden = torch.randn(1, 3, 32)
    known = np.delete(np.arange(20), 4)
    table, head = torch.from_numpy(vectors()[known]), loss.head
    with torch.no_grad():
        places = head.straight(table) + head.item(table) + torch.from_numpy(own[known])
        scores = head.queries(loss._hidden[0, :1]) @ torch.nn.functional.normalize(places, dim=1).T / TEMPERATURE
        torch.testing.assert_close(loss(labels), -scores.log_softmax(1)[0, 3])
        index = loss.index()
        torch.testing.assert_close(index.vectors[known], torch.nn.functional.normalize(places, dim=1))
        kept = head.items(torch.from_numpy(vectors()[4]), torch.from_numpy(own[4]))
        torch.testing.assert_close(index.vectors[4], kept)  # an item that does not compete keeps the vector that it had


def test_a_share_of_the_items_competes_without_its_own_vector(shop):
    own = np.full((20, 8), 100, np.float32)  # so large that all items with their own vectors are the same
    loss = DenseLoss(head_of(shop), 1, vectors(), [np.arange(20)], own, vector_dropout=0.3)
    loss.items, labels = torch.tensor([[-1, 3, -1]]), torch.tensor([[IGNORE, int(shop.vocabulary.ids[0][3]), 5]])
    loss._hidden = torch.randn(1, 3, 32)
    torch.manual_seed(0)
    without_own = 0
    for _ in range(200):
        loss.zero_grad()
        loss(labels).backward()
        assert loss.own is not None
        assert loss.own.grad is not None
        without_own += int((loss.own.grad.abs().sum(1) == 0).sum())
    assert 0.25 < without_own / (200 * 20) < 0.35


def test_a_sample_of_the_items_competes_and_so_do_the_targets(shop):
    config = TrainConfig(dense=DenseConfig(weight=1, dim=8, item_vectors=True, vector_dropout=0.0, competing=6))
    loss = dense_loss(shop.model, vectors(), [np.arange(20)], 1, config)
    loss.items, labels = torch.tensor([[-1, 3, -1]]), torch.tensor([[IGNORE, int(shop.vocabulary.ids[0][3]), 5]])
    loss._hidden = torch.randn(1, 3, 32)
    torch.manual_seed(0)
    competed = np.zeros(20)
    for _ in range(200):
        loss.zero_grad()
        loss(labels).backward()
        here = (loss.own.grad.abs().sum(1) > 0).numpy()
        assert here[3]
        assert 2 <= here.sum() <= 7
        competed += here
    np.testing.assert_allclose(np.delete(competed, 3) / 200, 1 - 0.95**6, atol=0.12)


def test_own_vectors_find_what_the_texts_cannot_tell(make_shop, tmp_path):
    """Items that all have the same text: only a head with vectors of their own learns which is next."""
    same = np.ones((20, TEXT), np.float32)
    cycles = [(start + np.arange(5)) % 19 for start in range(19)]  # each item follows the one before; item 19 is cold

    def trained(config, folder):
        shop = make_shop()
        data = TrainingData(shop.catalog, cycles, vectors=same)
        _, dense = finetune(shop.model, shop.renderer, data, TASKS, config, folder)
        return dense, log(folder, "loss")[-1]

    plain = replace(FULL, epochs=20, dropout=0.0, learning_rate=5e-3)
    texts, loss = trained(plain, tmp_path / "texts")
    both, lower = trained(replace(plain, dense=replace(OWN.dense, vector_dropout=0.0)), tmp_path / "own")
    assert texts.own is None
    assert torch.allclose(texts.vectors, texts.vectors[:1])
    assert lower < loss - 1
    assert (both.own[:19].abs().sum(1) > 0).all()
    assert (both.own[19] == 0).all()


def test_eight_batches_of_one_are_one_of_eight(shop):
    head, model = head_of(shop), shop.model.eval()
    loss = DenseLoss(head, 2, vectors(), shop.sequences)
    total = Objective(loss.train(), 0.7)
    chosen = examples(shop)[:8]
    learnt = sum(
        int((Collator(shop.renderer, 160, with_items=True)([each])["labels"] != IGNORE).sum()) for each in chosen
    )
    gradients, values = [], []
    for size in (8, 1):
        model.zero_grad()
        head.zero_grad()
        value = 0.0
        for start in range(0, 8, size):
            batch = Collator(shop.renderer, 160, packed=True, with_items=True)(chosen[start : start + size])
            outputs, _ = run(model, loss, batch, True)
            part = total(outputs, batch["labels"], learnt)
            part.backward()
            value += part.item()
        gradients.append([p.grad.clone() for p in [*head.parameters(), *model.parameters()]])
        values.append(value)
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    for one, eight in zip(*gradients, strict=True):
        torch.testing.assert_close(one, eight, rtol=CURVES, atol=1e-5)


def test_the_objective_is_the_answers_loss_and_the_mean_of_the_items(shop):
    """A batch whose labels are all items': the dense part counts as often as an item is learnt."""
    head = head_of(shop)
    loss = DenseLoss(head, 2, vectors(), [np.arange(20)])
    batch = Collator(shop.renderer, 160, with_items=True)(validation_examples(shop.renderer, data(shop).validation))
    outputs, dense = run(shop.model.eval(), loss, batch, True)
    answers = answer_loss(outputs, batch["labels"])
    items = len(batch["labels"])
    given = Objective(loss.train(), 0.7)(outputs, batch["labels"])
    torch.testing.assert_close(given, answers + 0.7 * dense / items)
    assert torch.equal(Objective(loss.eval(), 0.7)(outputs, batch["labels"]), answers)
    assert torch.equal(Objective()(outputs, batch["labels"]), answers)


def data(shop, validation=True):
    histories = [sequence for sequence in shop.sequences if len(sequence) > 2]
    targets = np.array([sequence[0] for sequence in histories], dtype=np.int32)
    cases = EvalExamples(np.arange(len(histories), dtype=np.int32), histories, targets)
    return TrainingData(shop.catalog, shop.sequences, cases if validation else None, vectors=vectors())


def train(shop, config, folder, validation=True):
    return finetune(shop.model, shop.renderer, data(shop, validation), TASKS, config, folder)


def log(folder, key):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def learnt(index):
    """What is trained of a dense index, by the names of the checkpoint."""
    own = {} if index.own is None else {"own": index.own}
    return {f"head.{name}": tensor for name, tensor in state(index.head).items()} | own


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def loss_of(shop, model, head) -> float:
    """Mean over the items learnt in the sequential examples."""
    loss = DenseLoss(head, 2, vectors(), shop.sequences)
    batch = Collator(shop.renderer, 160, with_items=True)(examples(shop, replace(ALL, mixture={"sequential": 1.0})))
    with torch.no_grad():
        total = run(model.eval(), loss, batch, False)[1]
    return float(total) / len(loss._targets(batch["items"])[0]) * 2


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_the_head_learns_with_the_model(make_shop, tmp_path, config):
    config = replace(config, epochs=15, dropout=0.0)
    shop = make_shop()
    model, dense = train(shop, config, tmp_path)
    assert dense is not None
    untrained = make_shop()
    before = loss_of(untrained, untrained.model, head_of(untrained))
    assert loss_of(shop, model, dense.head) < 0.6 * before
    assert log(tmp_path, "loss")[-1] < 0.75 * log(tmp_path, "loss")[0]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not hasattr(model, "dense_loss")


def test_no_weight_no_head(shop, tmp_path):
    config = replace(FULL, epochs=1, dense=DenseConfig(weight=0.0))
    assert train(shop, config, tmp_path)[1] is None
    assert not list(tmp_path.glob(f"checkpoint-*/{HEAD}"))


@pytest.mark.parametrize(
    "config",
    [FULL, LORA, replace(FULL, rows_first=0.5), OWN],
    ids=["full", "lora", "full, rows first", "item vectors"],
)
def test_resumed_run_equals_undisturbed_run(make_shop, tmp_path, power_cut, config):
    model, dense = train(make_shop(), config, tmp_path / "one")
    for stop in (24, 80):
        with power_cut(stop), pytest.raises(RuntimeError, match="power cut"):
            train(make_shop(), config, tmp_path / "two")
    assert last_checkpoint(tmp_path / "two") is not None
    again, resumed = train(make_shop(), config, tmp_path / "two")
    assert_same(learnt(resumed), learnt(dense))
    assert_same(state(again), state(model))
    for name in ("loss", "eval_loss"):
        assert log(tmp_path / "two", name) == log(tmp_path / "one", name)
    finished, unchanged = train(make_shop(), config, tmp_path / "two")
    assert_same(learnt(unchanged), learnt(dense))
    assert_same(state(finished), state(model))


def overfit(**changes):
    """The validation targets contradict what is learnt, so that their loss turns upwards soon."""
    return replace(FULL, epochs=30, evaluations=30, learning_rate=2e-2, dropout=0.0, patience=2, **changes)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_patience_keeps_the_best_head_and_validation_is_without_it(make_shop, tmp_path, method):
    shop = make_shop()
    model, dense = train(shop, overfit(method=method), tmp_path)
    losses = log(tmp_path, "eval_loss")
    assert len(losses) < 30
    last = last_checkpoint(tmp_path)
    best = json.loads((last / "trainer_state.json").read_text())["best_model_checkpoint"].rsplit("/", 1)[1]
    assert best != last.name
    kept, final = (load_file(tmp_path / name / HEAD) for name in (best, last.name))
    assert_same(learnt(dense), kept)
    assert not torch.equal(final["head.query.weight"], kept["head.query.weight"])
    batch = Collator(shop.renderer, 160, with_items=True)(
        validation_examples(shop.renderer, data(shop).validation.sample(8, 0))
    )
    labels = batch.pop("labels")
    del batch["items"]
    with torch.inference_mode():
        assert answer_loss(model(**batch), labels).item() == pytest.approx(min(losses), abs=1e-4)
    # A run that is over comes back with the same, though its last checkpoint is another.
    again = train(make_shop(), overfit(method=method), tmp_path)
    assert_same(learnt(again[1]), kept)
    assert_same(state(again[0]), state(model))
    assert log(tmp_path, "eval_loss") == losses


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_the_saved_model_knows_nothing_of_the_head(make_shop, tmp_path, config, tied):
    from transformers import AutoModelForCausalLM

    model, _ = train(make_shop(tied), replace(config, epochs=1), tmp_path / "run", validation=False)
    if config.method == "lora":
        model.save_pretrained(tmp_path / "adapter")
        assert not [name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "dense" in name]
        model = model.merge_and_unload()
    model.save_pretrained(tmp_path / "model")
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if "dense" in name]
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert_same(state(loaded), state(model))


def test_the_first_steps_for_the_rows_alone_train_no_head(shop, tmp_path):
    train(shop, replace(FULL, epochs=2, rows_first=0.5), tmp_path, validation=False)
    assert not list((tmp_path / "rows").glob(f"checkpoint-*/{HEAD}"))
    assert (last_checkpoint(tmp_path) / HEAD).exists()


def test_runs_with_bfloat16_and_gradient_checkpointing(shop, tmp_path):
    config = replace(FULL, epochs=1, dtype="bfloat16", gradient_checkpointing=True)
    _, dense = train(shop, config, tmp_path)
    assert {p.dtype for p in dense.head.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in dense.head.parameters())
    assert np.isfinite(log(tmp_path, "loss")).all()


def test_an_adapter_on_a_base_in_bfloat16_trains_a_head_in_float32(shop, tmp_path):
    shop.model.to(torch.bfloat16)
    _, dense = train(shop, replace(LORA, epochs=1, dtype="bfloat16", dense=OWN.dense), tmp_path)
    assert dense.vectors.dtype == dense.own.dtype == torch.float32
    assert {p.dtype for p in dense.head.parameters()} == {torch.float32}
    assert np.isfinite(log(tmp_path, "loss")).all()


def test_a_head_without_vectors_is_refused(shop, tmp_path):
    with pytest.raises(UserError, match=r"train\.dense\.weight 1\.0 trains a dense head on text vectors") as caught:
        finetune(shop.model, shop.renderer, TrainingData(shop.catalog, shop.sequences), TASKS, FULL, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"vector_dropout": 1.5}, r"vector_dropout 1\.5: expected"),
        ({"weight": -1.0}, r"weight -1\.0: expected at least 0"),
        ({"dim": 0}, "dim 0: expected at least 1"),
    ],
)
def test_config_refuses(wrong, said):
    with pytest.raises(UserError, match=rf"train\.dense\.{said}"):
        DenseConfig(**wrong)
