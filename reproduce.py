"""Rebuild a paper's tables from the models and corpora at hand, beside the published figures; or,
with --all, train and score every prompt task whose corpus or rows are here.

The stage scripts make every cell, and are shown as they run; a finished run is not made again. A
task that fails does not stop the others. For an empty cell it says which file is missing and how
to get it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.paper import (
    FIRST_SEED,
    METHODS,
    PAPER,
    PAPERS,
    Cell,
    Paper,
    all_tasks,
    features,
    load_paper,
    missing,
    preparation,
    run_of,
    survey,
)
from experiments.pictures import draw_results
from experiments.runs import Command, commands, run_all, stop_after
from experiments.tables import (
    CHART,
    DOCUMENT,
    FIGURES,
    put_table,
    read_figures,
    render,
    report,
    with_earlier,
    write_figures,
)
from pipeline.errors import UserError, run
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection


def main() -> None:
    args = parse()
    workspace = Workspace(args.workspace.resolve())
    paper, name = wanted_table(args, workspace)
    cells = chosen(paper, args)
    lacking = {str(cell): missing(cell, paper, workspace) for cell in cells}
    at_hand = [cell for cell in cells if not lacking[str(cell)]]
    failed = [] if args.list else make(at_hand, workspace, args)
    figures, unusable = survey(paper, args.seeds, workspace)
    report(render(paper, figures), figures, unusable, lacking, workspace.root / "samples" / name)
    if args.write_docs:
        documented = with_earlier(paper, figures, read_figures(FIGURES))
        write_figures(FIGURES, documented)
        put_table(DOCUMENT, render(paper, documented))
        draw_results(paper, documented, CHART)
    stop_after(failed)


def wanted_table(args: argparse.Namespace, workspace: Workspace) -> tuple[Paper, str]:
    """The cells that the flags ask for, and the folder of their results. Raises ``UserError`` for
    flags that contradict each other.
    """
    if args.write_docs and (args.all or args.tables or PAPERS[args.paper] != PAPER):
        raise UserError("--write_docs: docs/results.md has the tables of --paper v1 alone")
    if args.set and not args.all:
        raise UserError("--set: for --all alone; the list of cells says how the others are trained")
    if not args.all:
        name = "tables" if args.tables or args.paper == "v1" else f"tables_{args.paper}"
        return load_paper(args.tables or PAPERS[args.paper]), name
    if not args.unit_model:
        raise UserError("--all: give --unit_model, for example moonshine100")
    return all_tasks(args.unit_model, args.set, workspace), "tables_all"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", choices=PAPERS, default="v1", help="SpeechPrompt v1 or v2")
    parser.add_argument("--all", action="store_true", help="every task that has data, as it is set")
    knobs = {"nargs": "+", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", **knobs, help="with --all: knobs of train.py, for every run")
    parser.add_argument("--list", action="store_true", help="make nothing: show what there is")
    parser.add_argument("--method", choices=METHODS, help="only this row")
    of_cell = "runs to make of each cell (default: 1)"
    parser.add_argument("--seeds", type=int, default=1, help=of_cell)
    at_once = "runs at once, a core each (default: 1, all cores)"
    parser.add_argument("--jobs", type=int, default=1, help=at_once)
    parser.add_argument("--tables", type=Path, help="another list of cells")
    into_docs = "put these figures into the tables of docs/; other cells stay"
    parser.add_argument("--write_docs", action="store_true", help=into_docs)
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


def make(cells: Sequence[Cell], workspace: Workspace, args: argparse.Namespace) -> list[str]:
    """Run what is not finished; return the names of what failed."""

    def training(cell: Cell, seed: int) -> Iterator[Command]:
        if todo := commands(run_of(cell, seed, workspace), workspace):
            yield from features(cell, workspace)
            yield from todo

    prepared = run_all({str(cell): preparation(cell, workspace) for cell in cells}, 1)
    runs = {
        f"{cell} seed {seed}": training(cell, seed)
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds)
        for cell in cells
        if str(cell) in prepared
    }
    made = run_all(runs, args.jobs)
    return [name for name in (*map(str, cells), *runs) if name not in prepared | made]


if __name__ == "__main__":
    run(main)
