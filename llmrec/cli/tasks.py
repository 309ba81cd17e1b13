"""`llmrec tasks show`: real rendered training examples of a configuration, with what is learnt marked."""

import json
from collections.abc import Sequence
from typing import Any

from llmrec.cli.command import Command, config_parser, parse
from llmrec.cli.stages import configuration
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

SUMMARY = "show: real training examples of every task, with what is learnt marked"


def main(arguments: Sequence[str]) -> None:
    """Do the stages that the tasks need, unless they stand, and print."""
    words = list(arguments)
    if not words or (words[0] != "show" and not {"-h", "--help"} & set(words)):
        found = words[0] if words else "nothing"
        raise UserError(f"tasks: found {found}, expected `llmrec tasks show --config C --run DIR`.")
    parser = config_parser("tasks show", SUMMARY, "[--task NAME,...] [--examples 2]")
    parser.add_argument("--task", type=str, metavar="NAME,...", help="only these tasks, by commas")
    parser.add_argument("--examples", type=int, default=2, help="of each task (default 2)")
    options = parse(parser, words[1:] if words[0] == "show" else words)
    if options.examples < 1:
        raise UserError(f"--examples {options.examples}: expected at least 1.")
    log_to_stderr()
    from llmrec import pipeline
    from llmrec.cli.stages import open_run

    shown = pipeline.task_examples(configuration(options), open_run(options.run), options.examples)
    if options.task is not None:
        shown = _only(shown, options.task.split(","))
    say(*([json.dumps({"tasks": shown})] if options.json else "\n".join(map(_text, shown)).split("\n")))


def _only(shown: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    known = [task["task"] for task in shown]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--task {unknown[0]}: not in the mixture, which has {', '.join(known)}.")
    return [task for task in shown if task["task"] in names]


def _text(task: dict[str, Any]) -> str:
    from llmrec.tasks.build import marked

    head = (
        f"{task['task']}: {task['examples_per_epoch']:,} examples an epoch ({task['rate']:g} x {task['rows']:,} rows); "
        f"{task['paper']}"
    )
    return "\n".join([head, *(f"  {marked(example['spans'])}" for example in task["examples"]), ""])


COMMAND = Command(SUMMARY, main)
