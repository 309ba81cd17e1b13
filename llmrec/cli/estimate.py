"""`llmrec estimate`: estimate the parameters, memory, tokens and time of a configuration's fine-tuning."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrec.cli.command import Command, config_parser, parse
from llmrec.cli.stages import configuration
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

SUMMARY = "estimate parameters, memory, tokens and time of fine-tuning before it starts; loads no weights"


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, estimate, print."""
    parser = config_parser(
        "estimate", SUMMARY, "[--tflops X] [--gpu-memory GIB] [--users 1000] [--length 10]", needs_run=False
    )
    parser.add_argument(
        "--tflops", type=float, metavar="X", help="peak TFLOP/s of the GPU, to estimate the time; RTX 4090: 165"
    )
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="memory of the GPU, to tell whether gradient checkpointing is needed; default: this machine's GPU",
    )
    parser.add_argument("--users", type=int, default=1000, help="number of made-up users, used if the data is missing")
    parser.add_argument("--length", type=int, default=10, help="items in the training history of a made-up user")
    options = parse(parser, arguments)
    for name, least in (("users", 2), ("length", 2)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: expected at least {least}.")
    for name in ("tflops", "gpu_memory"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value}: expected more than 0.")
    log_to_stderr()
    from llmrec.estimate import estimate

    run = Path(options.run) if options.run is not None else None
    found = estimate(configuration(options), run, options.users, options.length, options.tflops, options.gpu_memory)
    say(*([json.dumps(found)] if options.json else _text(found, options.tflops).split("\n")))


def _text(found: dict[str, Any], tflops: float | None) -> str:
    from llmrec.estimate import UTILISATION
    from llmrec.recommender.bundle import readable

    parameters, data, epoch, memory = (found[part] for part in ("parameters", "data", "per_epoch", "bytes"))
    about = "about " if epoch["sampled"] else ""
    further = f", {found['refine_epochs']} more with {found['refine_steps']:,} steps in the rounds of --refine.rounds"
    lines = [
        f"{found['base']}, method {found['method']}",
        f"parameters   {parameters['total']:,}, trainable {parameters['trainable']:,} "
        f"({parameters['trainable'] / parameters['total']:.2%}), {parameters['item_tokens']:,} item tokens",
        f"data         {data['items']:,} items, {data['users']:,} users: {data['source']}",
        f"an epoch     {epoch['examples']:,} examples, {about}{epoch['tokens']:,} tokens "
        f"({epoch['padded_tokens']:,} with padding), {epoch['learnt_tokens']:,} of them learnt",
        f"all          {found['epochs']} epochs, {found['steps']:,} steps{further if found['refine_steps'] else ''}, "
        f"{found['operations']:.2e} operations",
        f"memory       {readable(memory['total'])} and the CUDA context on one GPU, gradient checkpointing "
        f"{'on' if found['gradient_checkpointing'] else 'off'}, activations estimated: "
        + ", ".join(f"{name.replace('_', ' ')} {readable(size)}" for name, size in memory.items() if name != "total"),
    ]
    if tflops is not None:
        share = f"{UTILISATION:.0%} of {tflops:g} TFLOP/s"
        lines.append(f"time         about {_duration(found['seconds'])}, if a GPU reaches {share}")
    return "\n".join([*lines, *(f"note         {note}" for note in found["notes"])])


def _duration(seconds: int) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"


COMMAND = Command(SUMMARY, main)
