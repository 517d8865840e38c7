"""A study: one task trained in several ways and with several seeds, then a table, a CSV and a
picture.

Each file in config/studies/ is one. A run that is finished is not computed again. Judged on valid;
with --test the test split is decoded, too.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.study_cell import Outcome, Place, complete, place
from experiments.study_plan import cells_of, load_study, stem, study_names
from experiments.study_report import TESTS, report
from pipeline.errors import UserError, run
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_workspace, find_pairs, load_task


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=study_names())
    parser.add_argument("--prompt_task", required=True, help="for example KS")
    parser.add_argument("--unit_model", required=True, help="for example hubert100")
    parser.add_argument("--test", action="store_true", help="decode and score test as well")
    parser.add_argument("--seeds", type=int, help="runs of each way (default: the study's)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, a core each (default: 1)"
    )
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these runs of the study")
    parser.add_argument(
        "--prefix_prompt_length", type=int, help="where a run has none (default: the task's config)"
    )
    parser.add_argument("--recipe", help="where a run has none (default: the study's)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="knobs, changed in every run"
    )
    parser.add_argument("--date", help="names the study with these flags, to keep it from others")
    add_workspace(parser)
    return parser.parse_args()


def finish(here: Place, test: bool) -> Outcome:
    """Complete a run and say how it went."""
    cell = here.cell
    known = here.recorded()
    try:
        outcome = complete(here, test)
    except UserError as error:
        raise UserError(f"{cell.name}, seed {cell.seed}: {error}") from None
    news = "finished before" if known == outcome else f"best at update {outcome.updates:,}"
    scores = f"valid {outcome.valid['accuracy']:.2f} %"
    if outcome.test:
        key = next(key for key in TESTS if key in outcome.test)
        scores += f", {TESTS[key]} {outcome.test[key]:.2f} %"
    print(f"{cell.name}, seed {cell.seed}: {news}, {scores}", flush=True)
    return outcome


def main() -> None:
    args = parse()
    for flag in ("seeds", "jobs", "prefix_prompt_length"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}: expected at least 1")
    study = load_study(args.study)
    cells = cells_of(study, args, load_task(args.prompt_task))
    (pair,) = find_pairs(args, needs_lm=True)
    workspace = Workspace(args.workspace)
    places = [place(cell, pair, workspace) for cell in cells]
    pool = ThreadPoolExecutor(args.jobs)
    try:
        running = [pool.submit(finish, here, args.test) for here in places]
        outcomes = dict(zip(cells, [run.result() for run in running], strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    name = f"{stem(args)}_{pair.task}_{pair.unit_model}"
    written = report(
        study, outcomes, f"{pair.task}, {pair.unit_model}", workspace.root / "samples/studies", name
    )
    print("\nwrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    run(main)
