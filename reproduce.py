"""Rebuild a paper's tables, with our figures next to the published ones. With --all, train and
score every prompt task whose corpus or rows exist.

The script runs the stage scripts for every cell and prints their output. Finished runs are not
repeated. A task that fails does not stop the others. For each empty cell, the script prints which
file is missing and how to get it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import paper, tables
from experiments.pictures import draw_results
from experiments.runs import make, stop_after
from pipeline.errors import UserError, run
from pipeline.files import writing
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_selection


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--paper", choices=paper.PAPERS, default="v1", help="SpeechPrompt v1 or v2")
    flag("--all", action="store_true", help="every task that has data, by the task's config")
    knobs = "with --all: knobs of train.py, for every run"
    flag("--set", nargs="+", default=[], metavar="KEY=VALUE", help=knobs)
    flag("--list", action="store_true", help="only print and write the table of finished runs")
    flag("--method", choices=paper.METHODS, help="only this row")
    flag("--seeds", type=int, default=1, help="number of runs per cell (default: 1)")
    jobs = "runs at the same time, one core per run (default: 1, on all cores)"
    flag("--jobs", type=int, default=1, help=jobs)
    flag("--tables", type=Path, help="another list of cells")
    into_docs = "write these figures into the tables of docs/; other cells stay"
    flag("--write_docs", action="store_true", help=into_docs)
    add_selection(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    workspace = Workspace(args.workspace.resolve())
    table_cells, name = load_table(args, workspace)
    cells = select_cells(table_cells, args)
    missing = {name: paper.missing(cell, table_cells, workspace) for name, cell in cells.items()}
    runnable = {name: cell for name, cell in cells.items() if not missing[name]}
    seeds = range(paper.FIRST_SEED, paper.FIRST_SEED + args.seeds)
    runs = [paper.run_of(cell, seed, workspace) for seed in seeds for cell in runnable.values()]
    failed = [] if args.list else make(runs, workspace, args.jobs)
    figures, unusable = paper.survey(table_cells, args.seeds, workspace)
    table, folder = tables.render(table_cells, figures), workspace.root / "samples" / name
    tables.write_figures(folder / "results.csv", figures)
    with writing(folder / "results.md") as handle:
        handle.write(table)
    print(f"\n{table}")
    filled = {figure.cell for figure in figures}
    for name in [name for name in runnable if name not in filled]:
        print(f"{name}: no figure yet; no file is missing")
    for name, reason in unusable.items():
        print(f"{name}: left out: {reason}")
    for line in dict.fromkeys(line for lines in missing.values() for line in lines):
        needed_by = (name for name, lines in missing.items() if line in lines)
        print(f"{line}\n    for {', '.join(needed_by)}")
    print(f"\nwrote {folder}/results.csv and results.md")
    if args.write_docs:
        figures = tables.with_earlier(table_cells, figures, tables.read_figures(tables.FIGURES))
        tables.write_figures(tables.FIGURES, figures)
        tables.put_table(tables.DOCUMENT, tables.render(table_cells, figures))
        draw_results(table_cells, figures, tables.CHART)
    stop_after(failed)


def load_table(args: argparse.Namespace, workspace: Workspace) -> tuple[paper.Paper, str]:
    """Return the requested list of cells, and the name of the folder for the results. Raises
    ``UserError`` for flags that contradict each other.
    """
    if args.write_docs and (args.all or args.tables or args.paper != "v1"):
        raise UserError("--write_docs: docs/results.md has only the tables of --paper v1")
    if args.set and not args.all:
        raise UserError("--set: works only with --all; else the list of cells sets the knobs")
    if not args.all:
        name = "tables" if args.tables or args.paper == "v1" else f"tables_{args.paper}"
        return paper.load_paper(args.tables or paper.PAPERS[args.paper]), name
    if not args.unit_model:
        raise UserError("--all: give --unit_model, for example moonshine100")
    return paper.all_tasks(args.unit_model, args.set, workspace), "tables_all"


def select_cells(table_cells: paper.Paper, args: argparse.Namespace) -> dict[str, paper.Cell]:
    """Return the requested cells by name. Raises ``UserError`` if no cell matches the flags."""
    flags = {"method": args.method, "task": args.prompt_task, "unit_model": args.unit_model}
    given = {name: value for name, value in flags.items() if value}
    cells = [c for c in table_cells.cells if all(getattr(c, k) == v for k, v in given.items())]
    if not cells:
        known = dict.fromkeys(" ".join(getattr(c, k) for k in given) for c in table_cells.cells)
        expected = f"expected one of {', '.join(known)}"
        expected += "" if args.all else "; for other tasks use --all"
        raise UserError(f"no cell with {' '.join(given.values())}: {expected}")
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds {args.seeds} --jobs {args.jobs}: expected at least 1")
    return {str(cell): cell for cell in cells}


if __name__ == "__main__":
    run(main)
