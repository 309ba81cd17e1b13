"""`llmrec compare-tokenizers`: compare tokenizers on the same embeddings in one table."""

import json
from collections.abc import Sequence

from llmrec.cli.command import Command, config_parser, parse, with_config_of_run
from llmrec.cli.stages import configuration
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

SUMMARY = "compare tokenizers on the same embeddings, with or without training a recommender on each"


def main(arguments: Sequence[str]) -> None:
    """Parse one configuration per tokenizer, compare them, print the table."""
    from llmrec.quantize.methods import tokenizer_names

    parser = config_parser("compare-tokenizers", SUMMARY, "--methods A,B,C [--seeds N] [--downstream] ")
    parser.add_argument(
        "--methods",
        type=str,
        required=True,
        metavar="A,B,C",
        help=f"tokenizers to compare, or YAML files with a `tokenize` section; known: {', '.join(tokenizer_names())}",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="fit each tokenizer N times, with different seeds"
    )
    parser.add_argument("--downstream", action="store_true", help="also train and evaluate a recommender on each")
    arguments = with_config_of_run(arguments)  # once for all tokenizers, whose own `--config` comes after it
    options = parse(parser, arguments)
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: expected at least 1")
    contenders = {
        name: configuration(parse(parser, [*arguments, *words]))
        for name, words in _settings(options.methods.split(",")).items()
    }
    log_to_stderr()
    from llmrec import comparison
    from llmrec.cli.stages import open_run
    from llmrec.console import plain

    with open_run(options.run) as run:
        result = comparison.compare(configuration(options), contenders, run, options.seeds, options.downstream)
        if run.main:
            table = f"{plain(comparison.rows(result))}\n\nJSON, Markdown and picture: {run.path('compare')}"
            say(*([json.dumps(result)] if options.json else table.split("\n")))


def _settings(methods: Sequence[str]) -> dict[str, list[str]]:
    """Tokenizer name -> the command-line words that select it on top of the configuration."""
    from pathlib import Path

    from llmrec.quantize.methods import preset_files, require_known

    presets = preset_files()
    words: dict[str, list[str]] = {}
    for method in methods:
        name = Path(method).stem if method.endswith(".yaml") else method
        if name in words:
            raise UserError(f"--methods names {name!r} twice")
        if method.endswith(".yaml"):
            words[name] = ["--config", method]
        elif method in presets:
            words[name] = ["--config", str(presets[method])]
        else:
            require_known(method)
            words[name] = ["--tokenize.method", method]
    return words


COMMAND = Command(SUMMARY, main, resumable=True)
