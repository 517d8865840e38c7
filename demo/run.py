"""The whole pipeline on a laptop: audio to accuracy for both tasks, by the same scripts a
researcher types.

Everything lies under demo/workspace/ (made anew each time); the figures go to
samples/demo_summary.json and demo.png.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

from demo.picture import draw
from pipeline.errors import UserError, run
from pipeline.files import read_json, write_json
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.cal_acc import score

WORKSPACE = Workspace(REPOSITORY / "demo" / "workspace")
UNIT_MODEL = "logmel100"
DATE = "demo"
TASKS = {"KS": "speech_commands", "IC": "fluent_commands"}


class Stage(NamedTuple):
    """One command. ``task`` is None where it serves both."""

    name: str
    task: str | None
    command: str


RUNNER = "preprocess/runner.py --action"
STAGES = [
    Stage("speak", None, "demo/speech.py --out {workspace}/corpora"),
    Stage("manifest", None, f"{RUNNER} generate_manifest"),
    Stage("k-means", None, f"{RUNNER} learn_kmeans"),
    Stage("quantise", None, f"{RUNNER} quantized"),
    Stage("postprocess", None, f"{RUNNER} postprocess"),
    Stage("text", None, "ulm_prompt/make_data.py"),
    Stage("labelspace", None, "ulm_prompt/gen_labelspace.py"),
    Stage("verbalizer", None, "ulm_prompt/verbalizer.py"),
    Stage(
        "unit LM",
        None,
        f"ulm_prompt/train_ulm.py --unit_model {UNIT_MODEL} --config tiny --date {DATE}",
    ),
    Stage("binarise", None, "ulm_prompt/fairseq_preprocess.py"),
    *(
        Stage(
            "prompt",
            task,
            f"ulm_prompt/train.py --prompt_task {task} --recipe fast --date {DATE} {{{task}}}",
        )
        for task in TASKS
    ),
    Stage("sample", None, f"ulm_prompt/sample.py --model_date {DATE} --sample_date {DATE}"),
    Stage("score", None, f"ulm_prompt/cal_acc.py --sample_date {DATE}"),
]
# the demo's own sizes, on top of the scripts' defaults
KNOBS = {"KS": "--set max_update=300", "IC": "--set max_update=600"}


def run_stage(stage: Stage, number: int) -> float:
    """Announce and run one stage; return its seconds. Its failure ends the demo, its message shown.
    """
    command = (
        f"{stage.command} --workspace {{workspace}}"
        if "--out" not in stage.command
        else stage.command
    )
    command = command.format(workspace=shlex.quote(os.path.relpath(WORKSPACE.root)), **KNOBS)
    print(
        f"\n[{number}/{len(STAGES)}] {stage.name}{' ' + stage.task if stage.task else ''}",
        flush=True,
    )
    print(f"$ python {command}", flush=True)
    start = time.monotonic()
    result = subprocess.run([sys.executable, *shlex.split(command)], cwd=REPOSITORY, check=False)
    if result.returncode:
        raise UserError(f"the demo stopped at {stage.name}: see the message above")
    return time.monotonic() - start


def summarise(seconds: dict[Stage, float]) -> dict[str, dict]:
    """Each task's figures, from the files that the stages left."""
    summary = {}
    for task in TASKS:
        card = read_json(
            WORKSPACE.checkpoints(task, UNIT_MODEL, DATE) / "prompt.json", "ulm_prompt/train.py"
        )
        result = score(WORKSPACE.samples(task, UNIT_MODEL, DATE, DATE))
        summary[task] = {
            "accuracy": round(result.accuracy, 2),
            "accuracy_within_labels": round(result.accuracy_within_labels, 2),
            "invalid": round(result.invalid, 2),
            "utterances": result.utterances,
            "trainable_parameters": card["trained_parameters"],
            "frozen_parameters": card["lm_parameters"],
            "seconds": {
                stage.name: round(spent, 1)
                for stage, spent in seconds.items()
                if stage.task in (None, task)
            },
        }
    return summary


def show(summary: dict[str, dict], total: float) -> None:
    """Print the table. Stages without a task serve both and are shown once for both."""
    rows = {
        "test utterances": "utterances",
        "trainable parameters": "trainable_parameters",
        "frozen parameters": "frozen_parameters",
        "accuracy, %": "accuracy",
        "accuracy within labels, %": "accuracy_within_labels",
        "invalid answers, %": "invalid",
    }
    print(f"\n{'':28}" + "".join(f"{task:>12}" for task in summary))
    for title, key in rows.items():
        print(f"{title:28}" + "".join(f"{figures[key]:>12,}" for figures in summary.values()))
    stages = dict.fromkeys(name for figures in summary.values() for name in figures["seconds"])
    for name in stages:
        spent = [figures["seconds"][name] for figures in summary.values()]
        both = len(set(spent)) == 1
        cells = f"{spent[0]:>24}  (both)" if both else "".join(f"{value:>12}" for value in spent)
        print(f"{'seconds, ' + name:28}{cells}")
    print(f"{'seconds in all':28}{total:>24.0f}")


def main() -> None:
    start = time.monotonic()
    shutil.rmtree(WORKSPACE.root, ignore_errors=True)
    seconds = {stage: run_stage(stage, number) for number, stage in enumerate(STAGES, start=1)}
    summary = summarise(seconds)
    samples = REPOSITORY / "samples"
    write_json(samples / "demo_summary.json", summary)
    draw(WORKSPACE, TASKS, UNIT_MODEL, DATE, samples / "demo.png")
    show(summary, time.monotonic() - start)
    print(f"\nfigures: {samples / 'demo_summary.json'}\npicture: {samples / 'demo.png'}")


if __name__ == "__main__":
    run(main)
