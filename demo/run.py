"""The whole pipeline on a laptop: audio to accuracy for both tasks, by the same scripts a
researcher types.

KS is real speech (demo/clips.py), IC is synthetic (demo/speech.py). The output is under
demo/workspace/, which is emptied first; the figures go to samples/demo_summary.json and demo.png.
"""

from __future__ import annotations

import time

from baselines.classifiers.answers import card_path
from experiments.demos import DATE, Seconds, demo_stages, run_stages, seconds_of, train_command
from experiments.pictures import draw_demo
from pipeline.errors import run
from pipeline.files import read_json, write_json
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.scoring.scores import score

WORKSPACE = Workspace(REPOSITORY / "demo" / "workspace")
EACH_ONCE = "--set datarc.train=each_once datarc.valid=each_once"
STAGES = demo_stages(
    {
        "KS": "demo/clips.py --out {workspace}/corpora",
        "IC": "demo/speech.py --out {workspace}/corpora",
    },
    {"KS": f"speech_commands {EACH_ONCE}", "IC": "fluent_commands"},
    300,
    {
        "KS": train_command("KS", 20, 1500, "batch_size=32 unit_noise=0.2"),
        "IC": train_command("IC", 20, 2200, "batch_size=32 unit_noise=0.1"),
    },
)
ROWS = {
    "unit model": "unit_model",
    "test utterances": "utterances",
    "trainable parameters": "trainable_parameters",
    "frozen parameters": "frozen_parameters",
    "accuracy, %": "accuracy",
    "accuracy within labels, %": "accuracy_within_labels",
    "invalid answers, %": "invalid",
    "n-grams' accuracy, %": "ngrams_accuracy",
}


def summarise(task: str, unit_model: str, seconds: Seconds) -> dict[str, object]:
    """The task's figures, from the files that the stages left."""
    names = task, unit_model
    prompt = read_json(WORKSPACE.checkpoints(*names, DATE) / "prompt.json", "ulm_prompt/train.py")
    ngrams = read_json(card_path(WORKSPACE, *names, "ngrams", DATE), "baselines/unit_ngrams.py")
    result = score(WORKSPACE.samples(*names, DATE, DATE))
    scores = ("accuracy", "accuracy_within_labels", "invalid")
    return {
        "unit_model": unit_model,
        **{name: round(result[name], 2) for name in scores},
        "ngrams_accuracy": round(ngrams["test"]["accuracy"], 2),
        "utterances": result["utterances"],
        "trainable_parameters": prompt["trained_parameters"],
        "frozen_parameters": prompt["lm_parameters"],
        "seconds": seconds_of(task, seconds),
    }


def show(summary: dict[str, dict], total: float) -> None:
    """Print the table. A stage that serves both tasks is shown once."""
    print(f"\n{'':28}" + "".join(f"{task:>14}" for task in summary))
    for title, key in ROWS.items():
        values = [figures[key] for figures in summary.values()]
        cells = (f"{v:>14}" if isinstance(v, str) else f"{v:>14,}" for v in values)
        print(f"{title:28}" + "".join(cells))
    for stage in summary["KS"]["seconds"]:
        spent = [figures["seconds"][stage] for figures in summary.values()]
        both = f"{spent[0]:>28}  (both)" if len(set(spent)) == 1 else ""
        print(f"{'seconds, ' + stage:28}" + (both or "".join(f"{value:>14}" for value in spent)))
    print(f"{'seconds in all':28}{total:>28.0f}")


def main() -> None:
    start = time.monotonic()
    unit_model, seconds = run_stages(STAGES, WORKSPACE)
    summary = {task: summarise(task, unit_model, seconds) for task in ("KS", "IC")}
    samples = REPOSITORY / "samples"
    write_json(samples / "demo_summary.json", summary)
    draw_demo(WORKSPACE, summary, unit_model, DATE, samples / "demo.png")
    show(summary, time.monotonic() - start)
    print(f"\nfigures: {samples / 'demo_summary.json'}\npicture: {samples / 'demo.png'}")


if __name__ == "__main__":
    run(main)
