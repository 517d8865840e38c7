"""Run every bench_*.py beside this file: ``python -m tests.benchmarks [decode ...]``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    found = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    wanted = sys.argv[1:] or sorted(found)
    unknown = set(wanted) - found
    if unknown:
        sys.exit(f"error: no benchmark {unknown.pop()}; there are {', '.join(sorted(found))}")
    for name in wanted:
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.benchmarks.bench_{name}").main()


if __name__ == "__main__":
    main()
