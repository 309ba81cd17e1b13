"""Write the tables of docs/results.md from the results of benchmarks.

    python scripts/results.py                     # write the tables anew from docs/results/NAME.json
    python scripts/results.py NAME=RUN [...]      # first take DIR/benchmark/benchmark.json of these run directories

A table stands between the lines `<!-- benchmark: NAME -->` and `<!-- end -->`; what is there is replaced.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from llmrec.console import markdown
from llmrec.errors import UserError
from llmrec.evaluation.benchmark_report import cost_rows, frontier_rows, paired_rows, rows, worth_rows
from llmrec.evaluation.protocol import MAIN
from llmrec.evaluation.report import protocol_line

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(?<=<!-- benchmark: )([a-z_]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    """Take new results, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN", help="run directories of finished benchmarks")
    for word in parser.parse_args().runs:
        name, _, run = word.partition("=")
        path = Path(run) / "benchmark" / "benchmark.json"
        if not path.is_file():
            raise UserError(f"{word}: no {path}; name a run directory after `llmrec benchmark`, as NAME=RUN.")
        kept = _without_finer_slices(json.loads(path.read_text(encoding="utf-8")))
        (DOCS / "results" / f"{name}.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    page = DOCS / "results.md"
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


def written(text: str) -> str:
    """The page with the tables of docs/results/."""
    return BLOCK.sub(lambda match: f"{match[1]} -->\n\n{tables(match[1])}\n\n", text)


def tables(name: str) -> str:
    """The tables of one benchmark in Markdown."""
    path = DOCS / "results" / f"{name}.json"
    if not path.is_file():
        raise UserError(f"docs/results.md, benchmark {name}: no {path}; make it with `results.py {name}=RUN`.")
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"{protocol_line(found).capitalize()}.", markdown(rows(found))]
    if found["protocol"]["cold"]["kind"] == "held-out":
        for kind in ("warm", "cold"):
            parts += [f"{kind.capitalize()} targets:", markdown(rows(found, kind))]
        parts += ["Warm against cold targets, by other bonuses of cold items:", markdown(frontier_rows(found))]
    parts += ["Paired differences:", markdown(paired_rows(found))]
    if table := worth_rows(found):
        parts += ["What the weighted sum of all experts gains over the sum without one:", markdown(table)]
    parts += ["Lists and cost:", markdown(cost_rows(found))]
    return "\n\n".join(parts)


def _without_finer_slices(found: dict[str, Any]) -> dict[str, Any]:
    for entry in found["systems"].values():
        for run in entry["runs"]:
            run["seen_left_out"] = {name: run["seen_left_out"][name] for name in MAIN if name in run["seen_left_out"]}
    return found


if __name__ == "__main__":
    main()
