"""The level at which the model loses warm and cold targets: its score of each true code after the true codes before it.

For TIGER (arXiv 2305.05065) this is known: a reproduction found log-probabilities of -5.1, -7.9 and -12.5 per code for
unseen items, against -5.2, -4.0 and -.5 for seen items.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmrec.collaborative.fusion import bonus_limits, frontier_of
from llmrec.console import markdown, plain, track
from llmrec.data.sequences import EvalExamples
from llmrec.decode.calibrate import gather
from llmrec.decode.context import ItemHead
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import interval, ranks_from_lists
from llmrec.evaluation.protocol import Metrics, warm_cold_slices
from llmrec.index.trie import ItemTrie
from llmrec.model.forward import answer_states
from llmrec.recommender.recommender import Recommender

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Diagnosis = dict[str, Any]
"""The content of diagnosis.json: `protocol`, and `targets` -> `warm` or `cold` -> figure -> one number per level."""


AT = 10
"""The k of recall@k."""


RESAMPLES = 1000
"""Number of bootstrap resamples for each interval."""


EXPLANATION = f"""One line per level of the semantic ID, after the user's history and the true codes before it.

- log p: mean log-probability of the true code among the model's whole vocabulary.
- rank: median place of the true code among the level's codes.
- seen: share of the targets that have their codes up to this level in common with an item with training events.
- recall@{AT}: of the beam search restricted to the items with the true codes before; on level 1 the ordinary one.
- chance: the same recall of a random order of these items.

