"""Every stage that writes, on a tiny workspace, as a command line that runs in a fork: importing
torch and fairseq takes seconds, killing a fork does not.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.preprocess import corpora

UNIT_MODEL = "logmel100"
COUNTS = {"train": 61, "valid": 13, "test": 11}
LM = ("decoder_layers=2", "decoder_embed_dim=16", "decoder_ffn_embed_dim=32", "max_update=12",
      "decoder_attention_heads=2", "tokens_per_sample=64", "topics=2",
      "max_tokens=500")  # fmt: skip
PROMPT = ("max_epoch=5", "patience=0", "batch_size=16", "max_update=9", "validate_every=2")
SMALL = ("fairseqrc.batch_seconds=0.5", "fairseqrc.km_clusters=20", "fairseqrc.km_starts=1",
         "taskrc.seed=1")  # fmt: skip


class Stage(NamedTuple):
    """A stage script as ``module`` and its words, less --workspace."""

    name: str
    module: str
    words: tuple[str, ...]


def _audio(action: str) -> Stage:
    words = ("--downstream", "fluent_commands", "--action", action, "--set", *SMALL)
    return Stage(action, "preprocess.runner", words)


def _prompt(name: str, *words: str) -> Stage:
    selection = ("--prompt_task", "IC", "--unit_model", UNIT_MODEL)
    return Stage(name, f"ulm_prompt.{name}", (*selection, *words))


STAGES = [  # in the order of the pipeline: each finds what the ones before it left
    _audio("generate_manifest"),
    _audio("learn_kmeans"),
    _audio("quantized"),
    _audio("postprocess"),
    _prompt("make_data"),
    _prompt("gen_labelspace"),
    _prompt("verbalizer"),
    Stage(
        "train_ulm",
        "ulm_prompt.train_ulm",
        ("--unit_model", UNIT_MODEL, "--date", "d", "--config", "tiny", "--set", *LM),
    ),
    _prompt("fairseq_preprocess"),
    _prompt("train", "--date", "d", "--prefix_prompt_length", "3", "--set", *PROMPT),
    _prompt("sample", "--model_date", "d", "--sample_date", "d"),
]


def write_corpus(workspace: Path) -> None:
    """Ragged tones with intents, in the layout of Fluent Speech Commands."""
    rng = random.Random(0)
    labels = [("start", "lamp", "none"), ("stop", "heat", "kitchen"), ("stop", "lamp", "none")]
    splits = {split: [rng.choice(labels) for _ in range(n)] for split, n in COUNTS.items()}
    splits["train"][:3] = labels
    root = corpora.fluent_commands(workspace / "corpora" / "fluent_commands", splits)
    for number, path in enumerate(sorted(root.rglob("*.wav"))):
        corpora.write(path, corpora.tone(rng.uniform(0.15, 0.4), 90 + 7 * number))


def warm_up() -> None:
    """Import what the stages import, so that a fork begins at their first line of work."""
    for module in {stage.module for stage in STAGES}:
        importlib.import_module(module)
    for module in ("checkpoint", "cached_lm", "decoding", "precision", "task", "unit_lm_task"):
        importlib.import_module(f"ulm_prompt.prompt_lm.{module}")
    importlib.import_module("fairseq_cli.train")
    importlib.import_module("sklearn.cluster")


def start(stage: Stage, workspace: Path, log: Path) -> int:
    """Begin a stage in a fork that leads a process group of its own; return its process id."""
    process = os.fork()
    if process:
        return process
    code = 70  # of a traceback, which is a bug
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.argv = [stage.name, *stage.words, "--workspace", str(workspace)]
        from pipeline.errors import run

        run(importlib.import_module(stage.module).main)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(process: int, log: Path) -> None:
    """Wait for a stage that must succeed."""
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise RuntimeError(f"exited with {code}:\n{log.read_text()[-3000:]}")


def killed(process: int, after: float) -> bool:
    """Kill a stage and its children after so many seconds; False when it had ended before."""
    end = time.monotonic() + after
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
