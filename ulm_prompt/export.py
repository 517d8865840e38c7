"""Make a trained prompt a thing to share: one folder with its tensors, what they belong to, and a
page to read.

A published checkpoint (.pt) that lies where train.py would have put it is exported the same way.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.errors import UserError, run
from pipeline.files import holding, replacing_folder, sha256, writing
from pipeline.runs import provenance
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import add_workspace
from ulm_prompt.using.find_prompts import BEST
from ulm_prompt.using.prompt_record import README, RECORD, TENSORS, PromptRecord, write_record
from ulm_prompt.using.share import page


def check_out(out: Path) -> None:
    """Raises ``UserError`` unless ``out`` is new, empty, or an earlier export: it is replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: a file; name a folder")
    foreign = {path.name for path in out.glob("*")} - {README, RECORD, TENSORS}
    if foreign:
        raise UserError(f"--out {out}: holds {min(foreign)}; name a new folder")


def gather(args: argparse.Namespace, checkpoint: Path) -> tuple[PromptRecord, dict]:
    """The record of the prompt at ``checkpoint`` and its tensors, held to the LM that is here."""
    from ulm_prompt.prompt_lm.checkpoint import prompted
    from ulm_prompt.prompt_lm.lm import load_unit_lm
    from ulm_prompt.prompt_lm.prompt import KEYS, VALUES
    from ulm_prompt.using.share import read_prompt, record_of, scores_on_test

    workspace = Workspace(args.workspace)
    record = record_of(checkpoint, args.prompt_task, args.unit_model, workspace)
    state = read_prompt(checkpoint)
    folder = lm_folder(workspace, args.unit_model)
    unit_lm = load_unit_lm(folder)
    prompt = prompted(checkpoint, state, unit_lm, folder).prompt
    tensors = prompt.published_state()
    # what else was trained beside the prompt, by the name of its module
    beside = {name for name in state if not name.startswith("decoder.")} - {KEYS, VALUES}
    tensors |= {name: state[name] for name in beside}
    made_by = {
        name: value
        for name, value in provenance().items()
        if name != "command"  # it has paths
    }
    record = dataclasses.replace(
        record,
        prefix_prompt_length=prompt.length,
        trained_parameters=sum(tensor.numel() for tensor in tensors.values()),
        lm_fingerprint=unit_lm.fingerprint,
        lm_parameters=unit_lm.parameters,
        test=scores_on_test(
            workspace, args.prompt_task, args.unit_model, args.model_date, checkpoint
        ),
        license=args.license,
        made_by={"trained": record.made_by, "exported": made_by},
    )
    return record, tensors


def export(record: PromptRecord, tensors: dict, out: Path) -> None:
    """Write the folder; it appears whole or not at all."""
    from pipeline.torch_files import save_safetensors

    with replacing_folder(out) as folder:
        save_safetensors(tensors, folder / TENSORS)
        write_record(folder, record)
        with writing(folder / README) as handle:
            handle.write(page(record, out.name, sha256(folder / TENSORS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt_task", required=True, help="for example KS")
    parser.add_argument("--unit_model", required=True, help="for example hubert100")
    parser.add_argument("--model_date", required=True, help="the --date of training")
    parser.add_argument("--checkpoint", default=BEST, help="another file than the best, or a path")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--license", help="under which others may use the prompt: CC-BY-4.0, ...")
    add_workspace(parser)
    args = parser.parse_args()
    workspace = Workspace(args.workspace)
    folder = workspace.checkpoints(args.prompt_task, args.unit_model, args.model_date)
    checkpoint = folder / args.checkpoint
    if not checkpoint.is_file():
        raise UserError(
            f"{checkpoint}: not found; train it with ulm_prompt/train.py "
            f"--date {args.model_date}, or correct --model_date"
        )
    out = args.out.resolve()
    check_out(out)
    record, tensors = gather(args, checkpoint)
    with holding(out):
        export(record, tensors, out)
    print(
        f"{record.task} {record.unit_model}: {len(record.labels)} labels, "
        f"{record.trained_parameters:,} trained parameters -> {args.out}"
    )
    if not record.test:
        print("no test accuracy: no sample file of this checkpoint; ulm_prompt/sample.py makes one")
    if record.license is None:
        print("no licence: others may not know what they may do with it; --license names one")
    print(f"next: python ulm_prompt/predict.py --prompt {args.out} FILES")


if __name__ == "__main__":
    run(main)