Brackets are bootstrap 95% intervals over users."""


def diagnose(
    recommender: Recommender, cases: EvalExamples, train_counts: np.ndarray, settings: EvaluateConfig
) -> Diagnosis:
    """Measure at each level how the model scores the codes of warm and of cold targets.

    Args:
        recommender: the recommender to diagnose. Only its beam search is measured, also if another ranking is set.
        cases: histories and targets.
        train_counts: int [N], training events of each item; a target without training events is cold.
        settings: `diagnose` is the maximum number of cases of each kind, `seed` is for their sample and the bootstrap,
            and `filter_seen` says whether the items of a history are left out.

    Returns:
        Ready for JSON. `targets` has `warm` and `cold`, if there are such targets. Each has the numbers of `users` and
        `targets`, and one number per level of `log_probability`, `code_rank` (median), `prefix_seen`, `recall@10` and
        `chance`. The means `log_probability`, `prefix_seen` and `recall@10` also have an interval, `<name>_ci`.

    Raises:
        UserError: `decode.constraint` is not `trie`, so the search may return codes of no item.
    """
    ranker = recommender.ranker
    config = ranker.search.config
    if config.constraint != "trie":
        raise UserError(
            f"--decode.constraint {config.constraint}: a diagnosis forces codes of real items; set it to trie, or "
            "--evaluate.diagnose to 0."
        )
    slices = warm_cold_slices(cases, train_counts)
    targets = {}
    for kind in ("warm", "cold"):
        if slices[kind].any():
            chosen = cases.where(slices[kind]).sample(settings.diagnose, settings.seed)
            targets[kind] = _group(ranker, chosen, train_counts, settings.seed, settings.filter_seen)
    protocol = {
        "levels": ranker.search.trie.levels,
        "level_sizes": ranker.search.trie.level_sizes,
        "items": len(train_counts),
        "cold_items": int((train_counts == 0).sum()),
        "beams": max(config.beams, AT),
        "scoring": config.scoring,
        "filter_seen": settings.filter_seen,
        "bootstrap": RESAMPLES,
        "seed": settings.seed,
    }
    return {"protocol": protocol, "targets": targets}


def write_diagnosis(diagnosis: Diagnosis, directory: str | Path) -> None:
    """Write diagnosis.json, diagnosis.md and diagnosis.png into an existing directory."""
    directory = Path(directory)
    text = json.dumps(diagnosis, indent=2, allow_nan=False)
    (directory / "diagnosis.json").write_text(text + "\n", encoding="utf-8")
    parts = ["# Where targets get lost", EXPLANATION, markdown(_rows(diagnosis))]
    parts.append("![log-probability, seen prefixes and recall by level](diagnosis.png)")
    (directory / "diagnosis.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    save_picture(diagnosis, directory / "diagnosis.png")


def table(diagnosis: Diagnosis) -> str:
    """Plain text for a terminal: one line per kind of target and level."""
    return plain(_rows(diagnosis))


def _rows(diagnosis: Diagnosis) -> list[list[str]]:
    """A header row, and one row of cells per kind of target and level."""
    sizes = diagnosis["protocol"]["level_sizes"]
    rows = [["targets", "level", "log p", "rank", "seen", f"recall@{AT}", "chance", "users", "their targets"]]
    for kind, group in diagnosis["targets"].items():
        rows += [
            [
                kind,
                str(level + 1),
                _mean(group, "log_probability", level, 2),
                f"{group['code_rank'][level]:g} of {size}",
                _mean(group, "prefix_seen", level, 3),
                _mean(group, f"recall@{AT}", level, 4),
                f"{group['chance'][level]:.4f}",
                f"{group['users']:,}",
                f"{group['targets']:,}",
            ]
            for level, size in enumerate(sizes)
        ]
    return rows


def _mean(group: dict[str, Any], name: str, level: int, digits: int) -> str:
    """A mean with its interval, as text."""
    low, high = group[f"{name}_ci"][level]
    return f"{group[name][level]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _group(
    ranker: ItemRanker, cases: EvalExamples, train_counts: np.ndarray, seed: int, filter_seen: bool
) -> dict[str, int | list[Any]]:
    """The figures of one kind of target, as in `diagnose`."""
    own, place = forced_codes(ranker, cases)
    found, chance = forced_recall(ranker, cases, filter_seen)
    group: dict[str, int | list[Any]] = {"users": len(np.unique(cases.users)), "targets": len(cases)}
    for name, values in (
        ("log_probability", own),
        ("prefix_seen", seen_prefixes(ranker, cases.targets, train_counts)),
        (f"recall@{AT}", found),
    ):
        group[name] = values.mean(axis=0, dtype=np.float64).tolist()
        columns = values.T.astype(np.float64)
        group[f"{name}_ci"] = [list(interval(column, RESAMPLES, seed, cases.users)) for column in columns]
    group["code_rank"] = np.median(place, axis=0).tolist()
    group["chance"] = chance.mean(axis=0).tolist()
    return group


@torch.inference_mode()
def forced_codes(ranker: ItemRanker, cases: EvalExamples) -> tuple[np.ndarray, np.ndarray]:
    """How the model scores each code of the n targets after the history and the true codes before it.

    Returns:
        The log-probability of the code among the whole vocabulary, float32 [n, L]; and its rank among the
        level's codes, int64 [n, L], from 1. A code with the same score ranks before it.
    """
    search, vocabulary = ranker.search, ranker.renderer.vocabulary
    head = ItemHead(search.model, vocabulary, "vocab", search.dtype)
    codes = ranker.renderer.codes[cases.targets]
    own, place = np.empty(codes.shape, np.float32), np.empty(codes.shape, np.int64)
    size = search.config.batch_size
    for start in track(range(0, len(cases), size), "forcing codes", unit="users"):
        here = slice(start, start + size)
        prompts = [ranker.prompt_ids(history) for history in cases.histories[here]]
        tokens = vocabulary.token_ids(codes[here])
        before = torch.from_numpy(tokens[:, :-1]).to(search.device)
        with torch.autocast(search.device.type, search.dtype, enabled=search.dtype != torch.float32):
            hidden = answer_states(search.model, prompts, before, search.pad_token_id)
        rows = torch.arange(len(prompts))
        for level in range(codes.shape[1]):
            scores = head.level(hidden[:, level], level)
            target = scores[rows, torch.from_numpy(codes[here, level].astype(np.int64))]
            own[here, level] = target.cpu().numpy()
            place[here, level] = (scores >= target[:, None]).sum(dim=1).cpu().numpy()
    return own, place


def seen_prefixes(ranker: ItemRanker, targets: np.ndarray, train_counts: np.ndarray) -> np.ndarray:
    """Whether some warm item begins with the first l codes of each target, l = 1..L: bool [n, L]."""
    codes = ranker.renderer.codes
    trie = ItemTrie.build(codes[train_counts > 0], ranker.search.trie.level_sizes)
    nodes = torch.zeros(len(targets), dtype=torch.int64)
    seen = []
    for level, column in enumerate(codes[targets].T):
        nodes = trie.step(level, nodes, torch.from_numpy(column.astype(np.int64)))
        seen.append((nodes >= 0).numpy())
    return np.stack(seen, axis=1)


def forced_recall(ranker: ItemRanker, cases: EvalExamples, filter_seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Whether each target is in the first `AT` of a beam search over the items with its first l codes, l = 0..L-1.

    Returns:
        Hits, bool [n, L]; and the probability of a hit if these items are in random order, float64 [n, L].
    """
    search, codes = ranker.search, ranker.renderer.codes
    found = np.empty((len(cases), codes.shape[1]), bool)
    chance = np.empty(found.shape)
    depth = max(AT, search.config.beams)
    requests = [ranker.prompt_ids(history) for history in cases.histories]
    batches = list(search.batches(requests))
    for batch in track(batches, "forcing prefixes", unit="batches"):
        prefilled = search.prefill([requests[row] for row in batch])
        for level in range(codes.shape[1]):
            filters = []
            for row in batch:
                target = cases.targets[row]
                begins = (codes[:, :level] == codes[target, :level]).all(axis=1)
                if filter_seen:
                    begins[np.setdiff1d(cases.histories[row], target)] = False
                filters.append(Filter.of_mask(begins))
                chance[row, level] = min(1.0, AT / np.count_nonzero(begins))
            ranking = search.rank(prefilled, depth, filters)
            found[batch, level] = ranks_from_lists(ranking.items, ranking.scores, cases.targets[batch]) <= AT
    return found, chance


