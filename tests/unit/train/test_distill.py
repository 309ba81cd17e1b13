"""Distillation through the trie: its distributions by brute force, its loss by hand, and tiny fine-tunings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from llmrec.collaborative.config import DistillConfig
from llmrec.collaborative.teacher import Teacher
from llmrec.data.sequences import first_target
from llmrec.errors import UserError
from llmrec.model.adapter import TEMPERATURE, DenseHead
from llmrec.model.config import AdapterConfig, DenseConfig
from llmrec.model.tokens import ItemVocabulary, token_names
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import IGNORE, Collator, Mixture, build_tasks, predicting
from llmrec.train.config import TrainConfig
from llmrec.train.dense import DenseLoss
from llmrec.train.distill import DistillLoss, distill_loss
from llmrec.train.finetune import TrainingData, finetune
from llmrec.train.objective import Objective, answer_loss
from llmrec.train.trainer import last_checkpoint

TASKS = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4, max_text_tokens=12)
FULL = TrainConfig(epochs=4, batch_size=8, evaluations=4, dtype="float32", distill=DistillConfig(weight=0.6, top=5))


def random_scores(n_items: int, scale: float = 1.0):
    rng = np.random.default_rng(5)
    return lambda users, histories: scale * rng.normal(size=(len(users), n_items))


def of_shop(shop, folder: Path, config: DistillConfig = FULL.distill, scores=None) -> Teacher:
    scores = scores or random_scores(len(shop.codes))
    return Teacher.of_scores(scores, shop.sequences, shop.codes[:, 0], config, folder)


# A trie with three levels, in which several items share a semantic ID and some codes have no item.
SIZES, ITEMS = [4, 5, 3], 40
CODES = np.stack([np.random.default_rng(1).integers(0, size - 1, ITEMS) for size in SIZES], axis=1)
NAMES = token_names(SIZES)
VOCABULARY = ItemVocabulary(NAMES, list(np.split(np.arange(50, 50 + sum(SIZES)), np.cumsum(SIZES)[:-1])))
SEQUENCES = [np.random.default_rng(user).permutation(ITEMS)[:6] for user in range(12)]


def of_trie(folder: Path, top: int, scores=None) -> DistillLoss:
    config = DistillConfig(weight=1.0, top=top)
    scores = scores or random_scores(ITEMS, 2.0)
    teacher = Teacher.of_scores(scores, SEQUENCES, CODES[:, 0], config, folder)
    return DistillLoss(teacher, SEQUENCES, CODES, VOCABULARY, 1.0)


def over_items(row: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The teacher's probability of each item, float64 [N], from one row of the file."""
    shares = np.full(len(codes), -1.0)
    shares[row["items"]] = row["shares"]
    for code, rest in enumerate(row["rest"]):
        others = (codes[:, 0] == code) & (shares < 0)
        shares[others] = float(rest) / max(others.sum(), 1)
    return shares


@pytest.mark.parametrize("top", [1, 8, ITEMS])
def test_distributions_are_those_of_a_loop_over_items(tmp_path, top):
    loss = of_trie(tmp_path, top)
    events = np.array([0, 7, 7, 30, 59])
    found = loss.distributions(events)
    for place, event in enumerate(events):
        shares = over_items(loss.teacher.rows[event], CODES)
        assert shares.sum() == pytest.approx(1, abs=2e-3)
        path = CODES[loss.targets[event]]
        for level, size in enumerate(SIZES):
            below = (CODES[:, :level] == path[:level]).all(axis=1)
            expected = [shares[below & (CODES[:, level] == code)].sum() / shares[below].sum() for code in range(size)]
            np.testing.assert_allclose(found[level][place], expected, atol=1e-5)
            assert found[level][place].sum() == pytest.approx(1, abs=1e-5)


def test_a_model_with_the_logits_log_q_has_the_teachers_probabilities(tmp_path):
    """The probability of a semantic ID, by the chain rule, is the sum over the items that have it."""
    loss = of_trie(tmp_path, 8)
    events = np.arange(len(loss.teacher))
    found = loss.distributions(events)
    paths = CODES[loss.targets]
    chain = np.prod([q[events, paths[:, level]].numpy() for level, q in enumerate(found)], axis=0)
    for event in events:
        shares = over_items(loss.teacher.rows[event], CODES)
        same = (paths[event] == CODES).all(axis=1)
        assert chain[event] == pytest.approx(shares[same].sum() / shares.sum(), rel=1e-3)


