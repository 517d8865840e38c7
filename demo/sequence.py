"""Run the sequence tasks on a laptop: small synthetic corpora in the layouts of LibriSpeech and
Audio SNIPS, and every stage, with the same scripts that a researcher runs.

The output goes to demo/sequence_workspace/, which is emptied first. The figures go to
samples/sequence_summary.json.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from demo.run import DATE, demo_stages, run_stages
from pipeline.errors import run
from pipeline.files import read_json, write_json
from pipeline.workspace import REPOSITORY, Workspace
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import read_prompt_text, renamed_texts
from ulm_prompt.scoring.sequence_scores import score_text_file

WORKSPACE = Workspace(REPOSITORY / "demo" / "sequence_workspace")
PROMPT = "--prefix_prompt_length 60 --set best_by=loss validate_every=250"
CONSTANT = "train's most frequent answer"
NAMES = ("WER", "CER", "slot type F1", "slot value CER")


def constant_answer(path: Path, pair: Pair) -> dict[str, float]:
    """Score ``path`` as if train's most frequent labels were the answer to every utterance."""
    train = renamed_texts(WORKSPACE, pair)["train"]
    labels = Counter(labels for _, labels in read_prompt_text(train))
    answer = {"predict": labels.most_common(1)[0][0]}
    samples = read_json(path, "ulm_prompt/sample.py")
    constant = path.with_name(f".constant_{path.name}")
    write_json(constant, {row: entry | answer for row, entry in samples.items()})
    scores = score_text_file(constant, WORKSPACE, pair)
    constant.unlink()
    return scores


def main() -> None:
    start = time.monotonic()
    stages = demo_stages(
        corpora="demo/speech.py --corpora librispeech audio_snips --out {workspace}/corpora",
        manifests={"ASR": "librispeech", "SF": "audio_snips"},
        lm_updates=700,
        prompts={
            "ASR": f"{PROMPT} max_update=2500",
            "SF": f"{PROMPT} max_update=1800",
        },
    )
    stages["figure"] = f"ulm_prompt/plot.py cer_by_length --sample_date {DATE} --width 4"
    unit_model, seconds = run_stages(stages, ("ASR", "SF"), WORKSPACE)
    summary = {}
    print(f"\n{'%, test':34}" + "".join(f"{name:>16}" for name in NAMES))
    for task, times in seconds.items():
        pair = Pair(task, unit_model, load_task(task))
        path = WORKSPACE.samples(task, unit_model, DATE, DATE)
        record = WORKSPACE.checkpoints(task, unit_model, DATE) / "prompt.json"
        scores_by_method = {
            "prompt": score_text_file(path, WORKSPACE, pair),
            CONSTANT: constant_answer(path, pair),
        }
        for method, scores in scores_by_method.items():
            values = [scores.get(name) for name in NAMES]
            cells = "".join(f"{'-' if value is None else f'{value:.2f}':>16}" for value in values)
            print(f"{f'{task}, {method}':34}{cells}")
        summary[task] = {
            "unit_model": unit_model,
            "trained_parameters": read_json(record, "ulm_prompt/train.py")["trained_parameters"],
            **scores_by_method,
            "seconds": times,
        }
    output = REPOSITORY / "samples" / "sequence_summary.json"
    write_json(output, summary)
    print(f"{time.monotonic() - start:.0f} s in all; figures: {output}")


if __name__ == "__main__":
    run(main)
