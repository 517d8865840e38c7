"""Run the whole pipeline on a laptop: audio to accuracy for two tasks, with the same scripts that a
researcher runs.

KS is real speech (demo/clips.py), IC is synthetic (demo/speech.py). The output goes to
demo/workspace/, which is emptied first. The figures go to samples/demo_summary.json and demo.png.
"""

from __future__ import annotations

import os
import shutil
import time

from baselines.classifiers.answers import record_path
from experiments.pictures import draw_demo
from experiments.runs import run_all, stop_after
from pipeline.errors import run
from pipeline.files import read_json, write_json
from pipeline.runs import run_script
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.scoring.scores import score

UNIT_MODEL, OFFLINE_UNIT_MODEL = "moonshine100", "mfcc100"
DATE = "demo"
WORKSPACE = Workspace(REPOSITORY / "demo" / "workspace")
PROMPT = "--prefix_prompt_length 20 --set best_by=loss batch_size=32"
EACH_ONCE = "--set datarc.train=each_once datarc.valid=each_once"
ROWS = {
    "unit model": "unit_model",
    "test utterances": "utterances",
    "trained parameters": "trainable_parameters",
    "frozen parameters": "frozen_parameters",
    "accuracy, %": "accuracy",
    "accuracy within labels, %": "accuracy_within_labels",
    "invalid answers, %": "invalid",
    "n-grams' accuracy, %": "ngrams_accuracy",
}
Commands = str | dict[str, str]  # one command for all tasks, or task -> command, run in parallel


def demo_stages(
    corpora: Commands, manifests: dict[str, str], lm_updates: int, prompts: dict[str, str]
) -> dict[str, Commands]:
    """Return the commands of every stage, from the scripts that write the corpora to the scores.

    ``manifests``: task -> downstream and settings. ``prompts``: task -> flags of train.py.
    """
    runner = "preprocess/runner.py --unit_model {unit_model} --action"
    downstreams = " ".join(manifest.split()[0] for manifest in manifests.values())
    ulm = f"--config tiny --date {DATE} --set max_update={lm_updates}"
    train = f"ulm_prompt/train.py --recipe fast --date {DATE} --prompt_task"
    return {
        "corpora": corpora,
        "manifest": {
            task: f"{runner} generate_manifest --downstream {manifest}"
            for task, manifest in manifests.items()
        },
        "k-means": f"{runner} learn_kmeans --downstream {downstreams}",
        "quantise": f"{runner} quantized --downstream {downstreams}",
        "postprocess": f"{runner} postprocess --downstream {downstreams}",
        "text": "ulm_prompt/make_data.py",
        "labelspace": "ulm_prompt/gen_labelspace.py",
        "verbalizer": "ulm_prompt/verbalizer.py",
        "unit LM": f"ulm_prompt/train_ulm.py --unit_model {{unit_model}} {ulm}",
        "binarise": "ulm_prompt/fairseq_preprocess.py",
        "prompt": {task: f"{train} {task} {flags}" for task, flags in prompts.items()},
        "sample": f"ulm_prompt/sample.py --model_date {DATE} --sample_date {DATE}",
        "n-grams": f"baselines/unit_ngrams.py --date {DATE}",
        "score": f"ulm_prompt/cal_acc.py --sample_date {DATE}",
    }


