"""Rebuild the paper's tables from the models and corpora at hand, beside the published figures.

The stage scripts make every cell, and are shown as they run; a finished run is not made again. For
an empty cell it says which file is missing and how to get it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.paper import (
    FIRST_SEED,
    METHODS,
    PAPER,
    Cell,
    Paper,
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
    Figure,
    put_table,
    read_figures,
    render,
    with_earlier,
    write_figures,
)
from pipeline.errors import UserError, run
from pipeline.files import writing
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection


def main() -> None:
    args = parse()
    workspace = Workspace(args.workspace.resolve())
    paper = load_paper(args.tables)
    cells = chosen(paper, args)
    lacking = {str(cell): missing(cell, paper, workspace) for cell in cells}
    at_hand = [cell for cell in cells if not lacking[str(cell)]]
    failed = [] if args.list else make(at_hand, workspace, args)
    figures, unusable = survey(paper, args.seeds, workspace)
    report(render(paper, figures), figures, unusable, lacking, workspace.root / "samples/tables")
    if args.write_docs:
        documented = with_earlier(paper, figures, read_figures(FIGURES))
        write_figures(FIGURES, documented)
        put_table(DOCUMENT, render(paper, documented))
        draw_results(paper, documented, CHART)
    stop_after(failed)


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
        help="put these figures into the tables of docs/; other cells stay",
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


def report(
    table: str,
    figures: list[Figure],
    unusable: dict[str, str],
    lacking: dict[str, list[str]],
    folder: Path,
) -> None:
    """Print the tables and what is missing; save them in ``folder``. ``lacking``: what every
    chosen cell lacks.
    """
    write_figures(folder / "results.csv", figures)
    with writing(folder / "results.md") as handle:
        handle.write(table)
    print(f"\n{table}")
    filled = {figure.cell for figure in figures}
    needed_for: dict[str, list[str]] = {}
    for cell, lines in lacking.items():
        for line in lines:
            needed_for.setdefault(line, []).append(cell)
        if cell not in filled and not lines:
            print(f"{cell}: empty, and all that it needs is here")
    for name, reason in unusable.items():
        print(f"{name}: left out: {reason}")
    for line, cells in needed_for.items():
        print(f"missing {line}\n    for {', '.join(cells)}")
    print(f"\nwrote {folder}/results.csv and results.md")


if __name__ == "__main__":
    run(main)
