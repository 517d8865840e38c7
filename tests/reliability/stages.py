"""All stages that write files: their arguments and inputs on a tiny workspace, and its contents."""

from __future__ import annotations

import gc
import hashlib
import importlib
import io
import json
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.torch_files import allow_fairseq, load_torch
from tests.preprocess import corpora
from tests.pretrained_models.conftest import Remote, tgz
from ulm_prompt.scoring.scores import valid_curve

UNIT_MODEL = "logmel100"
COUNTS = {"train": 61, "valid": 13, "test": 11}
LM = ("decoder_layers=2", "decoder_embed_dim=16", "decoder_ffn_embed_dim=32", "max_update=12",
      "decoder_attention_heads=2", "tokens_per_sample=64", "topics=2",
      "max_tokens=500", "warmup_updates=1")  # fmt: skip
PROMPT = ("max_epoch=5", "patience=0", "batch_size=16", "max_update=9", "validate_every=2")
SMALL = ("fairseqrc.batch_seconds=0.5", "fairseqrc.km_clusters=20", "fairseqrc.km_starts=1",
         "taskrc.seed=1")  # fmt: skip
# these say how and when a file was made (command line, seconds), so they differ between runs
_IGNORED_FILES = ("provenance.json",)
_IGNORED_KEYS = ("made_by", "command", "git_revision", "versions", "files", "checkpoint")

MANIFEST = "preprocess/fluent_commands/data/manifest/"
ROWS = f"preprocess/fluent_commands/data/{UNIT_MODEL}/"
TEXT = f"ulm_prompt/datasets/{UNIT_MODEL}/fluent_commands/"
VERBAL = f"ulm_prompt/datasets/{UNIT_MODEL}/*.json"
LM_FOLDER = f"pretrained_models/{UNIT_MODEL}_lm/"
KMEANS = f"pretrained_models/{UNIT_MODEL}_km.npz"
PROMPT_FOLDER = f"checkpoints/IC_{UNIT_MODEL}_checkpoints_d/"
DOWNLOADED = "logmel50"  # a released unit model that needs no speech checkpoint


class Stage(NamedTuple):
    """A stage script: its ``module``, its arguments (``words``) without --workspace, in which
    ``{workspace}`` and ``{mirror}`` are replaced, and patterns of the files that it ``reads``.
    """

    name: str
    module: str
    words: tuple[str, ...]
    reads: tuple[str, ...] = ()

    def command(self, workspace: Path, mirror: str) -> list[str]:
        """Return the arguments, including --workspace."""
        words = [word.format(workspace=workspace, mirror=mirror) for word in self.words]
        return [*words, "--workspace", str(workspace)]


def _audio(action: str, *reads: str) -> Stage:
    words = ("--downstream", "fluent_commands", "--unit_model", UNIT_MODEL, "--action", action,
             "--set", *SMALL)  # fmt: skip
    return Stage(action, "preprocess.runner", words, reads)


def _prompt(name: str, words: tuple[str, ...] = (), reads: tuple[str, ...] = ()) -> Stage:
    selection = ("--prompt_task", "IC", "--unit_model", UNIT_MODEL)
    return Stage(name, f"ulm_prompt.{name}", (*selection, *words), reads)


STAGES = [  # in the order of the pipeline: a stage reads what earlier stages wrote
    Stage(
        "download",
        "pretrained_models.download",
        (DOWNLOADED, "--base_url", "{mirror}", "--timeout", "5"),
    ),
    _audio("generate_manifest", "corpora/**/*"),
    _audio("learn_kmeans", f"{MANIFEST}train.tsv", "corpora/**/*.wav"),
    _audio("quantized", f"{MANIFEST}*.tsv", "corpora/**/*.wav", KMEANS),
    _audio("postprocess", f"{MANIFEST}*.*", f"{ROWS}quantized/t*"),
    _prompt("make_data", reads=(f"{ROWS}[tv]*",)),
    _prompt("gen_labelspace", reads=(f"{TEXT}data_prompt/*.txt",)),
    _prompt("verbalizer", reads=(f"{TEXT}data_prompt/*", VERBAL)),
    Stage(
        "train_ulm",
        "ulm_prompt.train_ulm",
        ("--unit_model", UNIT_MODEL, "--date", "d", "--config", "tiny", "--set", *LM),
        (f"{ROWS}[tv]*",),
    ),
    _prompt("fairseq_preprocess", reads=(f"{TEXT}data_freq/*", VERBAL, f"{LM_FOLDER}dict.txt")),
    _prompt(
        "train",
        ("--date", "d", "--prefix_prompt_length", "3", "--set", *PROMPT),
        (f"ulm_prompt/data-bins/{UNIT_MODEL}/IC-data-bin/*", VERBAL, f"{LM_FOLDER}*[.pdt]*t"),
    ),
    _prompt(
        "sample",
        ("--model_date", "d", "--sample_date", "d"),
        (f"{PROMPT_FOLDER}*best.pt", f"{ROWS}test", f"{TEXT}data_freq/*", VERBAL, f"{LM_FOLDER}*t"),
    ),
    _prompt("cal_acc", ("--sample_date", "d", "--report"), ("samples/**/*.json",)),
    _prompt(
        "export",
        ("--model_date", "d", "--out", "{workspace}/shared/IC", "--license", "CC-BY-4.0"),
        (f"{PROMPT_FOLDER}*best.pt", f"{LM_FOLDER}*t", f"{ROWS}labels.json", KMEANS),
    ),
]


