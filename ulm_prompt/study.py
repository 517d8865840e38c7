"""Train one task in several ways and with several seeds; write a table, a CSV and a picture.

A file in config/studies/ describes the study. A finished run is not computed again. Runs are
compared on valid; with --test, the test split is decoded too.
"""

from __future__ import annotations

import argparse

from experiments import studies
from experiments.runs import make, outcome, stop_after
from pipeline.errors import UserError, run
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.tasks import add_workspace, find_pairs
from ulm_prompt.prompt_data.verbal import check_data_bin


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("study", choices=studies.study_names())
    flag("--prompt_task", required=True, help="e.g. KS")
    flag("--unit_model", required=True, help="e.g. hubert100")
    flag("--test", action="store_true", help="decode and score test as well")
    flag("--seeds", type=int, help="seeds per run (default: the study's)")
    flag("--jobs", type=int, default=1, help="parallel runs, one core each (default: 1)")
    flag("--only", nargs="+", metavar="RUN", help="only these runs of the study")
    length = "for runs without their own length (default: the task's config)"
    flag("--prefix_prompt_length", type=int, help=length)
    flag("--recipe", help="for runs without their own recipe (default: the study's)")
    flag("--set", nargs="+", default=[], metavar="KEY=VALUE", help="knobs to change in every run")
    date = "added to the study's name, so that results with other flags are kept"
    flag("--date", type=name_part, help=date)
    add_workspace(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    for flag in ("seeds", "jobs", "prefix_prompt_length"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}: expected at least 1")
    study = studies.load_study(args.study)
    workspace = Workspace(args.workspace.resolve())
    (pair,) = find_pairs(args, needs_lm=True)
    runs = studies.runs_of(study, args, pair)
    check_data_bin(workspace, pair)
    stop_after(make(runs, workspace, args.jobs, args.test, one_core=True))
    outcomes = {current: outcome(current, workspace, args.test) for current in runs}
    name = f"{studies.study_title(args)}_{pair.task}_{pair.unit_model}"
    folder = workspace.root / "samples" / "studies"
    written = studies.report(study, outcomes, f"{pair.task}, {pair.unit_model}", folder, name)
    print("\nwrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    run(main)
