"""The `llmrec` program: selects the command, and prints a UserError as one line with exit code 2."""

import itertools
import os
import sys
import warnings
from collections.abc import Sequence

from llmrec import __version__
from llmrec.checks import check_texts
from llmrec.cli import (
    add_items,
    benchmark,
    compare,
    discover,
    estimate,
    explain,
    export,
    export_features,
    inspect,
    predict,
    push,
    recommend,
    serve,
    stages,
    tasks,
)
from llmrec.console import printable
from llmrec.errors import UserError

COMMANDS = {
    "run": stages.command("run", "evaluate", "all stages, resumable"),
    "estimate": estimate.COMMAND,
    "prepare": stages.command("prepare", "prepare", "read, filter and split the data"),
    "embed": stages.command("embed", "embed", "items -> vectors"),
    "tokenize": stages.command("tokenize", "tokenize", "vectors -> semantic IDs"),
    "intentions": stages.command(
        "intentions", "intentions", "extract what users want, in words, from --intentions.source"
    ),
    "train": stages.command("train", "model", "fine-tune the language model and write the bundle"),
    "evaluate": stages.command("evaluate", "evaluate", "full ranking beside the baselines"),
    "benchmark": benchmark.COMMAND,
    "compare-tokenizers": compare.COMMAND,
    "tasks": tasks.COMMAND,
    "recommend": recommend.COMMAND,
    "predict": predict.COMMAND,
    "add-items": add_items.COMMAND,
    "explain": explain.COMMAND,
    "discover": discover.COMMAND,
    "export": export.COMMAND,
    "export-features": export_features.COMMAND,
    "inspect": inspect.COMMAND,
    "push": push.COMMAND,
    "serve": serve.COMMAND,
}


def usage() -> str:
    """The overview that `llmrec --help` prints."""
    lines = ["usage: llmrec COMMAND [--help] ...", "", "Recommend with a language model.", "", "commands:"]
    lines += [f"  {name:<18} {command.summary}" for name, command in COMMANDS.items()]
    last = "`llmrec COMMAND --help` shows the flags and the fields that people set first, `--help-all` every field."
    return "\n".join([*lines, "", last])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 for success, 2 for an error in the user's input, 130 if stopped by the keyboard. A defect of
        the program raises its exception, which gives exit code 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"llmrec {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        from difflib import get_close_matches

        near = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(COMMANDS)}"
        print(f"llmrec: no command {printable(repr(arguments[0]))}{hint}", file=sys.stderr)
        return 2
    # transformers 5 warns about names that change in version 6. Only peft can change some of them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # transformers reads a GGUF file with a bar of tqdm
    try:
        for before, word in itertools.pairwise(arguments):
            if not os.path.lexists(word):  # the name of a file may hold any bytes
                name = before if before.startswith("--") else "argument"
                check_texts(f"{name} {word!r:.80}", word)
        command.main(arguments[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"llmrec: {printable(error.with_flags)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"llmrec: stopped{'; the same command goes on from here' if command.resumable else ''}", file=sys.stderr)
        return 130
    return 0
