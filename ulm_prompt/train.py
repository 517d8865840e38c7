"""Stage 4: train a task's prompt on the frozen unit LM (or, with --fine_tune, the whole LM).

The same command with the same --date resumes an interrupted run. On several GPUs, or with several
CPU processes: torchrun --nproc_per_node N ulm_prompt/train.py ...
"""

from __future__ import annotations

import argparse
import contextlib

from pipeline.devices import Ranks, on_main, process_group, ranks, speak_on_main_alone
from pipeline.errors import run
from pipeline.files import holding
from pipeline.runs import add_quiet
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.prompt_record import PromptRecord
from ulm_prompt.prompt_data.tasks import Pair, add_selection, find_pairs, print_next
from ulm_prompt.scoring.scores import valid_curve
from ulm_prompt.training.prompt_run import prepare
from ulm_prompt.training.recipe import DTYPES

SCORE_UNITS = "loss in bits, label_loss in nats per label, accuracy in %"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--date", type=name_part, required=True, help="names the run, e.g. 20221122")
    flag("--prefix_prompt_length", type=int, help="P, in vectors (default: the task's config)")
    infix = "vectors that only <s> and later tokens see, instead of the prefix (default: 0)"
    flag("--infix_prompt_length", type=int, default=0, help=infix)
    flag("--fine_tune", action="store_true", help="train the whole LM, no prompt")
    flag("--recipe", help="a file in config/recipes/ (default: the task's config)")
    flag("--set", nargs="+", default=[], metavar="KEY=VALUE", help="knobs of the recipe")
    flag("--dtype", choices=DTYPES, help="short for --set dtype=...")
    add_selection(parser, verbalizer=True)
    add_quiet(parser)
    return parser.parse_args()


def train_pair(args: argparse.Namespace, pair: Pair, here: Ranks) -> None:
    """Train one task on one unit model, and complete the record of the run."""
    workspace = Workspace(args.workspace)
    save_dir = workspace.checkpoints(pair.task, pair.unit_model, args.date)
    logs = workspace.logs(pair.task, pair.unit_model, args.date)
    lm_dir = lm_folder(workspace, pair.unit_model)
    record, settings = on_main(here, lambda: prepare(args, pair, save_dir))
    with contextlib.ExitStack() as stack:
        on_main(here, lambda: stack.enter_context(holding(save_dir)))
        if settings is None:
            print(f"{save_dir}: this run has finished; nothing to train")
            report(record)
            return

        from ulm_prompt.prompt_lm import checkpoint
        from ulm_prompt.training.fairseq_run import train

        record = on_main(here, lambda: checkpoint.begin(save_dir, record))
        print(f"{pair.task} {pair.unit_model}: recipe {record.recipe} -> {save_dir}; {SCORE_UNITS}")
        train(record.training, settings, save_dir, logs, here)
        log = logs / "train.log"
        done = on_main(here, lambda: checkpoint.finish(save_dir, record, valid_curve(log), lm_dir))
    report(done)


def report(record: PromptRecord) -> None:
    """Print the update of the best checkpoint, and its scores on valid."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in record.valid.items())
    print(
        f"{record.task} {record.unit_model}: best at update {record.run.updates:,} of "
        f"{record.run.total_updates:,}; on valid, with the true earlier labels given: "
        f"{scores or 'unknown, train.log was removed'} ({SCORE_UNITS})"
    )


def main() -> None:
    args = parse()
    here = ranks()
    speak_on_main_alone(here)
    with process_group(here):
        for pair in on_main(here, lambda: find_pairs(args, needs_lm=True)):
            train_pair(args, pair, here)
    dates = ("--model_date", args.date, "--sample_date", args.date)
    print_next(args, "ulm_prompt/sample.py", *dates)


if __name__ == "__main__":
    run(main)
