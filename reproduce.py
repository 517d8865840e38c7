"""Rebuild a paper's tables from the models and corpora at hand, beside the published figures; or,
with --all, train and score every prompt task whose corpus or rows are here.

The stage scripts make every cell, and are shown as they run; a finished run is not made again. A
task that fails does not stop the others. For an empty cell it says which file is missing and how
to get it.
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
    flag("--all", action="store_true", help="every task that has data, as it is set")
    knobs = "with --all: knobs of train.py, for every run"
    flag("--set", nargs="+", default=[], metavar="KEY=VALUE", help=knobs)
    flag("--list", action="store_true", help="make nothing: show what there is")
    flag("--method", choices=paper.METHODS, help="only this row")
    flag("--seeds", type=int, default=1, help="runs to make of each cell (default: 1)")
    at_once = "runs at once, a core each (default: 1, all cores)"
    flag("--jobs", type=int, default=1, help=at_once)
    flag("--tables", type=Path, help="another list of cells")
    into_docs = "put these figures into the tables of docs/; other cells stay"
    flag("--write_docs", action="store_true", help=into_docs)
    add_selection(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    workspace = Workspace(args.workspace.resolve())
    listed, name = wanted_table(args, workspace)
    cells = chosen(listed, args)
    lacking = {name: paper.missing(cell, listed, workspace) for name, cell in cells.items()}
    at_hand = {name: cell for name, cell in cells.items() if not lacking[name]}
    seeds = range(paper.FIRST_SEED, paper.FIRST_SEED + args.seeds)
    runs = [paper.run_of(cell, seed, workspace) for seed in seeds for cell in at_hand.values()]
    failed = [] if args.list else make(runs, workspace, args.jobs)
    figures, unusable = paper.survey(listed, args.seeds, workspace)
    table, folder = tables.render(listed, figures), workspace.root / "samples" / name
    tables.write_figures(folder / "results.csv", figures)
    with writing(folder / "results.md") as handle:
        handle.write(table)
    print(f"\n{table}")
    filled = {figure.cell for figure in figures}
    for name in [name for name in at_hand if name not in filled]:
        print(f"{name}: empty, and all that it needs is here")
    for name, reason in unusable.items():
        print(f"{name}: left out: {reason}")
    for line in dict.fromkeys(line for lines in lacking.values() for line in lines):
        needing = (name for name, lines in lacking.items() if line in lines)
        print(f"missing {line}\n    for {', '.join(needing)}")
    print(f"\nwrote {folder}/results.csv and results.md")
    if args.write_docs:
        figures = tables.with_earlier(listed, figures, tables.read_figures(tables.FIGURES))
        tables.write_figures(tables.FIGURES, figures)
        tables.put_table(tables.DOCUMENT, tables.render(listed, figures))
        draw_results(listed, figures, tables.CHART)
    stop_after(failed)


def wanted_table(args: argparse.Namespace, workspace: Workspace) -> tuple[paper.Paper, str]:
    """The cells that the flags ask for, and the folder of their results. Raises ``UserError`` for
    flags that contradict each other.
    """
    if args.write_docs and (args.all or args.tables or args.paper != "v1"):
        raise UserError("--write_docs: docs/results.md has the tables of --paper v1 alone")
    if args.set and not args.all:
        raise UserError("--set: for --all alone; the list of cells says how the others are trained")
    if not args.all:
        name = "tables" if args.tables or args.paper == "v1" else f"tables_{args.paper}"
        return paper.load_paper(args.tables or paper.PAPERS[args.paper]), name
    if not args.unit_model:
        raise UserError("--all: give --unit_model, for example moonshine100")
    return paper.all_tasks(args.unit_model, args.set, workspace), "tables_all"


def chosen(listed: paper.Paper, args: argparse.Namespace) -> dict[str, paper.Cell]:
    """The cells that the flags ask for, by name. Raises ``UserError`` when there are none."""
    wanted = {"method": args.method, "task": args.prompt_task, "unit_model": args.unit_model}
    asked = {name: value for name, value in wanted.items() if value}
    cells = [c for c in listed.cells if all(getattr(c, name) == asked[name] for name in asked)]
    if not cells:
        raise UserError(f"the paper's tables have no cell with {' '.join(asked.values())}")
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds {args.seeds} --jobs {args.jobs}: expected at least 1")
    return {str(cell): cell for cell in cells}


if __name__ == "__main__":
    run(main)
