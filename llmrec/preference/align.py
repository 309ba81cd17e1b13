"""The loop of preference alignment, its guards and its checkpoints.

A small loop of our own and not trl's DPOTrainer and GRPOTrainer, because those

- score an answer by a softmax over the whole vocabulary, while decoding compares items by a softmax over the codes that
  lead to an item;
- read the prompt again for each answer, while the items of a prompt share one forward pass here;
- have one rejected answer per prompt (DPO), and generate from text prompts on their own (GRPO): a group without equal
  items, drawn without replacement from a trie, would have to replace their generation.

Guards: each evaluation ranks a sample of validation events with the decoder that serves. The model that is kept is the
one with the largest `best_by` among those whose recall@50 has not fallen by more than `recall_lost`, and which has
risen by more than chance (`margin`); without such a model, that before the alignment. A picture shows all evaluations.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from scipy.stats import norm
from torch import nn

from llmrec.atomic import write_bytes, write_file, write_text
from llmrec.collaborative.base import ndcg
from llmrec.collaborative.lists import beyond_accuracy
from llmrec.console import get_logger, progress_bar
from llmrec.data import EvalExamples
from llmrec.data.files import read_stored
from llmrec.decode.filters import Filter
from llmrec.decode.search import NotNumbersError
from llmrec.errors import UserError
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.losses import k3
from llmrec.preference.objectives import Material, Objective
from llmrec.preference.picture import save_picture
from llmrec.preference.rewards import Reward
from llmrec.preference.sessions import make_objective

log = get_logger(__name__)

START, LAST, BEST = "start.safetensors", "checkpoint.safetensors", "best.safetensors"
PICTURE, RANKS = "guards.png", "per_user.parquet"
LISTED = 50
"""Length of the lists of an evaluation."""
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall@10": lambda ranks: (ranks <= 10).astype(float),
    "recall@50": lambda ranks: (ranks <= LISTED).astype(float),
    "ndcg@10": lambda ranks: ndcg(ranks, 10),
}
"""Name -> function of the targets' ranks, float64 [n] (inf for one that is not listed), with one value per case."""
WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""
MAX_GRAD_NORM = 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Where an alignment stands; a checkpoint holds it.

    Attributes:
        step: finished optimizer steps.
        lines: of log.jsonl, one per evaluation.
        best: number of the step whose model is the best so far.
        waited: evaluations since then.
        loss: sum of the loss since the last evaluation.
    """

    step: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    waited: int = 0
    loss: float = 0.0


@dataclass(frozen=True)
class Validation:
    """The events on which the guards look.

    Attributes:
        cases: n cases.
        prompts: n token ids.
        n_users: users with training events.
        users: ids of all users.
    """

    cases: EvalExamples
    prompts: Sequence[Sequence[int]]
    n_users: int
    users: Sequence[str]


def align(material: Material, validation: Validation | None, folder: Path, reward: Reward | None = None) -> Progress:
    """Align the model of `material` in place; resume from the checkpoint in `folder` if there is one.

    Args:
        material: the model, the examples and the configuration.
        validation: None: no guard, the last model is kept.
        folder: for checkpoints, pairs, log.jsonl, per_user.parquet and the picture of the guards.
        reward: replaces the configured reward of method grpo.

    Raises:
        UserError: there is no example; the folder holds another alignment; the reward fails; the learning rate is so
            large that the loss or a score is not a finite number.
    """
    config, state = material.config, PartialState()
    if not len(material.examples):
        raise UserError("Nothing to align on: no user has two different training items; lower --data.user_core.")
    batches = _batches(len(material.examples), config, state.num_processes)
    steps, every = len(batches), math.ceil(len(batches) / config.evaluations)
    every = math.ceil(every / config.updates) * config.updates  # a checkpoint stands between two draws
    own = {"config": asdict(config), "learns_from": _digest(material, validation), "processes": state.num_processes}
    optimizer = torch.optim.AdamW(material.trained.values(), config.learning_rate, weight_decay=0.0)
    progress = _open(folder, own, material, optimizer)
    objective = make_objective(material, reward, folder, steps)
    state.wait_for_everyone()
    if not progress.lines:
        _evaluate(material, validation, objective, progress, optimizer, folder, own)
    bar = progress_bar("align", steps, progress.step, "steps")
    try:
        while progress.step < steps and not (config.patience and progress.waited >= config.patience):
            step = progress.step
            _step(material, objective, optimizer, progress, batches[step : step + config.updates], _rate(step, steps))
            progress.step += 1
            bar.advance()
            if progress.step % every == 0 or progress.step == steps:
                _evaluate(material, validation, objective, progress, optimizer, folder, own)
    except (NotNumbersError, FloatingPointError) as error:
        raise UserError(
            f"--preference.learning_rate {config.learning_rate}: after {progress.step} steps {error}; lower it."
        ) from None
    finally:
        bar.close()
    if validation is not None:
        _restore(material.trained, load_file(folder / BEST) if progress.best else material.start)
        _tell(progress)
        if state.is_main_process:
            least = (1 - config.recall_lost) * progress.lines[0]["recall@50"]
            save_picture(progress.lines, progress.best, least, folder / PICTURE)
    return progress


def _batches(n: int, config: PreferenceConfig, processes: int) -> list[np.ndarray]:
    """The examples of each optimizer step over all processes. An incomplete last step is left out, unless it is the
    only one."""
    orders = [np.random.default_rng((config.seed, epoch)).permutation(n) for epoch in range(config.epochs)]
    order, size = np.concatenate(orders), config.batch_size * processes
    whole = len(order) // size * size or len(order)
    return [order[start : start + size] for start in range(0, whole, size)]


def _rate(step: int, steps: int) -> float:
    """Factor of the peak learning rate at a step: it rises linearly, then falls as a half cosine."""
    rise = max(1, round(WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _step(
    material: Material,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    batches: Sequence[np.ndarray],
    rate: float,
) -> None:
    """One optimizer step on `batches[0]`; the gradient is that of the mean loss over the batches of all processes."""
    config, state = material.config, PartialState()
    shares = [batch[state.process_index :: state.num_processes] for batch in batches]
    objective.begin(progress.step, shares)
    total = torch.zeros((), device=material.policy.device)
    for rows in np.array_split(shares[0], config.accumulation):
        if len(rows):
            loss = objective.loss(progress.step, rows) / len(batches[0])
            loss.backward()
            total += loss.detach()
    parameters = list(material.trained.values())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if state.num_processes > 1:
            parameter.grad = reduce(parameter.grad, "sum")
    if state.num_processes > 1:
        total = reduce(total, "sum")
    norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    if not math.isfinite(float(total + norm)):
        raise FloatingPointError("the loss or its gradient is not a finite number")
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * rate
    optimizer.step()
    optimizer.zero_grad()
    progress.loss += float(total)


def _evaluate(
    material: Material,
    validation: Validation | None,
    objective: Objective,
    progress: Progress,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    own: Mapping[str, Any],
) -> None:
    """Measure the model, add a line to the log, and write a checkpoint."""
    state, started = PartialState(), time.perf_counter()
    line: dict[str, Any] = {"step": progress.step}
    if progress.lines:
        line["loss"] = progress.loss / (progress.step - progress.lines[-1]["step"])
        line |= objective.remark()
    if validation is not None:
        box: list[dict[str, float] | None] = [None]
        if state.is_main_process:
            figures, ranks = measure(material, validation)
            named = {f"step {progress.step}": ranks}
            table = validation.cases.per_user_table(named, validation.users, material.catalog.ids)
            before = _add_ranks(folder / RANKS, table, progress.step)
            box[0] = figures | {"error": error_of_gain(before, ranks, material.config.best_by)}
        broadcast_object_list(box)
        line |= box[0] or {}
    progress.lines.append(line | {"seconds": round(time.perf_counter() - started, 1)})
    progress.loss = 0.0
    if validation is not None:
        is_best = len(progress.lines) > 1 and better(progress.lines, progress.best, material.config)
        progress.waited = 0 if is_best else progress.waited + (len(progress.lines) > 1)
        progress.best = progress.step if is_best else progress.best
        if is_best and state.is_main_process:
            write_bytes(folder / BEST, save(_copied(material.trained)))
        log.info(
            "step %d: recall@10 %.4f, recall@50 %.4f, ndcg@10 %.4f, kl %.4f",
            *(line[name] for name in ("step", "recall@10", "recall@50", "ndcg@10", "kl")),
        )
    if state.is_main_process:
        _save(folder, own, material, optimizer, progress)
        write_text(folder / "log.jsonl", "".join(json.dumps(each) + "\n" for each in progress.lines))
    state.wait_for_everyone()


def better(lines: Sequence[Mapping[str, Any]], best: int, config: PreferenceConfig) -> bool:
    """Whether the last evaluation is better than that of step `best`: a larger metric `best_by`, which is above the
    first evaluation's by more than `margin` standard errors of the difference, and a recall@50 of at least 1 -
    recall_lost of the first evaluation's."""
    last, first, metric = lines[-1], lines[0], config.best_by
    bar = first[metric] + margin(config.evaluations) * last["error"]
    bar = max(bar, next(line[metric] for line in lines if line["step"] == best))
    return bool(last[metric] > bar and last["recall@50"] >= (1 - config.recall_lost) * first["recall@50"])


