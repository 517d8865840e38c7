"""The whole pipeline on a laptop: audio to accuracy for both tasks, by the same scripts a
researcher types.

KS is real speech (demo/clips.py), IC is synthetic (demo/speech.py). The output is under
demo/workspace/, which is emptied first; the figures go to samples/demo_summary.json and demo.png.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt

from baselines.classifiers.answers import card_path
from pipeline.errors import run
from pipeline.files import read_json, replacing, write_json
from pipeline.runs import run_script
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.scoring.class_report import answers
from ulm_prompt.scoring.pictures import confusion_on, valid_curve
from ulm_prompt.scoring.scores import label_names, score

# The demo's picture: each task's learning curve and confusion matrix.


matplotlib.use("Agg")


def draw(
    workspace: Workspace, tasks: Iterable[str], unit_model: str, date: str, path: Path
) -> None:
    """Write one PNG with a row per task."""
    tasks = list(tasks)
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(15, 7 * len(tasks)), width_ratios=(1, 1.5), layout="constrained"
    )
    for (curve_axis, matrix_axis), task in zip(axes, tasks):
        _curve(curve_axis, workspace.logs(task, unit_model, date) / "train.log", task)
        names = label_names(workspace, Pair(task, unit_model, load_task(task)))
        samples = workspace.samples(task, unit_model, date, date)
        confusion_on(matrix_axis, *answers(samples, names), task)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    plt.close(figure)


def _curve(axis: plt.Axes, log: Path, task: str) -> None:
    curve = valid_curve(log)
    updates = list(curve)
    axis.plot(updates, [scores["accuracy"] for scores in curve.values()], color="tab:blue")
    axis.set(title=f"{task}: learning curve on valid", xlabel="updates", ylim=(0, 102))
    axis.set_ylabel("accuracy, % (labels before it given)", color="tab:blue")
    axis.grid(alpha=0.3)
    loss = axis.twinx()
    loss.plot(updates, [scores["label_loss"] for scores in curve.values()], color="tab:orange")
    loss.set_ylabel("loss, nats a label", color="tab:orange")
    loss.set_ylim(bottom=0)


if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])


WORKSPACE = Workspace(REPOSITORY / "demo" / "workspace")
UNIT_MODEL, OFFLINE_UNIT_MODEL = "moonshine100", "mfcc100"
DATE = "demo"
TASKS = ("KS", "IC")


class Stage(NamedTuple):
    """One step: a command, or one for each task, which then run at once, a core each."""

    name: str
    commands: dict[str, str]  # by task; "" where one serves both


def both(name: str, command: str) -> Stage:
    return Stage(name, {"": command})


def train(task: str, updates: int, unit_noise: float) -> str:
    """The command that trains a task's prompt."""
    return (
        f"ulm_prompt/train.py --prompt_task {task} --recipe fast --prefix_prompt_length 20 "
        f"--date {DATE} --set max_update={updates} batch_size=32 unit_noise={unit_noise} "
        "best_by=loss"
    )


def pipeline(
    corpora: Stage, manifests: dict[str, str], lm_updates: int, prompts: dict[str, str]
) -> list[Stage]:
    """Every stage from the scripts that write corpora to the scores. By task: ``manifests`` has its
    downstream and settings, ``prompts`` the command that trains its prompt.
    """
    runner = "preprocess/runner.py --unit_model {unit_model} --downstream"
    downstreams = " ".join(manifest.split()[0] for manifest in manifests.values())
    kmeans = "--set fairseqrc.km_frames=200000 fairseqrc.km_starts=5"
    ulm = f"--config tiny --date {DATE} --set max_update={lm_updates}"
    listed = {
        task: f"{runner} {manifest} --action generate_manifest"
        for task, manifest in manifests.items()
    }
    return [
        corpora,
        Stage("manifest", listed),
        both("k-means", f"{runner} {downstreams} --action learn_kmeans {kmeans}"),
        both("quantise", f"{runner} {downstreams} --action quantized"),
        both("postprocess", f"{runner} {downstreams} --action postprocess"),
        both("text", "ulm_prompt/make_data.py"),
        both("labelspace", "ulm_prompt/gen_labelspace.py"),
        both("verbalizer", "ulm_prompt/verbalizer.py"),
        both("unit LM", f"ulm_prompt/train_ulm.py --unit_model {{unit_model}} {ulm}"),
        both("binarise", "ulm_prompt/fairseq_preprocess.py"),
        Stage("prompt", prompts),
        both("sample", f"ulm_prompt/sample.py --model_date {DATE} --sample_date {DATE}"),
        both("n-grams", f"baselines/unit_ngrams.py --date {DATE}"),
        both("score", f"ulm_prompt/cal_acc.py --sample_date {DATE}"),
    ]


EACH_ONCE = "--set datarc.train=each_once datarc.valid=each_once"
STAGES = pipeline(
    Stage(
        "corpora",
        {
            "KS": "demo/clips.py --out {workspace}/corpora",
            "IC": "demo/speech.py --out {workspace}/corpora",
        },
    ),
    {"KS": f"speech_commands {EACH_ONCE}", "IC": "fluent_commands"},
    300,
    {"KS": train("KS", 1500, 0.2), "IC": train("IC", 2200, 0.1)},
)


