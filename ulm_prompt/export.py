"""Make a trained prompt a folder to share: its tensors, prompt.json and a page to read.

A published checkpoint (.pt) is exported the same way, from the folder where train.py would put it.
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
    flag("--checkpoint", default=BEST, help="another file than the best, or a path")
    flag("--out", required=True, type=Path, help="the folder to write")
    flag("--license", help="under which others may use the prompt: CC-BY-4.0, ...")
    upload = "upload it to the Hugging Face Hub too, where predict.py finds it as hf:USER/NAME"
    flag("--push", metavar="USER/NAME", help=upload)
    add_workspace(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    pair = args.prompt_task, args.unit_model
    checkpoint = workspace.checkpoints(*pair, args.model_date) / args.checkpoint
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: not found; train it, or correct --model_date")
    out = args.out.resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: a file; name a folder")
    if foreign := {path.name for path in out.glob("*")} - set(SHARED):  # an earlier export may go
        raise UserError(f"--out {out}: holds {min(foreign)}; name a new folder")
    if args.push:
        check_hub_name(args.push, f"--push {args.push}")
    name = f"{HUB}{args.push}" if args.push else str(args.out)

    from ulm_prompt.using.share import write_shared

    where = args.model_date, workspace, args.license, out
    with holding(out):
        record = write_shared(checkpoint, pair, *where, name if args.push else out.name)
        commit = push(out, args.push) if args.push else None
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