def margin(evaluations: int) -> float:
    """Standard errors that the largest of some independent gains without an effect exceeds with a probability of .16: 1
    for one gain, 1.9 for six."""
    return float(norm.ppf(norm.cdf(1) ** (1 / evaluations)))


def error_of_gain(before: np.ndarray, after: np.ndarray, metric: str) -> float:
    """The standard error of the mean difference between two rankings of the same n cases.

    Args:
        before: float64 [n], ranks of the targets, inf where one is not listed.
        after: float64 [n].
        metric: one of `METRICS`.
    """
    gains = METRICS[metric](after) - METRICS[metric](before)
    return float(gains.std() / math.sqrt(len(gains)))


def measure(material: Material, validation: Validation) -> tuple[dict[str, float], np.ndarray]:
    """Recall, NDCG, divergence from the model before the alignment (nats), and what the lists are like.

    Returns:
        These figures, and the ranks of the targets, float64 [n], inf for one that is not among the first `LISTED`.
    """
    cases, policy = validation.cases, material.policy
    filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(cases.histories, cases.targets, strict=True)]
    items = policy.search(validation.prompts, LISTED, filters).items
    hits = items == cases.targets[:, None]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
    seeds = np.random.default_rng(material.config.seed).integers(2**32, size=len(cases))
    drawn = policy.sample(validation.prompts, 1, seeds)
    divergence = 0.0
    for chosen in policy.batches(validation.prompts):
        prompts = [validation.prompts[i] for i in chosen]
        with torch.no_grad():
            now = policy.item_scores(prompts, drawn.items[chosen])
        divergence += float(k3(now, material.reference_scores(prompts, drawn.items[chosen])).sum())
    figures = {
        **{name: float(metric(ranks).mean()) for name, metric in METRICS.items()},
        "kl": divergence / len(cases),
        **beyond_accuracy(items, material.train_counts, validation.n_users, 10),
    }
    return figures, ranks


