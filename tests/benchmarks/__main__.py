"""Run every bench_*.py of this folder: ``python -m tests.benchmarks [--write_docs] [NAME ...]``.

The results go to logs/bench.json and logs/bench.md. ``--write_docs`` also writes the table into
docs/dev/speed.md.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from experiments.tables import markdown, put_table
from pipeline.files import write_json, writing
from tests.benchmarks.measure import HEAD, RESULTS, machine
from tests.conftest import REPOSITORY

LOGS, DOCUMENT = REPOSITORY / "logs", REPOSITORY / "docs" / "dev" / "speed.md"
MARKS = "<!-- table: make bench, or python -m tests.benchmarks --write_docs -->\n", "<!-- end -->\n"


def main() -> None:
    names = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    arguments = [argument for argument in sys.argv[1:] if argument != "--write_docs"]
    selected = arguments or sorted(names)
    if unknown := set(selected) - names:
        sys.exit(f"error: {unknown.pop()}: expected one of {', '.join(sorted(names))}")
    for name in selected:
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.benchmarks.bench_{name}").main()
        write(docs="--write_docs" in sys.argv)  # after every benchmark: each takes minutes
    print(f"wrote {LOGS / 'bench.json'} and bench.md")


def write(docs: bool) -> None:
    """Write the results so far; with ``docs`` also into docs/dev/speed.md."""
    table = f"{machine()}\n\n{markdown([HEAD, *(result.cells() for result in RESULTS)])}\n"
    results = [{**result._asdict(), "ratio": result.ratio} for result in RESULTS]
    write_json(LOGS / "bench.json", {"machine": machine(), "results": results})
    with writing(LOGS / "bench.md") as handle:
        handle.write(table)
    if docs:
        put_table(DOCUMENT, table, MARKS)


if __name__ == "__main__":
    main()