def run_stages(
    stages: list[Stage], workspace: Workspace
) -> tuple[str, dict[str, dict[str, float]]]:
    """Empty the workspace and run all stages in turn. Returns the unit model, and the seconds of
    each stage by task.
    """
    shutil.rmtree(workspace.root, ignore_errors=True)
    start = time.monotonic()
    print(f"\n[0/{len(stages)}] unit model", flush=True)
    unit_model = get_unit_model()
    seconds = {"unit model": {"": time.monotonic() - start}}
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.name}", flush=True)
        seconds[stage.name] = run_stage(stage, unit_model, workspace)
    return unit_model, seconds


def get_unit_model() -> str:
    """Download the encoder of ``UNIT_MODEL`` into the repository, where every workspace uses it.
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


def run_stage(stage: Stage, unit_model: str, workspace: Workspace) -> dict[str, float]:
    """Run one stage; return its seconds by task. A failure ends the demo, its message shown."""
    environment = {"OMP_NUM_THREADS": "1"} if len(stage.commands) > 1 else {}
    folder = os.path.relpath(workspace.root, REPOSITORY)
    with ThreadPoolExecutor() as pool:
        futures = {}
        for task, command in stage.commands.items():
            command = command.format(workspace=folder, unit_model=unit_model)
            if "--out" not in command:
                command += f" --workspace {folder}"
            futures[task] = pool.submit(run_command, command, task, environment)
    return {task: future.result() for task, future in futures.items()}


def run_command(command: str, task: str, environment: dict[str, str]) -> float:
    """Run one stage script, its lines shown after the task's name; return its seconds."""
    start = time.monotonic()
    code = run_script(command.split(), f"{task} | " if task else "", environment)
    if code:
        print(f"the demo stopped at `{command}`: see the message above", file=sys.stderr)
        raise SystemExit(code)
    return time.monotonic() - start


def summarise(unit_model: str, seconds: dict[str, dict[str, float]]) -> dict[str, dict]:
    """Each task's figures, from the files that the stages left."""
    summary = {}
    for task in TASKS:
        card = WORKSPACE.checkpoints(task, unit_model, DATE) / "prompt.json"
        prompt = read_json(card, "ulm_prompt/train.py")
        card = card_path(WORKSPACE, task, unit_model, "ngrams", DATE)
        ngrams = read_json(card, "baselines/unit_ngrams.py")
        result = score(WORKSPACE.samples(task, unit_model, DATE, DATE))
        summary[task] = {
            "unit_model": unit_model,
            "accuracy": round(result.accuracy, 2),
            "accuracy_within_labels": round(result.accuracy_within_labels, 2),
            "invalid": round(result.invalid, 2),
            "ngrams_accuracy": round(ngrams["test"]["accuracy"], 2),
            "utterances": result.utterances,
            "trainable_parameters": prompt["trained_parameters"],
            "frozen_parameters": prompt["lm_parameters"],
            "seconds": {
                name: round(spent.get(task, spent.get("", 0)), 1) for name, spent in seconds.items()
            },
        }
    return summary


def show(summary: dict[str, dict], total: float) -> None:
    """Print the table. A stage that serves both tasks is shown once."""
    rows = {
        "test utterances": "utterances",
        "trainable parameters": "trainable_parameters",
        "frozen parameters": "frozen_parameters",
        "accuracy, %": "accuracy",
        "accuracy within labels, %": "accuracy_within_labels",
        "invalid answers, %": "invalid",
        "n-grams' accuracy, %": "ngrams_accuracy",
    }
    print(f"\n{'':28}" + "".join(f"{task:>14}" for task in summary))
    print(f"{'unit model':28}" + "".join(f"{each['unit_model']:>14}" for each in summary.values()))
    for title, key in rows.items():
        print(f"{title:28}" + "".join(f"{figures[key]:>14,}" for figures in summary.values()))
    stages = dict.fromkeys(name for figures in summary.values() for name in figures["seconds"])
    for name in stages:
        spent = [figures["seconds"][name] for figures in summary.values()]
        both = len(set(spent)) == 1
        cells = f"{spent[0]:>28}  (both)" if both else "".join(f"{value:>14}" for value in spent)
        print(f"{'seconds, ' + name:28}{cells}")
    print(f"{'seconds in all':28}{total:>28.0f}")


def main() -> None:
    start = time.monotonic()
    unit_model, seconds = run_stages(STAGES, WORKSPACE)
    summary = summarise(unit_model, seconds)
    samples = REPOSITORY / "samples"
    write_json(samples / "demo_summary.json", summary)
    draw(WORKSPACE, TASKS, unit_model, DATE, samples / "demo.png")
    show(summary, time.monotonic() - start)
    print(f"\nfigures: {samples / 'demo_summary.json'}\npicture: {samples / 'demo.png'}")


if __name__ == "__main__":
    run(main)