def _add_ranks(path: Path, found: pl.DataFrame, step: int) -> np.ndarray:
    """Add the ranks of an evaluation to the table of all; a killed run may have written the same step already.

    Returns:
        float64 [n], the ranks of the first evaluation.
    """
    if step:
        old = read_stored(path)
        found = pl.concat([old.filter(pl.col("system") != found["system"][0]), found])
    write_file(path, found.write_parquet)
    return found.filter(pl.col("system") == "step 0")["rank"].cast(pl.Float64).fill_null(float("inf")).to_numpy()


def _tell(progress: Progress) -> None:
    """Say what the alignment has changed."""
    if not progress.best:
        log.warning("No evaluation was better than the model before the alignment, which is kept; see log.jsonl.")
        return
    first, best = progress.lines[0], next(line for line in progress.lines if line["step"] == progress.best)
    names = ("recall@10", "recall@50", "ndcg@10", "coverage@10", "popularity@10")
    changes = ", ".join(f"{name} {first[name]:.4f} -> {best[name]:.4f}" for name in names)
    log.info("The model of step %d is kept: %s", progress.best, changes)


def _copied(trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu().contiguous() for name, parameter in trained.items()}


def _restore(trained: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(values[name])


def _digest(material: Material, validation: Validation | None) -> str:
    """A digest of what an alignment learns from, and of the cases of its guards."""
    examples, cases = material.examples, None if validation is None else validation.cases
    found = hashlib.sha256()
    for part in (
        [examples.preferred, examples.targets],
        examples.histories,
        examples.disliked,
        [] if cases is None else [cases.targets, *cases.histories],
    ):
        found.update(f"{len(part)}|".encode())
        for array in part:
            found.update(f"{len(array)}:".encode() + np.asarray(array, np.int64).tobytes())
    return found.hexdigest()


def _open(folder: Path, own: Mapping[str, Any], material: Material, optimizer: torch.optim.Optimizer) -> Progress:
    """The progress of the checkpoint in `folder`, whose weights and moments are put in place; else a new one.

    `material.start` is read from the folder, where its tensors stay memory-mapped.
    """
    state = PartialState()
    if state.is_main_process and not (folder / START).exists():
        write_bytes(folder / START, save(_copied(material.trained), {"alignment": json.dumps(own)}))
    state.wait_for_everyone()
    kept = _metadata(folder / START).get("alignment")
    material.start = load_file(folder / START)
    same = kept == json.dumps(own) and material.start.keys() == material.trained.keys()
    if not same or any(not torch.equal(material.start[n], p.cpu()) for n, p in material.trained.items()):
        raise UserError(
            f"{folder}: holds the alignment of another model, configuration or log; name another folder, or empty it."
        )
    path = folder / LAST
    if not path.exists():
        return Progress()
    progress, tensors = Progress(**json.loads(_metadata(path)["progress"])), load_file(path)
    log.info("Resuming from step %d", progress.step)
    _restore(material.trained, {name: tensors[f"weight.{name}"] for name in material.trained})
    for name, parameter in material.trained.items() if progress.step else ():
        moments = {kind: tensors[f"{kind}.{name}"].to(parameter.device, copy=True) for kind in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
    return progress


def _save(
    folder: Path, own: Mapping[str, Any], material: Material, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    tensors = {f"weight.{name}": value for name, value in _copied(material.trained).items()}
    for name, parameter in material.trained.items():
        for kind in MOMENTS:
            if progress.step:
                tensors[f"{kind}.{name}"] = optimizer.state[parameter][kind].cpu().contiguous()
    write_bytes(folder / LAST, save(tensors, {"progress": json.dumps(asdict(progress))}))


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a file of an alignment: {error}; move it, or name another folder.") from None
