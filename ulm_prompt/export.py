"""Export a trained prompt as a folder to share: the tensors, prompt.json and README.md.

A published checkpoint (.pt) is exported in the same way, from the folder that train.py would use.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import UserError, run
from pipeline.files import holding
from pipeline.workspace import Workspace, name_part
from ulm_prompt.prompt_data.prompt_record import BEST
from ulm_prompt.prompt_data.tasks import add_workspace
from ulm_prompt.using.find_prompts import HUB, SHARED, check_hub_name, push


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--prompt_task", required=True, help="for example KS")
    flag("--unit_model", required=True, help="for example hubert100")
    flag("--model_date", type=name_part, required=True, help="the --date of training")
    flag("--checkpoint", default=BEST, help=f"file name or path (default: {BEST})")
    flag("--out", required=True, type=Path, help="the folder to write")
    flag("--license", help="licence of the prompt: CC-BY-4.0, ...")
    upload = "also upload to the Hugging Face Hub; predict.py --prompt hf:USER/NAME then loads it"
    flag("--push", metavar="USER/NAME", help=upload)
    add_workspace(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    run_name = args.prompt_task, args.unit_model, args.model_date
    checkpoint = workspace.checkpoints(*run_name) / args.checkpoint
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: not found; train it, or correct --model_date")
    out = args.out.resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder, found a file; name a folder")
    if foreign := {path.name for path in out.glob("*")} - set(SHARED):  # replace earlier exports
        raise UserError(f"--out {out}: contains {min(foreign)}; name a new folder")
    if args.push:
        check_hub_name(args.push, f"--push {args.push}")
    name = f"{HUB}{args.push}" if args.push else str(args.out)

    from ulm_prompt.using.share import write_shared

    prompt_name = name if args.push else out.name
    with holding(out):
        record = write_shared(checkpoint, *run_name, workspace, args.license, out, prompt_name)
        commit = push(out, args.push) if args.push else None
    print(
        f"{record.task} {record.unit_model}: {len(record.labels)} labels, "
        f"{record.trained_parameters:,} trained parameters -> {args.out}"
    )
    if not record.test:
        print("no test accuracy: no sample file of this checkpoint; run ulm_prompt/sample.py first")
    if record.license is None:
        print("no licence: others do not know how they may use the prompt; add --license")
    if commit:
        print(f"pushed to {name}, commit {commit}")
    print(f"next: python ulm_prompt/predict.py --prompt {name} FILES")


if __name__ == "__main__":
    run(main)
