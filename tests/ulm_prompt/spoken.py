"""A test workspace from wav files to prompts: KS in the published form, IC in our form."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.devices import Ranks
from pipeline.files import sha256
from pipeline.torch_files import save_torch
from pipeline.workspace import Workspace
from preprocess.actions.quantize import Quantizing, learn_kmeans
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from ulm_prompt import predict as script
from ulm_prompt.prompt_data.prompt_record import PromptRecord, TrainingRun, write_record
from ulm_prompt.prompt_data.tasks import Pair, load_task
from ulm_prompt.prompt_data.verbal import load_verbal, renamed_texts
from ulm_prompt.prompt_lm.lm import load_unit_lm
from ulm_prompt.prompt_lm.prompt import Prompt

UNIT_MODEL = "logmel100"
DOWNSTREAMS = {"KS": "speech_commands", "IC": "fluent_commands"}
LENGTHS = {"KS": 5, "IC": 3}


def melody(seed: int) -> np.ndarray:
    """Return (T,) a sequence of tones of at least half a second, so that the units change."""
    generator = np.random.default_rng(seed)
    hertz = generator.choice(np.arange(100, 500, 20), size=generator.integers(5, 12))
    return np.concatenate([corpora.tone(0.1, pitch) for pitch in hertz])


def write_workspace(root: Path) -> Workspace:
    """Write all files up to trained prompts. The prompts are random."""
    workspace = Workspace(root)
    corpora.speech_commands(root / "corpora" / "speech_commands")
    corpora.fluent_commands(root / "corpora" / "fluent_commands")
    for number, path in enumerate(sorted((root / "corpora").rglob("*.wav"))):
        if "_background_noise_" not in path.parts:
            corpora.write(path, melody(number))
    tasks = [preprocessor(name, root, "fairseqrc.km_clusters=60") for name in DOWNSTREAMS.values()]
    for task in tasks:
        task.generate_manifest()
    learn_kmeans(tasks)
    for task in tasks:
        Quantizing(task).run(Ranks(), skip_bad=False)
        task.postprocess()
    tiny.write_lm(workspace.lm(UNIT_MODEL))
    for name in ("make_data", "gen_labelspace", "verbalizer"):
        call(name, root)
    for number, task in enumerate(DOWNSTREAMS):
        write_prompt(workspace, task, "d", number)
    return workspace


def write_prompt(
    workspace: Workspace, task: str, date: str, seed: int, verbalizer: str = ""
) -> Path:
    """Write a random prompt in the form of train.py; KS in the published form, with the LM."""
    torch.manual_seed(seed)
    state = Prompt(3, LENGTHS[task], 32).published_state()
    path = workspace.checkpoints(task, UNIT_MODEL, date) / "checkpoint_best.pt"
    if task == "KS":
        state = {**tiny.lm().state_dict(), **state}
        save_torch({"args": tiny.settings(3, 32, 4), "model": state}, path)
        return path
    save_torch({"model": state, "updates": 7, "rounding": 0.0}, path)
    pair = Pair(task, UNIT_MODEL, load_task(task), verbalizer)
    method, verbal = load_verbal(workspace, pair)
    record = PromptRecord(
        task=task,
        unit_model=UNIT_MODEL,
        prefix_prompt_length=LENGTHS[task],
        lm_fingerprint=load_unit_lm(workspace.lm(UNIT_MODEL)).fingerprint,
        verbalizer=method,
        verbal=verbal,
        recipe="fast",
        training={"seed": 5, "lr": 0.02},
        run=TrainingRun(
            {split: sha256(text) for split, text in renamed_texts(workspace, pair).items()}
        ),
        lm_parameters=1,
        trained_parameters=sum(tensor.numel() for tensor in state.values()),
        valid={"accuracy": 61.5},
    )
    write_record(path.parent, record)
    return path


def of_run(task: str, date: str = "d") -> tuple[str, ...]:
    """Return the flags that select a prompt."""
    return "--prompt_task", task, "--model_date", date, "--unit_model", UNIT_MODEL


def export(workspace: Workspace, out: Path, *words: object, task: str = "IC") -> str:
    return call("export", workspace.root, *of_run(task), "--out", out, *words)


def clip(workspace: Workspace, *names: str) -> Path:
    """Return the path of a recording, from the corpus folder ``names``."""
    return next((workspace.root / "corpora").joinpath(*names).rglob("*.wav"))


def predict(workspace: Workspace, *words: object) -> int:
    """Run predict.py in this process, where fairseq is imported already; returns its exit code."""
    arguments = ["predict.py", "--workspace", workspace.root, *words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in arguments])
        try:
            script.main()
        except SystemExit as end:
            return end.code
    return 0
