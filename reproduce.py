"""Rebuild the paper's tables from the models and corpora at hand, beside the published figures.

Every cell is made by the stage scripts, which are shown as they are run; a finished one is not made
again. For an empty cell it says which file is missing and how to get it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from experiments.paper import FIRST_SEED, METHODS, PAPER, Cell, Paper, load_paper, missing
from experiments.runs import Survey, survey
from experiments.stages import Command, to_prepare, to_train
from experiments.tables import (
    DOCUMENTS,
    FIGURES,
    put_table,
    read_figures,
    render,
    with_earlier,
    write_figures,
)
from pipeline.errors import UserError, run
from pipeline.files import writing
from pipeline.runs import run_script
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection


def main() -> None:
    args = parse()
    workspace = Workspace(args.workspace.resolve())
    paper = load_paper(args.tables)
    cells = chosen(paper, args)
    lacking = {str(cell): missing(cell, paper, workspace) for cell in cells}
    failed: list[str] = []
    if not args.list:
        at_hand = [cell for cell in cells if not lacking[str(cell)]]
        failed = make(at_hand, paper, workspace, args)
    found = survey(paper, paper.cells, args.seeds, workspace)
    report(paper, cells, found, lacking, workspace)
    if args.write_docs:
        documented = with_earlier(found.figures, read_figures(FIGURES))
        write_figures(FIGURES, documented)
        for path in DOCUMENTS:
            put_table(path, render(paper, documented))
    if failed:
        print(f"error: {'; '.join(failed)}: see the messages above", file=sys.stderr)
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="make nothing: show what there is")
    parser.add_argument("--method", choices=METHODS, help="only this row")
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs to make of each cell (default: 1)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, a core each (default: 1, all cores)"
    )
    parser.add_argument("--tables", type=Path, default=PAPER, help="another list of cells")
    parser.add_argument(
        "--write_docs",
        action="store_true",
        help="put these figures into the tables of README.md and docs/; other cells stay",
    )
    add_selection(parser)
    return parser.parse_args()


def chosen(paper: Paper, args: argparse.Namespace) -> list[Cell]:
    """The cells that the flags ask for. Raises ``UserError`` when there are none."""
    wanted = {"method": args.method, "task": args.prompt_task, "unit_model": args.unit_model}
    asked = {name: value for name, value in wanted.items() if value}
    cells = [c for c in paper.cells if all(getattr(c, name) == asked[name] for name in asked)]
    if not cells:
        raise UserError(f"the paper's tables have no cell with {' '.join(asked.values())}")
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds {args.seeds} --jobs {args.jobs}: expected at least 1")
    return cells


def make(
    cells: Sequence[Cell], paper: Paper, workspace: Workspace, args: argparse.Namespace
) -> list[str]:
    """Run what is not finished; return the names of what failed. The rest goes on without it."""
    environment = {"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {}
    failed: list[str] = []

    def go(name: str, commands: Callable[[], Sequence[Command]]) -> None:
        prefix = f"{name} | " if args.jobs > 1 else ""
        try:
            for command in commands():
                if run_script([*command, "--workspace", workspace.root], prefix, environment):
                    failed.append(name)
                    return
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)

    def unfinished() -> list[tuple[Cell, int]]:
        found = survey(paper, cells, args.seeds, workspace)
        done = {figure.run_name for figure in found.figures} | found.unusable.keys()
        seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
        return [(c, seed) for seed in seeds for c in cells if c.run_name(seed) not in done]

    for name, cell in {str(cell): cell for cell, _ in unfinished()}.items():
        go(name, partial(to_prepare, cell, workspace))
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(go, cell.run_name(seed), partial(to_train, cell, seed, workspace))
            for cell, seed in unfinished()  # some were finished, and only their data were missing
            if str(cell) not in failed
        ]
    for done in runs:
        done.result()  # raises what it raised
    return failed


def report(
    paper: Paper,
    cells: Sequence[Cell],
    found: Survey,
    lacking: dict[str, list[str]],
    workspace: Workspace,
) -> None:
    """Print the tables and what is missing; leave them under samples/tables/."""
    figures = found.figures
    folder = workspace.root / "samples" / "tables"
    table = render(paper, figures)
    write_figures(folder / "results.csv", figures)
    with writing(folder / "results.md") as handle:
        handle.write(table)
    print(f"\n{table}")
    filled = {f"{f.method} {f.task} {f.unit_model}" for f in figures}
    wanted: dict[str, list[str]] = {}
    for cell in cells:
        for line in lacking[str(cell)]:
            wanted.setdefault(line, []).append(str(cell))
        if str(cell) not in filled and not lacking[str(cell)]:
            print(f"{cell}: empty, and all that it needs is here")
    for name, reason in found.unusable.items():
        print(f"{name}: left out: {reason}")
    for line, needing in wanted.items():
        print(f"missing {line}\n    for {', '.join(needing)}")
    print(f"\nwrote {folder}/results.csv and results.md")


if __name__ == "__main__":
    run(main)
