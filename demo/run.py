"""The whole pipeline on a laptop: audio to accuracy for both tasks, by the same scripts a
researcher types.

Everything lies under demo/workspace/ (made anew each time); the figures go to
samples/demo_summary.json and demo.png.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from demo.picture import draw
from pipeline.commands import run_script
from pipeline.errors import run
from pipeline.files import read_json, write_json
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.scoring.scores import score

WORKSPACE = Workspace(REPOSITORY / "demo" / "workspace")
UNIT_MODEL = "logmel100"
DATE = "demo"
TASKS = {"KS": "speech_commands", "IC": "fluent_commands"}


class Stage(NamedTuple):
    """One step: a command, or one for each task, which then run at once, a core each."""

    name: str
    commands: dict[str, str]  # by task; "" where one serves both


def both(name: str, command: str) -> Stage:
    return Stage(name, {"": command})


def train(task: str, updates: int) -> str:
    """The command that trains a task's prompt."""
    return (
        f"ulm_prompt/train.py --prompt_task {task} --recipe fast --prefix_prompt_length 20 "
        f"--date {DATE} --set max_update={updates} best_by=loss"
    )


def pipeline(speech: str, downstreams: str, prompts: dict[str, str]) -> list[Stage]:
    """Every stage from a script that speaks corpora to the scores; ``prompts``: task -> how its
    prompt is trained.
    """
    runner = f"preprocess/runner.py --downstream {downstreams} --action"
    ulm = f"ulm_prompt/train_ulm.py --unit_model {UNIT_MODEL} --config tiny --date {DATE}"
    return [
        both("speak", f"{speech} --out {{workspace}}/corpora"),
        both("manifest", f"{runner} generate_manifest"),
        both(
            "k-means",
            f"{runner} learn_kmeans --set fairseqrc.km_frames=60000 fairseqrc.km_starts=3",
        ),
        both("quantise", f"{runner} quantized"),
        both("postprocess", f"{runner} postprocess"),
        both("text", "ulm_prompt/make_data.py"),
        both("labelspace", "ulm_prompt/gen_labelspace.py"),
        both("verbalizer", "ulm_prompt/verbalizer.py"),
        both("unit LM", ulm),
        both("binarise", "ulm_prompt/fairseq_preprocess.py"),
        Stage("prompt", prompts),
        both("sample", f"ulm_prompt/sample.py --model_date {DATE} --sample_date {DATE}"),
        both("score", f"ulm_prompt/cal_acc.py --sample_date {DATE}"),
    ]


STAGES = pipeline(
    "demo/speech.py",
    "speech_commands fluent_commands",
    {"KS": train("KS", 1500), "IC": train("IC", 2600)},
)


def run_stages(stages: list[Stage], workspace: Path) -> dict[str, dict[str, float]]:
    """Run all stages in turn; return each one's seconds by task."""
    shutil.rmtree(workspace, ignore_errors=True)
    return {
        stage.name: run_stage(stage, f"{number}/{len(stages)}", workspace)
        for number, stage in enumerate(stages, start=1)
    }


def run_stage(stage: Stage, number: str, workspace: Path) -> dict[str, float]:
    """Announce and run one stage; return its seconds by task. A failure ends the demo, its message
    shown.
    """
    print(f"\n[{number}] {stage.name}", flush=True)
    environment = {"OMP_NUM_THREADS": "1"} if len(stage.commands) > 1 else {}
    with ThreadPoolExecutor() as pool:
        futures = {
            task: pool.submit(run_command, command, task, environment, workspace)
            for task, command in stage.commands.items()
        }
    return {task: future.result() for task, future in futures.items()}


def run_command(command: str, task: str, environment: dict[str, str], workspace: Path) -> float:
    """Run one stage script, its lines shown after the task's name; return its seconds."""
    folder = os.path.relpath(workspace, REPOSITORY)
    command = command.format(workspace=folder)
    if "--out" not in command:
        command += f" --workspace {folder}"
    start = time.monotonic()
    code = run_script(command.split(), f"{task} | " if task else "", environment)
    if code:
        print(f"the demo stopped at `{command}`: see the message above", file=sys.stderr)
        raise SystemExit(code)
    return time.monotonic() - start


def summarise(seconds: dict[str, dict[str, float]]) -> dict[str, dict]:
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
    seconds = run_stages(STAGES, WORKSPACE.root)
    summary = summarise(seconds)
    samples = REPOSITORY / "samples"
    write_json(samples / "demo_summary.json", summary)
    draw(WORKSPACE, TASKS, UNIT_MODEL, DATE, samples / "demo.png")
    show(summary, time.monotonic() - start)
    print(f"\nfigures: {samples / 'demo_summary.json'}\npicture: {samples / 'demo.png'}")


if __name__ == "__main__":
    run(main)