def write_corpus(workspace: Path) -> None:
    """Write tones of random length with intents, in the layout of Fluent Speech Commands."""
    rng = random.Random(0)
    labels = [("start", "lamp", "none"), ("stop", "heat", "kitchen"), ("stop", "lamp", "none")]
    splits = {split: [rng.choice(labels) for _ in range(n)] for split, n in COUNTS.items()}
    splits["train"][:3] = labels
    root = corpora.fluent_commands(workspace / "corpora" / "fluent_commands", splits)
    for number, path in enumerate(sorted(root.rglob("*.wav"))):
        corpora.write(path, corpora.tone(rng.uniform(0.15, 0.4), 90 + 7 * number))


def contents(workspace: Path) -> dict[str, str]:
    """Return a digest of each file in the workspace, except temporaries and locks. The digests of
    two equal runs are equal. Raises an error if a file is only half-written.
    """
    digests = {}
    for path in sorted(workspace.rglob("*")):
        name = str(path.relative_to(workspace))
        ignored = path.name in _IGNORED_FILES or "tfevents" in name or name.startswith("corpora")
        temporary = any(map(_is_temporary, path.relative_to(workspace).parts))
        if path.is_file() and not ignored and not temporary:
            digests[name] = _digest(path)
    return digests


def temporaries(workspace: Path) -> list[Path]:
    """Return the temporaries that a finished run must remove. A killed run's lock may remain."""
    paths = (path for path in workspace.rglob("*") if _is_temporary(path.name))
    return [path for path in paths if path.suffix != ".lock"]


def _is_temporary(name: str) -> bool:
    """Return whether the file is a lock, half-written, or replaced."""
    return name.startswith(".") or name.endswith((".tmp", ".old", ".part"))


def _digest(path: Path) -> str:
    if path.suffix == ".pt":
        allow_fairseq()
        return _tensor_digest(load_torch(path))
    if path.name == "train.log":
        scores = {
            update: {name: value for name, value in values.items() if name not in ("wps", "wall")}
            for update, values in valid_curve(path).items()
        }
        return str(scores)
    if path.suffix == ".json":
        return str(json.loads(path.read_text(), object_pairs_hook=_without_ignored_keys))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_ignored_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key not in _IGNORED_KEYS}


def _tensor_digest(state: Any) -> str:
    """Hash the weights and the optimizer's moments, but not the seconds in a checkpoint."""
    digest = hashlib.sha256()

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                walk(f"{name}.{key}", value[key])

    for part in ("model", "last_optimizer_state"):
        walk(part, state.get(part))
    return digest.hexdigest()


class Mirror(Remote):
    """A server of the files that ``download`` requests. It ignores errors of killed clients."""

    def __init__(self) -> None:
        super().__init__()
        noise = torch.randn(300_000, generator=torch.Generator().manual_seed(1))
        weights, centres = io.BytesIO(), io.BytesIO()
        np.savez(centres, centres=noise[:100_000].numpy().reshape(50, -1))
        torch.save({"model": {"weight": noise}}, weights)
        lm = {"checkpoint_best.pt": weights.getvalue(), "dict.txt": b"0 1\n"}
        self.files = {
            "/textless_nlp/gslm/logmel/km50/km.bin": centres.getvalue(),
            "/textless_nlp/gslm/logmel/lm_km50/logmel50_lm.tgz": tgz(lm, f"{DOWNLOADED}_lm/"),
        }

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing."""


def warm_up(stages: Sequence[Stage]) -> None:
    """Import what the stages import, so that a fork starts with the work of its stage."""
    os.environ["no_proxy"] = "127.0.0.1"
    for module in {stage.module for stage in stages}:
        importlib.import_module(module)
    importlib.import_module("sklearn.cluster")
    if any(stage.name == "train_ulm" for stage in stages):  # the first stage that needs fairseq
        _warm_up_fairseq()
    gc.freeze()  # no fork collects objects that exist now


def _warm_up_fairseq() -> None:
    for module in ("checkpoint", "cache", "labels", "task"):
        importlib.import_module(f"ulm_prompt.prompt_lm.{module}")
    for module in ("training.fairseq_run", "using.share", "scoring.class_report"):
        importlib.import_module(f"ulm_prompt.{module}")
    importlib.import_module("fairseq_cli.train")
    logging.root.setLevel(logging.WARNING)  # fairseq_cli.train has set DEBUG for all stages
    importlib.import_module("matplotlib.pyplot")
    for module in ("_dynamo", "distributed.fsdp"):  # the first optimizer imports these
        importlib.import_module(f"torch.{module}")