def certain(sequences):
    """Scores of a teacher that knows each answer."""

    def scores(users, histories):
        found = np.zeros((len(users), ITEMS))
        for row, (user, history) in enumerate(zip(users, histories, strict=True)):
            found[row, sequences[user][len(history)]] = 100.0
        return found

    return scores


def test_a_certain_teacher_gives_the_usual_loss(tmp_path):
    loss = of_trie(tmp_path, 8, certain(SEQUENCES))
    logits = torch.randn(6, 70, requires_grad=True)
    labels = torch.full((1, 7), IGNORE)
    labels[0, 1:] = torch.from_numpy(VOCABULARY.token_ids(CODES[loss.targets[3:5]])).flatten()
    loss.events = torch.full((1, 7), -1)
    loss.events[0, 1], loss.events[0, 4] = 3, 4
    assert loss(logits[:, loss.tokens], labels).item() == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss(logits[:, loss.tokens], labels), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def batch_of(shop, packed: bool, tasks: TasksConfig = TASKS, examples: int | None = None):
    mixture = Mixture(build_tasks(tasks, shop.catalog, shop.sequences, shop.renderer), tasks, 1, 4, seed=0)
    chosen = [mixture[place] for place in range(len(mixture) if examples is None else examples)]
    return Collator(shop.renderer, 160, packed, with_items=True, with_events=True)(chosen)


@pytest.mark.parametrize("supervise", ["every-item", "target"])
def test_events_are_the_numbers_of_the_targets(shop, supervise):
    """Each target of the task sequential once, in all windows of all users; none of other tasks."""
    batch = batch_of(shop, True, replace(TASKS, supervise=supervise))
    targets = np.concatenate([sequence[1:] for sequence in shop.sequences])
    events, items = batch["events"][batch["events"] >= 0], batch["items"][batch["events"] >= 0]
    assert sorted(events.tolist()) == list(range(first_target(shop.sequences)[-1]))
    assert (targets[events] == items.numpy()).all()
    assert (batch["items"] >= 0).sum() > len(events)


