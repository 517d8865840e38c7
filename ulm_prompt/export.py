"""Make a trained prompt a folder to share: its tensors, prompt.json and a page to read.

A published checkpoint (.pt) is exported the same way, from the folder where train.py would put it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import UserError, run
from pipeline.files import holding
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.prompt_record import BEST, README, RECORD, TENSORS
from ulm_prompt.prompt_data.tasks import add_workspace
from ulm_prompt.using import hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt_task", required=True, help="for example KS")
    parser.add_argument("--unit_model", required=True, help="for example hubert100")
    date = "the --date of training"
    parser.add_argument("--model_date", type=name_part, required=True, help=date)
    parser.add_argument("--checkpoint", default=BEST, help="another file than the best, or a path")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--license", help="under which others may use the prompt: CC-BY-4.0, ...")
    push = "upload it to the Hugging Face Hub too, where predict.py finds it as hf:USER/NAME"
    parser.add_argument("--push", metavar="USER/NAME", help=push)
    add_workspace(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    pair = args.prompt_task, args.unit_model
    checkpoint = workspace.checkpoints(*pair, args.model_date) / args.checkpoint
    if not checkpoint.is_file():
        raise UserError(
            f"{checkpoint}: not found; train it with ulm_prompt/train.py "
            f"--date {args.model_date}, or correct --model_date"
        )
    out = args.out.resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: a file; name a folder")
    # an earlier export is replaced
    if foreign := {path.name for path in out.glob("*")} - {README, RECORD, TENSORS}:
        raise UserError(f"--out {out}: holds {min(foreign)}; name a new folder")

    if args.push:
        hub.check(args.push, f"--push {args.push}")
    name = f"{hub.PREFIX}{args.push}" if args.push else str(args.out)

    from ulm_prompt.using.share import write_shared

    where = args.model_date, workspace, args.license, out
    with holding(out):
        record = write_shared(checkpoint, pair, *where, name if args.push else None)
        commit = hub.push(out, args.push) if args.push else None
    print(
        f"{record.task} {record.unit_model}: {len(record.labels)} labels, "
        f"{record.trained_parameters:,} trained parameters -> {args.out}"
    )
    if not record.test:
        print("no test accuracy: no sample file of this checkpoint; ulm_prompt/sample.py makes one")
    if record.license is None:
        print("no licence: others may not know what they may do with it; --license names one")
    if commit:
        print(f"pushed to {name}, commit {commit}")
    print(f"next: python ulm_prompt/predict.py --prompt {name} FILES")


if __name__ == "__main__":
    run(main)