COLOURS = {"warm": "tab:orange", "cold": "tab:blue"}


PANELS = {
    "log_probability": "log-probability of the true code",
    "prefix_seen": "codes so far seen in training",
    "recall@10": "recall@10, earlier codes given (dotted: chance)",
}


def save_picture(diagnosis: dict[str, Any], path: Path) -> None:
    """Draw a diagnosis (see `diagnose`) as a PNG; the dotted lines in the last panel are a random order."""
    from matplotlib.figure import Figure

    levels = np.arange(1, diagnosis["protocol"]["levels"] + 1)
    figure = Figure(figsize=(11, 3.4), layout="constrained")  # draws with Agg, no display
    panels: list[Axes] = list(figure.subplots(1, len(PANELS)))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for kind, group in diagnosis["targets"].items():
            low, high = np.array(group[f"{name}_ci"]).T
            label = f"{kind} ({group['targets']:,} targets)"
            axes.plot(levels, group[name], marker="o", color=COLOURS[kind], label=label)
            axes.fill_between(levels, low, high, color=COLOURS[kind], alpha=0.2, linewidth=0)
            if name == "recall@10":
                axes.plot(levels, group["chance"], linestyle=":", color=COLOURS[kind])
        axes.set(title=title, xlabel="level", xticks=levels)
        if name != "log_probability":
            axes.set_ylim(-0.03, 1.03)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def frontier(recommender: Recommender, cases: EvalExamples, train_counts: np.ndarray) -> dict[str, Any]:
    """Recall@10 of warm and of cold targets as a curve over the fusion's bonus for cold items.

    The items of a history are left out of its ranking.

    Args:
        recommender: a recommender with a calibrated fusion.
        cases: n cases with warm and cold targets.
        train_counts: int [N], training events of each item.

    Returns:
        As `frontier_of`; where the recommender has experts, their own curve, without the language model, as `experts`.

    Raises:
        UserError: the recommender is not calibrated, or there is no warm or no cold target.
    """
    if recommender.fusion_weights is None:
        raise UserError("--evaluate.frontier true: the bundle's fusion has not been calibrated; set it to false.")
    cold = train_counts[cases.targets] == 0
    if cold.all() or not cold.any():
        raise UserError(
            f"--evaluate.frontier true: {int(cold.sum())} of {len(cold)} targets are cold, so there is nothing to "
            "trade; set it to false."
        )
    ranker = recommender.ranked_by("fusion")
    items, features, _ = gather(ranker, cases)
    bars = bonus_limits(recommender.fusion_weights, items, features, cases.targets, train_counts == 0)
    curve, experts = frontier_of(bars, cold, recommender.fusion_weights.bonus), recommender.store.experts
    return curve if experts is None else curve | {"experts": experts.frontier(cases)}


def write_frontier(curve: dict[str, Any], metrics: Metrics, directory: str | Path) -> None:
    """Write frontier.json and frontier.png; the picture also shows each system of `metrics` as a point.

    Args:
        curve: as `frontier` gives it.
        metrics: of the same cases.
        directory: for the files.
    """
    from matplotlib.figure import Figure

    directory = Path(directory)
    (directory / "frontier.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")  # draws with Agg, no display
    axes = figure.subplots()
    colours, curves = {"llmrec": "tab:orange", "experts": "tab:blue"}, [("fusion", "llmrec", curve)]
    if "experts" in curve:
        curves.append(("experts alone", "experts", curve["experts"]))
    for label, name, own in curves:
        warm, cold = ([point[kind] for point in own["points"]] for kind in ("warm", "cold"))
        axes.plot(warm, cold, color=colours[name], label=label)
    axes.legend(frameon=False, fontsize="small", title="as the bonus of cold items rises", title_fontsize="small")
    for name, entry in metrics["systems"].items():
        if "warm" in entry and "cold" in entry:
            at = entry["warm"]["recall@10"], entry["cold"]["recall@10"]
            axes.plot(*at, marker="o", color=colours.get(name, "tab:gray"))
            axes.annotate(name, at, xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set(xlabel="recall@10, warm targets", ylabel="recall@10, cold targets")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / "frontier.png", dpi=120)