@pytest.mark.parametrize("keep", [True, False], ids=["needed logits", "all logits"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_loss_is_that_of_a_loop_over_targets(shop, tmp_path, packed, keep):
    """(1 - w) * cross-entropy of the token + w * cross-entropy of the teacher, at each token of a target."""
    batch, model = batch_of(shop, packed), shop.model.eval()
    teacher = of_shop(shop, tmp_path)
    distill = distill_loss(teacher, shop.sequences, shop.codes, shop.vocabulary, 0.6)
    inputs = {name: each for name, each in batch.items() if name in ("input_ids", "position_ids")}
    logits = model(**inputs).logits
    labels, distill.events = batch["labels"], batch["events"]
    given = CausalLMOutput(logits=logits[predicting(labels)] if keep else logits)
    total = Objective(distill=distill)(given, labels)
    log_p, tokens = logits.log_softmax(-1), int((labels != IGNORE).sum())
    expected = answer_loss(CausalLMOutput(logits=logits), labels) * tokens
    for row, place in (batch["events"] >= 0).nonzero().tolist():
        event = int(batch["events"][row, place])
        shares = over_items(teacher.rows[event], shop.codes)
        path = shop.codes[distill.targets[event]]
        for level, ids in enumerate(shop.vocabulary.ids):
            below = (shop.codes[:, :level] == path[:level]).all(axis=1)
            q = [shares[below & (shop.codes[:, level] == code)].sum() for code in range(len(ids))]
            own = log_p[row, place + level - 1, ids]
            taught = -(torch.tensor(q, dtype=torch.float32) / shares[below].sum() * own).sum()
            expected = expected + 0.6 * (taught + own[path[level]])
    torch.testing.assert_close(total, expected / tokens, rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (total, expected / tokens))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("most", [1000, 4], ids=["all compete", "a sample competes"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_what_the_teacher_adds_to_the_dense_loss_is_that_of_a_loop(shop, tmp_path, packed, most):
    """w * (cross-entropy of the teacher among the competing items - that of the target), at both depths."""
    shop.sequences = [sequence[~np.isin(sequence, [4, 7])] for sequence in shop.sequences]
    shop.sequences = [np.append(sequence, sequence[:1]) for sequence in shop.sequences]  # nothing is said of these
    distill = distill_loss(of_shop(shop, tmp_path), shop.sequences, shop.codes, shop.vocabulary, 0.6)
    batch, model = batch_of(shop, packed, replace(TASKS, mixture={"sequential": 1.0}), 4), shop.model.eval()
    texts = np.random.default_rng(3).normal(size=(len(shop.codes), 12)).astype(np.float32)
    torch.manual_seed(2)
    head = DenseHead(model.config.hidden_size, 12, 8)
    inputs = {name: each for name, each in batch.items() if name in ("input_ids", "position_ids")}
    totals = []
    for share in (0.0, 0.6):
        loss = DenseLoss(head, 2, texts, shop.sequences, distill=distill, share=share, competing=most)
        loss.items, distill.events = batch["items"], batch["events"]
        with loss.watching(model):
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
        torch.manual_seed(7)
        totals.append(loss(batch["labels"]))
    known = np.unique(np.concatenate(shop.sequences))
    if len(known) > most:
        torch.manual_seed(7)
        drawn = known[torch.randint(len(known), (most,))]
        known = np.union1d(drawn, batch["items"][batch["items"] >= 0].numpy())
        assert len(known) < len(np.unique(np.concatenate(shop.sequences)))
    places, expected, silent = head.items(torch.from_numpy(texts[known])), 0.0, 0
    for row, place in (batch["events"] >= 0).nonzero().tolist():
        event = int(batch["events"][row, place])
        target = distill.targets[event]
        q = over_items(distill.teacher.rows[event], shop.codes)[known]
        for depth in range(2):
            q = q * (shop.codes[known, 0] == shop.codes[target, 0]) if depth else q
            log_p = (places @ head.queries(hidden[row, place - 1 + depth]) / TEMPERATURE).log_softmax(0)
            silent += q.sum() <= 1e-6
            if q.sum() > 1e-6:
                taught = -(torch.tensor(q / q.sum(), dtype=torch.float32) * log_p).sum()
                expected = expected + 0.6 * (taught + log_p[known.tolist().index(target)]) / 2
    assert silent
    torch.testing.assert_close(totals[1] - totals[0], expected, rtol=1e-4, atol=1e-3)
    ours = torch.autograd.grad(totals[1] - totals[0], list(head.parameters()))
    theirs = torch.autograd.grad(expected, list(head.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_where_the_teacher_says_nothing_the_loss_is_the_usual_one(shop, tmp_path):
    """The item was in the history before: the teacher gives it no probability."""
    shop.sequences = [np.array([3, 7, 3, 7])]
    teacher = of_shop(shop, tmp_path)
    assert (teacher.rows["shares"].sum(axis=1) > 0).tolist() == [True, False, False]
    distill = DistillLoss(teacher, shop.sequences, shop.codes, shop.vocabulary, 0.5)
    assert [q.sum(dim=1).round().tolist() for q in distill.distributions(np.arange(3))] == [[1, 0, 0], [1, 0, 0]]


TEXTS = np.random.default_rng(3).normal(size=(20, 12)).astype(np.float32)
DENSE = replace(FULL, dense=DenseConfig(weight=1.0, dim=8), distill=replace(FULL.distill, dense_weight=0.5))


def train(shop, folder, teacher, config=FULL):
    data = TrainingData(shop.catalog, shop.sequences, teacher=teacher, vectors=TEXTS)
    return finetune(shop.model, shop.renderer, data, TASKS, config, folder)[0]


@pytest.mark.parametrize(
    "config",
    [FULL, replace(FULL, method="lora", lora=AdapterConfig(rank=4), rows_first=0.5), DENSE],
    ids=["full", "lora, rows first", "dense head"],
)
def test_resumed_run_equals_undisturbed_run(make_shop, tmp_path, power_cut, config):
    teacher = of_shop(make_shop(), tmp_path / "teacher")
    whole = train(make_shop(), tmp_path / "one", teacher, config).state_dict()
    for stop in (24, 80):
        with power_cut(stop), pytest.raises(RuntimeError, match="power cut"):
            train(make_shop(), tmp_path / "two", teacher, config)
    assert last_checkpoint(tmp_path / "two") is not None
    resumed = train(make_shop(), tmp_path / "two", teacher, config).state_dict()
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    other = train(make_shop(), tmp_path / "three", None, replace(config, distill=DistillConfig())).state_dict()
    assert [name for name in whole if not torch.equal(whole[name], other[name])], "the teacher changes the training"


@pytest.mark.parametrize(
    ("distill", "dense", "said"),
    [
        ({"dense_weight": 0.5}, 1.0, r"dense_weight 0\.5 needs experts that teach"),
        ({"weight": 0.5, "dense_weight": 0.5}, 0.0, r"dense_weight 0\.5 teaches a dense head, and there is none"),
        ({"weight": 0.5, "dense_weight": 1.5}, 1.0, r"dense_weight 1\.5: expected a share from 0 to 1"),
    ],
)
def test_config_refuses(distill, dense, said):
    with pytest.raises(UserError, match=rf"train\.distill\.{said}"):
        TrainConfig(dense=DenseConfig(weight=dense), distill=DistillConfig(**distill))


def test_the_teacher_of_the_dense_head_changes_the_training(make_shop, tmp_path):
    """It changes the head; without its weight, the head is that of a distillation of the codes alone."""
    teacher, shop = of_shop(make_shop(), tmp_path / "teacher"), make_shop()
    data = TrainingData(shop.catalog, shop.sequences, teacher=teacher, vectors=TEXTS)
    heads = []
    for weight in (0.0, 0.5):
        config = replace(DENSE, distill=replace(DENSE.distill, dense_weight=weight))
        shop = make_shop()
        index = finetune(shop.model, shop.renderer, data, TASKS, config, tmp_path / str(weight))[1]
        heads.append(index.head.state_dict())
    assert [name for name in heads[0] if not torch.equal(heads[0][name], heads[1][name])]


def test_a_distillation_needs_its_own_teacher(shop, tmp_path):
    with pytest.raises(UserError, match=r"train\.distill\.weight 0\.6 needs a teacher; pass teacher=") as error:
        train(shop, tmp_path / "run", None)
    assert "\n" not in str(error.value)
    teacher = of_shop(shop, tmp_path / "teacher")
    shop.sequences = shop.sequences[1:]
    with pytest.raises(UserError, match="made for another log"):
        train(shop, tmp_path / "run", teacher)


def walk(rng, after: np.ndarray, length: int) -> np.ndarray:
    """Items drawn one after the other by the row of `after` of the last one, without those taken before."""
    taken = [int(rng.integers(len(after)))]
    while len(taken) < length:
        chances = after[taken[-1]].copy()
        chances[taken] = 0
        taken.append(int(rng.choice(len(after), p=chances / chances.sum())))
    return np.array(taken, np.int32)


def planted(shop, after: np.ndarray, folder: Path, seed: int, weight: float):
    """A batch of walks by the table `after`, and the distillation by the table itself."""
    rng = np.random.default_rng(seed)
    shop.sequences = [walk(rng, after, 5) for _ in range(20)]

    def scores(users, histories):
        return np.log(after[[history[-1] for history in histories]])

    teacher = of_shop(shop, folder, DistillConfig(top=20), scores)
    distill = DistillLoss(teacher, shop.sequences, shop.codes, shop.vocabulary, weight)
    batch = batch_of(shop, True, TasksConfig(mixture={"sequential": 1.0}, max_history=4))
    distill.events = batch["events"]
    return distill, batch


def divergence(model, distill, batch) -> float:
    """Mean over the targets of KL(teacher, model), summed over the levels on their paths, among the level's codes."""
    at = (batch["events"] >= 0).nonzero()
    events = batch["events"][at[:, 0], at[:, 1]].numpy()
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    total, levels = 0.0, distill.tokens.split(distill.trie.level_sizes)
    for level, (q, ids) in enumerate(zip(distill.distributions(events), levels, strict=True)):
        log_p = logits[at[:, 0], at[:, 1] + level - 1][:, ids].log_softmax(-1)
        total += float((torch.xlogy(q, q) - q * log_p).sum(1).mean())
    return total


def test_with_the_true_distribution_as_teacher_the_student_is_nearer_to_it(make_shop, tmp_path):
    """A planted shop: users walk by a known table. Same examples, same steps, with the teacher and without."""
    after = np.random.default_rng(3).dirichlet(np.full(20, 0.3), 5)[np.arange(20) % 5] + 1e-4
    away = {}
    for weight in (0.0, 0.8):
        shop = make_shop()
        distill, batch = planted(shop, after, tmp_path / f"learnt {weight}", 0, weight)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        loss, optimizer = Objective(distill=distill), torch.optim.AdamW(shop.model.parameters(), 1e-2)
        for _ in range(50):
            optimizer.zero_grad()
            loss(shop.model(**inputs), batch["labels"]).backward()
            optimizer.step()
        away[weight] = divergence(shop.model, *planted(shop, after, tmp_path / f"new {weight}", 1, weight))
    assert away[0.8] < 0.8 * away[0.0]