def run_stages(
    stages: dict[str, Commands], tasks: tuple[str, ...], workspace: Workspace
) -> tuple[str, dict[str, dict[str, float]]]:
    """Empty the workspace and run all stages in order. Tasks run in parallel, on one core each.

    Returns the unit model, and task -> stage -> seconds. A failure ends the script. Without a
    network the unit model is ``OFFLINE_UNIT_MODEL``, and the script prints this.
    """
    shutil.rmtree(workspace.root, ignore_errors=True)
    folder = os.path.relpath(workspace.root, REPOSITORY)
    print(f"\n[0/{len(stages)}] unit model", flush=True)
    start, unit_model = time.monotonic(), UNIT_MODEL
    if code := run_script(["pretrained_models/download.py", UNIT_MODEL, "--only", "checkpoint"]):
        if code > 1:  # a file exists, but it is not the expected one
            raise SystemExit(code)
        unit_model = OFFLINE_UNIT_MODEL
        print(
            f"the demo uses {unit_model}, which needs no download and gives a much lower accuracy: "
            f"{UNIT_MODEL} could not be downloaded (see above)",
            flush=True,
        )
    seconds = {task: {"unit model": round(time.monotonic() - start, 1)} for task in tasks}
    for number, (stage, commands) in enumerate(stages.items(), start=1):
        print(f"\n[{number}/{len(stages)}] {stage}", flush=True)
        jobs = {}
        for name, command in ({stage: commands} if isinstance(commands, str) else commands).items():
            command += "" if "--out" in command else " --workspace {workspace}"
            jobs[name] = [command.format(workspace=folder, unit_model=unit_model).split()]
        durations = run_all(jobs, len(jobs))
        stop_after(jobs.keys() - durations.keys())
        for task in tasks:
            seconds[task][stage] = round(durations.get(task, durations.get(stage, 0.0)), 1)
    return unit_model, seconds


def summarise(task: str, unit_model: str, seconds: dict[str, float]) -> dict[str, object]:
    """Return the task's figures, from the files that the stages wrote."""
    names = task, unit_model
    prompt = read_json(WORKSPACE.checkpoints(*names, DATE) / "prompt.json", "ulm_prompt/train.py")
    ngrams = read_json(record_path(WORKSPACE, *names, "ngrams", DATE), "baselines/unit_ngrams.py")
    result = score(WORKSPACE.samples(*names, DATE, DATE))
    scores = ("accuracy", "accuracy_within_labels", "invalid")
    return {
        "unit_model": unit_model,
        **{name: round(result[name], 2) for name in scores},
        "ngrams_accuracy": round(ngrams["test"]["accuracy"], 2),
        "utterances": result["utterances"],
        "trainable_parameters": prompt["trained_parameters"],
        "frozen_parameters": prompt["lm_parameters"],
        "seconds": seconds,
    }


def show(summary: dict[str, dict], total: float) -> None:
    """Print the table. The time of a stage that runs for both tasks appears once."""
    tasks, rows = list(summary.values()), {"\n" + 28 * " ": list(summary)}
    for title, key in ROWS.items():
        rows[title] = [v if isinstance(v := figures[key], str) else f"{v:,}" for figures in tasks]
    for stage in tasks[0]["seconds"]:
        times = [figures["seconds"][stage] for figures in tasks]
        rows[f"seconds, {stage}"] = [f"{times[0]:>28}  (both)"] if len(set(times)) == 1 else times
    rows["seconds in all"] = [f"{total:>28.0f}"]
    for title, values in rows.items():
        print(f"{title:28}" + "".join(f"{value:>14}" for value in values))


def main() -> None:
    start = time.monotonic()
    stages = demo_stages(
        corpora={
            "KS": "demo/clips.py --out {workspace}/corpora",
            "IC": "demo/speech.py --out {workspace}/corpora",
        },
        manifests={"KS": f"speech_commands {EACH_ONCE}", "IC": "fluent_commands"},
        lm_updates=300,
        prompts={
            "KS": f"{PROMPT} max_update=750 unit_noise=0.2",
            "IC": f"{PROMPT} max_update=2200 unit_noise=0.1",
        },
    )
    unit_model, seconds = run_stages(stages, ("KS", "IC"), WORKSPACE)
    summary = {task: summarise(task, unit_model, times) for task, times in seconds.items()}
    samples = REPOSITORY / "samples"
    write_json(samples / "demo_summary.json", summary)
    draw_demo(WORKSPACE, summary, unit_model, DATE, samples / "demo.png")
    show(summary, time.monotonic() - start)
    print(f"\nfigures: {samples / 'demo_summary.json'}\npicture: {samples / 'demo.png'}")


if __name__ == "__main__":
    run(main)
