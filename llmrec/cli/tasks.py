"""`llmrec tasks show`: print training examples of a configuration as the model sees them, learnt tokens marked."""

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llmrec.cli.command import Command, config_parser, parse
from llmrec.cli.stages import configuration
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.config import Config
    from llmrec.rundir import RunDirectory

SUMMARY = "show: print real training examples of every task; the text that the model learns is marked"


def main(arguments: Sequence[str]) -> None:
    """Run the stages that the tasks need, unless they are finished, and print the examples."""
    words = list(arguments)
    if not words or (words[0] != "show" and not {"-h", "--help"} & set(words)):
        found = words[0] if words else "nothing"
        raise UserError(f"tasks: found {found}, expected `llmrec tasks show --config C --run DIR`.")
    parser = config_parser("tasks show", SUMMARY, "[--task NAME,...] [--examples 2]")
    parser.add_argument("--task", type=str, metavar="NAME,...", help="only these tasks, separated by commas")
    parser.add_argument("--examples", type=int, default=2, help="number of examples of each task")
    options = parse(parser, words[1:] if words[0] == "show" else words)
    if options.examples < 1:
        raise UserError(f"--examples {options.examples}: expected at least 1.")
    log_to_stderr()
    from llmrec.cli.stages import open_run

    with open_run(options.run) as run:
        shown = task_examples(configuration(options), run, options.examples)
    if options.task is not None:
        shown = _only(shown, [name.strip() for name in options.task.split(",")])
    say(*([json.dumps({"tasks": shown})] if options.json else "\n".join(map(_text, shown)).split("\n")))


def task_examples(config: "Config", run: "RunDirectory", n: int) -> list[dict[str, Any]]:
    """n training examples of each task, as training would use them; first runs the stages before training."""
    from llmrec import pipeline
    from llmrec.continued import item_vocabulary, user_tokens
    from llmrec.data.prepare import load
    from llmrec.model.base import load_tokenizer
    from llmrec.quantize.tokenizer import ItemTokenizer
    from llmrec.tasks.config import load_templates
    from llmrec.tasks.mixture import build_tasks, show_tasks
    from llmrec.tasks.render import Renderer
    from llmrec.tasks.streams import BEHAVIOUR

    pipeline.check(config, run, "base")
    pipeline.make_stages(config, run, "base")
    prepared, items = load(run.path("data")).for_training, ItemTokenizer.load(run.path("tokenize"))
    tokenizer = load_tokenizer(
        config.base.model or run.path("base"), config.base.trust_remote_code, config.base.chat_template
    )
    vocabulary = item_vocabulary(config, tokenizer, items.level_sizes)
    render = partial(
        Renderer,
        tokenizer,
        templates=load_templates(config.tasks.prompts),
        max_history=config.tasks.max_history,
        titles=prepared.catalog.frame["title"],
        title_tokens=config.tasks.title_tokens,
    )
    users, second = user_tokens(config, tokenizer, items), None
    if items.behaviour is not None:
        named = item_vocabulary(config, tokenizer, items.behaviour.level_sizes, BEHAVIOUR)
        second = render(named, items.behaviour.codes)
    renderer = render(vocabulary, items.codes, users=users, behaviour=second)
    sequences = prepared.split.sequences(prepared.catalog)
    intentions, train = pipeline.load_intentions(config, run), sequences.train_sequences()
    tasks = build_tasks(config.tasks, prepared.catalog, train, renderer, sequences.users, intentions)
    return show_tasks(tasks, config.tasks, renderer, tokenizer.model_max_length, n, config.train.seed)


def _only(shown: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    known = [task["task"] for task in shown]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--task {unknown[0]}: not in the mixture, which has {', '.join(known)}.")
    return [task for task in shown if task["task"] in names]


def _text(task: dict[str, Any]) -> str:
    from llmrec.tasks.mixture import marked

    head = (
        f"{task['task']}: {task['examples_per_epoch']:,} examples an epoch ({task['rate']:g} x {task['rows']:,} rows); "
        f"{task['paper']}"
    )
    return "\n".join([head, *(f"  {marked(example['spans'])}" for example in task["examples"]), ""])


COMMAND = Command(SUMMARY, main)
