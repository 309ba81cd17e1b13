"""`llmrec benchmark`: baselines, experts and the language model in one table."""

import json
from collections.abc import Sequence

from llmrec.cli.command import Command, config_parser, parse
from llmrec.cli.stages import configuration, open_run
from llmrec.console import log_to_stderr, plain, say
from llmrec.errors import UserError

SUMMARY = "baselines, experts and the language model in one table, with seeds and paired tests"


def main(arguments: Sequence[str]) -> None:
    """Fit and measure the contenders that are not measured yet, print the table."""
    parser = config_parser("benchmark", SUMMARY, "[--seeds N] [--language-model] [--redo NAME ...] ")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="fit what a seed changes N times, with different seeds"
    )
    parser.add_argument(
        "--language-model",
        action="store_true",
        help="also train the language model of the configuration, and measure it alone, by each of "
        "--evaluate.rankings, and with the experts",
    )
    parser.add_argument("--redo", nargs="+", default=[], metavar="NAME", help="fit and measure these contenders again")
    options = parse(parser, arguments)
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: expected at least 1")
    config = configuration(options)
    log_to_stderr()
    from llmrec import benchmark
    from llmrec.evaluation import benchmark_report as report

    with open_run(options.run) as run:
        found = benchmark.benchmark(config, run, options.seeds, options.language_model, options.redo)
        if run.main:
            tables = [report.rows(found), report.cost_rows(found)]
            if len(paired := report.paired_rows(found)) > 1:
                tables.append(paired)
            text = "\n\n".join([*map(plain, tables), f"JSON, Markdown and picture: {run.path('benchmark')}"])
            say(*([json.dumps(found)] if options.json else text.split("\n")))


COMMAND = Command(SUMMARY, main, resumable=True)
