"""The commands that run the stages of the pipeline, up to one stage or all."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.cli.command import Command, config_parser, parse
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.config import Config
    from llmrec.rundir import RunDirectory


def open_run(folder: str | Path, verify: bool = False) -> "RunDirectory":
    """Open the run directory; under `accelerate launch` only the first process writes to it."""
    from llmrec.rundir import RunDirectory

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return RunDirectory(folder, verify=verify)
    from llmrec.device import process_state

    state = process_state()
    return RunDirectory(folder, main=state.is_main_process, wait=state.wait_for_everyone, verify=verify)


def command(name: str, until: str, summary: str) -> Command:
    """Make the command `name`, which runs every stage up to `until`; it skips finished stages."""

    def main(arguments: Sequence[str]) -> None:
        parser = config_parser(name, summary, "[--verify]")
        parser.add_argument(
            "--verify",
            action="store_true",
            help="compare the SHA-256 of every file of the finished stages with the recorded one, not only its size; a "
            "stage with a damaged file runs again",
        )
        options = parse(parser, arguments)
        if until == "intentions" and options.intentions.source == "none":
            raise UserError("--intentions.source none: nothing to gather; expected extract, reviews, llm or file.")
        log_to_stderr()
        from llmrec import pipeline

        with open_run(options.run, options.verify) as run:
            pipeline.run(configuration(options), run, until)
            if run.main:
                _answer(until, run, options.json)

    return Command(summary, main, resumable=True)


def configuration(options: Any) -> "Config":
    """Make a `Config` from the sections of parsed options."""
    from dataclasses import fields

    from llmrec.config import Config

    return Config(**{section.name: getattr(options, section.name) for section in fields(Config)})


def _answer(until: str, run: "RunDirectory", as_json: bool) -> None:
    """Print the result: the evaluation's table, or the folder of another stage. As JSON: metrics or manifest."""
    from llmrec import pipeline

    folder = run.path({"prepare": "data"}.get(until, until))
    if until != "evaluate":
        say(json.dumps(run.manifest(folder.name)) if as_json else f"Done: {folder}")
        return
    from llmrec.evaluation.report import cold_candidates_line, protocol_line, table, text_queries_line
    from llmrec.run_report import PAGE, next_steps

    metrics = pipeline.metrics(run)
    spoken = pipeline.text_metrics(run)
    if as_json:
        print(json.dumps(metrics))
        return
    say(*f"{protocol_line(metrics)}\n\n{table(metrics)}\n".split("\n"))
    protocol, cold = metrics["protocol"], metrics.get("cold_candidates")
    if cold and (
        protocol["cold"]["kind"] == "held-out" or protocol["regime"] == "strict"
    ):  # otherwise there are only a few cold targets
        for name in ("warm", "cold"):
            say(*f"{name} targets\n\n{table(metrics, name)}\n".split("\n"))
        say(*f"{cold_candidates_line(cold)}\n\n{table(cold)}\n".split("\n"))
    if spoken is not None:
        say(*f"{text_queries_line(spoken)}\n\n{table(spoken)}\n".split("\n"))
    say(f"The bundle: {run.path('model')}", f"The report: {run.path('evaluate') / PAGE}", "", "What to try next:")
    for what, words in next_steps(run.folder, pipeline.FOLDERS):
        say(f"  {what}:", f"    {words}")
