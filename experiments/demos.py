"""The demos: every stage in a row on small corpora, by the commands that a researcher types."""

from __future__ import annotations

import os
import shutil
import time

from experiments.runs import run_all, stop_after
from pipeline.runs import run_script
from pipeline.workspace import REPOSITORY, Workspace

UNIT_MODEL, OFFLINE_UNIT_MODEL = "moonshine100", "mfcc100"
DATE = "demo"
Commands = dict[str, str]  # by task; under "" where one serves all
Seconds = dict[str, dict[str, float]]  # by stage, then as Commands


def demo_stages(
    corpora: Commands, manifests: Commands, lm_updates: int, prompts: Commands
) -> dict[str, Commands]:
    """The commands of every stage, from the scripts that write corpora to the scores.

    By task: ``manifests`` has its downstream and settings, ``prompts`` the command that trains.
    """
    runner = "preprocess/runner.py --unit_model {unit_model} --downstream"
    downstreams = " ".join(manifest.split()[0] for manifest in manifests.values())
    ulm = f"--config tiny --date {DATE} --set max_update={lm_updates}"
    return {
        "corpora": corpora,
        "manifest": {
            task: f"{runner} {manifest} --action generate_manifest"
            for task, manifest in manifests.items()
        },
        "k-means": {"": f"{runner} {downstreams} --action learn_kmeans"},
        "quantise": {"": f"{runner} {downstreams} --action quantized"},
        "postprocess": {"": f"{runner} {downstreams} --action postprocess"},
        "text": {"": "ulm_prompt/make_data.py"},
        "labelspace": {"": "ulm_prompt/gen_labelspace.py"},
        "verbalizer": {"": "ulm_prompt/verbalizer.py"},
        "unit LM": {"": f"ulm_prompt/train_ulm.py --unit_model {{unit_model}} {ulm}"},
        "binarise": {"": "ulm_prompt/fairseq_preprocess.py"},
        "prompt": prompts,
        "sample": {"": f"ulm_prompt/sample.py --model_date {DATE} --sample_date {DATE}"},
        "n-grams": {"": f"baselines/unit_ngrams.py --date {DATE}"},
        "score": {"": f"ulm_prompt/cal_acc.py --sample_date {DATE}"},
    }


def train_command(task: str, length: int, updates: int, knobs: str) -> str:
    """The command that trains a task's prompt of ``length``."""
    return (
        f"ulm_prompt/train.py --prompt_task {task} --recipe fast --prefix_prompt_length {length} "
        f"--date {DATE} --set max_update={updates} best_by=loss {knobs}"
    )


def run_stages(stages: dict[str, Commands], workspace: Workspace) -> tuple[str, Seconds]:
    """Empty the workspace and run all stages in turn, a stage's tasks at once, a core each.

    Returns the unit model and the seconds. A failure ends the script, its message shown.
    """
    shutil.rmtree(workspace.root, ignore_errors=True)
    folder = os.path.relpath(workspace.root, REPOSITORY)
    start = time.monotonic()
    print(f"\n[0/{len(stages)}] unit model", flush=True)
    unit_model = _get_unit_model()
    seconds: Seconds = {"unit model": {"": time.monotonic() - start}}
    for number, (stage, commands) in enumerate(stages.items(), start=1):
        print(f"\n[{number}/{len(stages)}] {stage}", flush=True)
        words = {}
        for task, command in commands.items():
            command += "" if "--out" in command else " --workspace {workspace}"
            command = command.format(workspace=folder, unit_model=unit_model)
            words[task or stage] = [command.split()]
        spent = run_all(words, len(words))
        stop_after(words.keys() - spent.keys())
        seconds[stage] = dict(zip(commands, spent.values()))
    return unit_model, seconds


def seconds_of(task: str, seconds: Seconds) -> dict[str, float]:
    return {stage: round(spent.get(task, spent.get("", 0)), 1) for stage, spent in seconds.items()}


def _get_unit_model() -> str:
    """Download the encoder of ``UNIT_MODEL`` into the repository, where all workspaces use it.
    Without a network, return ``OFFLINE_UNIT_MODEL`` and say so.
    """
    code = run_script(["pretrained_models/download.py", UNIT_MODEL, "--only", "checkpoint"])
    if code == 1:  # 2: a file is there, but another than expected
        print(
            f"the demo uses {OFFLINE_UNIT_MODEL}, which needs no download and understands far "
            f"less: {UNIT_MODEL} could not be downloaded (see above)",
            flush=True,
        )
        return OFFLINE_UNIT_MODEL
    if code:
        raise SystemExit(code)
    return UNIT_MODEL
