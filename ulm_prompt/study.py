"""A study: one task trained in several ways and with several seeds, then a table, a CSV and a
picture.

A file in config/studies/ describes a study. A finished run is not computed again. The runs are
judged on valid; with --test the test split is decoded, too.
"""

from __future__ import annotations

import argparse

from experiments.runs import commands, outcome, run_all, stop_after
from experiments.studies import (
    TESTS,
    load_study,
    preparation,
    report,
    runs_of,
    study_names,
    study_title,
)
from pipeline.errors import UserError, run
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.tasks import add_workspace, find_pairs
from ulm_prompt.prompt_data.verbal import check_data_bin


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
    apart = "names the study with these flags, to keep it from others"
    parser.add_argument("--date", type=name_part, help=apart)
    add_workspace(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    for flag in ("seeds", "jobs", "prefix_prompt_length"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}: expected at least 1")
    study = load_study(args.study)
    workspace = Workspace(args.workspace.resolve())
    (pair,) = find_pairs(args, needs_lm=True)
    runs = runs_of(study, args, pair)
    check_data_bin(workspace, pair)
    for current in runs:
        name = f"verbalizer {current.pair.verbalizer}"
        stop_after({name} - run_all({name: preparation(current, workspace)}, 1).keys())
    todo = {str(current): commands(current, workspace, args.test) for current in runs}
    stop_after(todo.keys() - run_all(todo, args.jobs, one_core=True).keys())
    outcomes = {current: outcome(current, workspace, args.test) for current in runs}
    for current, result in outcomes.items():
        scores = f"valid {result.card['valid']['accuracy']:.2f} %"
        for key in [key for key in TESTS if key in result.test][:1]:
            scores += f", {TESTS[key]} {result.test[key]:.2f} %"
        print(f"{current}: best at update {result.card['updates']:,}, {scores}")
    folder = workspace.root / "samples" / "studies"
    name = f"{study_title(args)}_{pair.task}_{pair.unit_model}"
    written = report(study, outcomes, f"{pair.task}, {pair.unit_model}", folder, name)
    print("\nwrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    run(main)
