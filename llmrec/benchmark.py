"""Benchmark: baselines, experts and the language model in one table, with seeds, intervals and paired tests.

Each contender has its own run directory per seed, so that a stopped benchmark continues where it stopped and one
contender can be measured again alone:

    DIR/benchmark/NAME/seed-0/           the stages of this contender, and evaluate/ with its metrics
    DIR/benchmark/benchmark.json         all results and settings
    DIR/benchmark/benchmark.md, .png     the tables and the picture
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl

from llmrec import pipeline
from llmrec.atomic import KEY, MANIFEST, remove_folder, write_file
from llmrec.children import Children
from llmrec.collaborative.base import System
from llmrec.collaborative.config import NETWORKS
from llmrec.collaborative.fused import CONFIG, FusedExperts
from llmrec.collaborative.fusion import CUT
from llmrec.comparison import with_seed
from llmrec.config import Config
from llmrec.console import get_logger
from llmrec.data import Catalog
from llmrec.data.prepare import Prepared, load
from llmrec.embed import Embeddings
from llmrec.errors import UserError
from llmrec.evaluation.benchmark_report import Benchmark, document, plot
from llmrec.evaluation.config import TRAINED_BASELINES, EvaluateConfig
from llmrec.evaluation.metrics import INTERVAL_METRICS, per_user
from llmrec.evaluation.protocol import OURS, Metrics, select_cases
from llmrec.evaluation.systems import compare_pair, compare_systems, fit_baselines, generative_systems, measure
from llmrec.rundir import RunDirectory
from llmrec.stage import Stage

log = get_logger(__name__)

BENCHMARK = pipeline.BENCHMARK
EXPERTS, ALONE = FusedExperts.name, "language-model"
"""Contenders beside the baselines, and `OURS`: the experts without a language model, the language model without
experts, and both."""
LEARNT = ("tokenize", "teacher", "intentions", "base", "train", "refine", "preference")
"""Stages of the language model alone that it shares with everything fused."""
MASKED, KEPT = "metrics.json", "seen_kept.json"
FIGURES = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "mrr@10")
FAMILIES = ("untrained", "collaborative", "language model", "fused, no language model", "everything fused")
"""Kinds of systems; those of the first two are baselines."""


@dataclass(frozen=True)
class Contender:
    """Systems that are fitted and measured together.

    Attributes:
        name: of its folder.
        seeds: number of fits; 1 for what no seed changes.
    """

    name: str
    seeds: int


def contenders(config: Config, seeds: int, language_model: bool) -> list[Contender]:
    """The contenders of a configuration, in the order in which they are fitted.

    Raises:
        UserError: there are none.
    """
    own = shared(config)
    found = [
        Contender(name, seeds if name in TRAINED_BASELINES else 1)
        for name in config.evaluate.baselines
        if name not in own
    ]
    if config.experts.models:
        found.append(Contender(EXPERTS, seeds))
    if language_model:
        found.append(Contender(ALONE, seeds))
        if config.experts.models:
            found.append(Contender(OURS, seeds))
    if not found:
        raise UserError(
            "--evaluate.baselines []: nothing to measure; name baselines, experts (--experts.models), or the language "
            "model (--language-model)."
        )
    return found


def shared(config: Config) -> list[str]:
    """The baselines that are experts too, with the same settings: they are fitted once, as experts."""

    def same(name: str) -> bool:
        if name not in NETWORKS:
            return name != "popularity"
        settings = [asdict(getattr(section, name)) for section in (config.evaluate, config.experts)]
        return config.evaluate.seed == config.experts.seed and settings[0] == settings[1]

    return [name for name in config.evaluate.baselines if name in config.experts.models and same(name)]


def benchmark(
    config: Config, run: RunDirectory, seeds: int = 1, language_model: bool = False, redo: Sequence[str] = ()
) -> Benchmark:
    """Fit and measure all contenders.

    Args:
        config: the data, the baselines, the experts and the language model.
        run: the run directory whose data and vectors all contenders use; missing stages are run first.
        seeds: fits of each contender that a seed changes. Fit i adds i = 0, 1, ... to the configured seeds.
        language_model: also train the language model of the configuration, and measure it alone and with the experts.
        redo: names of contenders that are fitted and measured again; llmrec is, too, if one of its two parts is.

    Returns:
        The content of benchmark.json, which is also written, with the tables and the picture.

    Raises:
        UserError: there is no contender, or none of a name in `redo`; or a stage raises it. Finished fits are kept.
    """
    entrants, children = contenders(config, seeds, language_model), Children(run, BENCHMARK)
    known = [each.name for each in entrants]
    if unknown := sorted(set(redo) - set(known)):
        raise UserError(f"--redo {unknown[0]}: no such contender; known are {', '.join(known)}.")
    for each in entrants:  # claim all folders before any computation
        for seed in range(each.seeds):
            child = children.open(each.name, seed)
            if each.name in redo or (each.name == OURS and not {EXPERTS, ALONE}.isdisjoint(redo)):
                _clear(child)
    pipeline.run(config, run, until="embed")
    for each in entrants:
        for seed in range(each.seeds):
            log.info("%s, seed %d of %d", each.name, seed + 1, each.seeds)
            _fit(each.name, _with_seed(config, seed), children, seed)
    if not run.main:
        return {}
    found = collect(config, children, entrants)
    run.write(f"{BENCHMARK}/benchmark.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    run.write(f"{BENCHMARK}/benchmark.md", document(found))
    with run.reporting():
        write_file(run.path(BENCHMARK) / "benchmark.png", lambda file: plot(found, file))
    return found


def _with_seed(config: Config, offset: int) -> Config:
    return replace(
        with_seed(config, offset),
        experts=replace(config.experts, seed=config.experts.seed + offset),
        evaluate=replace(config.evaluate, seed=config.evaluate.seed + offset),
    )


def _clear(child: RunDirectory) -> None:
    """Remove the finished stages of a contender, so that they are made again; links to shared stages stay."""
    if child.main:
        with child.reporting():
            for name in pipeline.FOLDERS:
                if not child.path(name).is_symlink():
                    remove_folder(child.path(name), (MANIFEST, KEY))
    child.wait()


def _fit(name: str, config: Config, children: Children, seed: int) -> None:
    """Fit one contender in its run directory, and measure it."""
    child = children.open(name, seed)
    children.share(child, ("data", "embed"))
    if name == EXPERTS:
        pipeline.experts_stage(config, child)
        make = partial(_experts, child, config)
        _evaluate(child, config, ["data", "experts"], shared(config), make)
    elif name in (ALONE, OURS):
        if config.experts.models:
            children.share(child, ("experts",), children.open(EXPERTS, seed))
        if name == OURS:
            trained = children.open(ALONE, seed)
            children.share(child, (stage for stage in LEARNT if trained.path(stage).exists()), trained)
            pipeline.run(config, child, until="model")
        else:
            pipeline.run(config, child, until=LEARNT[-1])
            # Experts may have taught the model; in its own ranking they have no part.
            alone = replace(config.train, distill=replace(config.train.distill, weight=0.0, dense_weight=0.0))
            pipeline.model_stage(replace(config, train=alone, experts=config.experts.only([])), child)
        rankings = [str(ranking) for ranking in config.evaluate.rankings] if name == ALONE else []
        _evaluate(child, config, ["data", "model"], rankings, partial(_generative, child, config, name))
    else:
        _evaluate(child, config, ["data", "embed"], [name], partial(_baseline, name, child, config))


def _experts(child: RunDirectory, config: Config, prepared: Prepared) -> tuple[list[System], Catalog]:
    fused = FusedExperts.load(child.path("experts"))
    return [fused, *(fused.experts.systems[name] for name in shared(config))], prepared.catalog  # type: ignore[index]


def _generative(child: RunDirectory, config: Config, name: str, _: Prepared) -> tuple[list[System], Catalog]:
    from llmrec.recommender.recommender import Recommender

    recommender = Recommender.from_pretrained(child.path("model"), config.decode)
    if name == OURS and recommender.fusion_weights is not None and config.decode.ranking == "auto":
        # What everything together is worth is asked here, not which ranking is best.
        recommender.decode_config = replace(recommender.decode_config, ranking="fusion")
    settings = config.evaluate if name == ALONE else replace(config.evaluate, rankings=[])
    ours, *others = generative_systems(recommender, settings)
    ours.name = name
    for other in others:
        other.name = f"{name}, {other.name}"
    return [ours, *others], recommender.catalog


def _baseline(name: str, child: RunDirectory, config: Config, prepared: Prepared) -> tuple[list[System], Catalog]:
    catalog, split = prepared.catalog, prepared.split
    settings = replace(config.evaluate, baselines=[each for each in config.evaluate.baselines if each == name])
    vectors = Embeddings.load(child.path("embed"), catalog.ids).vectors
    sequences = split.sequences(catalog).train_sequences()
    validation = split.validation_examples(catalog)
    return fit_baselines(settings, sequences, len(catalog), validation, vectors), catalog


def _evaluate(
    child: RunDirectory,
    config: Config,
    reads: Sequence[str],
    names: Sequence[str],
    make_systems: Callable[[Prepared], tuple[list[System], Catalog]],
) -> None:
    """Measure the systems of a contender, with seen items left out and kept -> evaluate/.

    Args:
        child: the contender's run directory.
        config: of the whole benchmark.
        reads: stages that the systems come from.
        names: what is measured; settings of anything else do not matter.
        make_systems: the fitted systems, and the items that they rank.
    """
    # sasrec-knn and cornac-sasrec go by the section of sasrec.
    unused = {section for section in NETWORKS if not any(section in name for name in names)}
    others = {"baselines", "rankings"} | unused
    settings = {name: value for name, value in asdict(config.evaluate).items() if name not in others}
    steers = {"evaluate": settings, "decode": asdict(config.decode), "systems": list(names)}

    def make(out: Path) -> None:
        prepared, started = load(child.path("data")), time.perf_counter()
        systems, catalog = make_systems(prepared)
        seconds, tables = time.perf_counter() - started, []
        for file, filter_seen in ((MASKED, True), (KEPT, False)):
            settings = replace(config.evaluate, filter_seen=filter_seen)
            found = measure(systems, catalog, prepared.split, settings)
            extra: dict[str, Any] = {"fit_seconds": seconds}
            if filter_seen and isinstance(systems[0], FusedExperts):
                extra |= _insight(systems[0], catalog, prepared, settings)
            _write_json(found.metrics | extra, out / file)
            tables.append(found.per_user.with_columns(seen=pl.lit("left out" if filter_seen else "kept")))
        pl.concat(tables).write_parquet(out / "per_user.parquet")

    child.build(Stage("evaluate", steers, make, reads))


def _insight(fused: FusedExperts, catalog: Catalog, prepared: Prepared, settings: EvaluateConfig) -> Metrics:
    """What is told of the experts beside their ranking.

    `worth`: metric -> expert -> what the weighted sum of all experts gains over the sum without this one. `frontier`,
    if some targets are cold and some warm: what warm and cold targets get for other bonuses of cold items.
    """
    split = prepared.split
    cases = select_cases(split.sequences(catalog), settings)
    ranks = fused.without_each(split.calibration_examples(catalog), cases, settings.filter_seen)
    whole = ranks.pop(fused.name)
    worth = {
        metric: {
            name: compare_pair(per_user(whole, CUT)[metric], per_user(each, CUT)[metric], cases.users, settings)
            for name, each in ranks.items()
        }
        for metric in INTERVAL_METRICS
    }
    cold = fused.experts.is_cold[cases.targets]
    return {"worth": worth} | ({} if cold.all() or not cold.any() else {"frontier": fused.frontier(cases)})


def collect(config: Config, children: Children, entrants: Sequence[Contender]) -> Benchmark:
    """All figures of fitted contenders; see `Benchmark`."""
    systems: dict[str, dict[str, Any]] = {}
    values: dict[str, list[np.ndarray]] = {}
    protocol: dict[str, Any] = {}
    users = np.empty(0, np.int64)
    for each in entrants:
        for seed in range(each.seeds):
            child = children.open(each.name, seed)
            masked, kept = (json.loads((child.path("evaluate") / file).read_text("utf-8")) for file in (MASKED, KEPT))
            protocol = masked["protocol"]
            table = pl.read_parquet(child.path("evaluate") / "per_user.parquet").filter(seen="left out")
            for name in masked["systems"]:
                entry = systems.setdefault(name, {"family": _family(each.name, name), "runs": []})
                entry["runs"].append(
                    {"seed": seed, **_cost(child, each.name, name, masked), **_figures(name, masked, kept)}
                )
                own = table.filter(system=name)
                users = own["user_id"].rle_id().to_numpy()
                values.setdefault(name, []).append(own["rank"].cast(pl.Float64).fill_null(np.inf).to_numpy())
    for entry in systems.values():
        figures = [run["seen_left_out"]["all"] for run in entry["runs"]]
        entry["mean"] = {key: mean(one[key] for one in figures) for key in FIGURES if key in figures[0]}
        entry["std"] = {key: stdev(one[key] for one in figures) for key in entry["mean"] if len(figures) > 1}
    gains = {
        metric: {name: np.mean([per_user(one, CUT)[metric] for one in each], axis=0) for name, each in values.items()}
        for metric in INTERVAL_METRICS
    }
    baselines = [name for name, entry in systems.items() if entry["family"] in FAMILIES[:2]]
    systems = dict(sorted(systems.items(), key=lambda item: FAMILIES.index(item[1]["family"])))
    return {
        "seeds": max(each.seeds for each in entrants),
        "protocol": protocol,
        "systems": systems,
        "paired": compare_systems(gains, baselines, users, config.evaluate),
    }


def _family(contender: str, name: str) -> str:
    if contender in (ALONE, OURS, EXPERTS) and (contender != EXPERTS or name == EXPERTS):
        return FAMILIES[2 + (ALONE, EXPERTS, OURS).index(contender)]
    return FAMILIES[name.split("@")[0] in TRAINED_BASELINES]


def _figures(name: str, masked: Metrics, kept: Metrics) -> dict[str, Any]:
    found = {
        "milliseconds_per_user": masked["milliseconds_per_user"][name],
        "lists": masked["lists"].get(name),
        "seen_left_out": masked["systems"][name],
        "seen_kept": {"all": kept["systems"][name]["all"]},
    }
    if "cold_candidates" in masked:
        found["cold_candidates"] = masked["cold_candidates"]["systems"][name]["all"]
    return found | ({key: masked[key] for key in ("worth", "frontier") if key in masked} if name == EXPERTS else {})


def _cost(child: RunDirectory, contender: str, name: str, masked: Metrics) -> dict[str, float]:
    """Seconds that a system took to be fitted, and the peak memory of its contender."""
    stages = ["evaluate"]
    if contender in (ALONE, OURS):
        stages += [*(stage for stage in LEARNT if child.path(stage).exists()), "model"]
    if contender in (EXPERTS, OURS):
        stages.append("experts")
    manifests = {stage: child.manifest(stage) for stage in stages}
    seconds = sum(manifests[stage]["seconds"] for stage in stages[1:])
    if contender == EXPERTS and name != EXPERTS:
        seconds = json.loads((child.path("experts") / CONFIG).read_text("utf-8"))["seconds"][name]
    elif contender not in (ALONE, OURS, EXPERTS):
        seconds = masked["fit_seconds"]
    return {"fit_seconds": seconds, "peak_memory_gib": max(each["peak_memory_gib"] for each in manifests.values())}


def _write_json(content: Metrics, path: Path) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
