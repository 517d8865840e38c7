"""The mean over time of every layer of a speech model, an utterance at a time.

SUPERB's weighted sum of layers, projector and mean pooling are linear, and the layers' weights are
the same for all frames, so they commute: a downstream model on these means computes what it would
on all frames, at a fiftieth of the storage and none of the speech model's work.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.files import read_json, replacing, sha256
from pipeline.workspace import Workspace
from preprocess.actions.audio_run import AudioRun, Line
from preprocess.actions.manifest import Entry, distinct, files_left_out, read_manifest
from preprocess.actions.stream import Encoder
from preprocess.preprocessor import Preprocessor

COMMAND = "baselines/layer_means.py --downstream {} --unit_model {}"


class LayerMeans(AudioRun):
    """Manifests -> ``layer_means/{train,valid,test}.npy``, float32 (files, L, D), a row for each
    distinct file of the manifest whose audio is good.
    """

    def __init__(self, task: Preprocessor) -> None:
        unit_model = task.config.taskrc.unit_model
        folder = means_folder(task.workspace, task.downstream, unit_model)
        command = COMMAND.format(task.downstream, unit_model)
        super().__init__(task, folder, task.speech_model_record(), command)

    def encoder(self) -> Encoder[str]:
        reader, device = self.task.feature_reader(all_layers=True)
        return Encoder(reader, written_mean, device, self.task.config.fairseqrc.batch_seconds)

    def output(self, split: str) -> Path:
        return self.folder / f"{split}.npy"

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        if count == 0:
            raise UserError(f"{path}: no usable file in this split; repair its audio")
        means = map(read_mean, (line.result for line in lines))
        first = next(means)  # (L, D)
        with replacing(path) as temporary:
            shape = (count, *first.shape)
            array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            array[0] = first
            for number, mean in enumerate(means, start=1):
                array[number] = mean
            array.flush()


def written_mean(features: torch.Tensor) -> str:
    """Map (T, L, D) to its mean (L, D) as text: a .npy file in base 64."""
    buffer = io.BytesIO()
    np.save(buffer, features.mean(dim=0).cpu().numpy())
    return base64.b64encode(buffer.getvalue()).decode()


def read_mean(text: str) -> np.ndarray:
    """The (L, D) that ``written_mean`` wrote."""
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


class Means(NamedTuple):
    """A split: ``means[index[row]]`` belongs to ``entries[row]``."""

    means: torch.Tensor  # (files, L, D) float32
    entries: list[Entry]  # of the manifest, less those whose audio is bad
    index: torch.Tensor  # (rows,)


def means_folder(workspace: Workspace, downstream: str, unit_model: str) -> Path:
    """Where they lie."""
    return workspace.downstream_data(downstream) / unit_model / "layer_means"


def record_of(workspace: Workspace, downstream: str, unit_model: str) -> Path:
    """The record of what the means were made from; it is written last."""
    return means_folder(workspace, downstream, unit_model) / "provenance.json"


def read_plan(workspace: Workspace, downstream: str, unit_model: str) -> dict[str, Any]:
    """What the means were made from. Raises ``UserError`` where their record does not say."""
    record = record_of(workspace, downstream, unit_model)
    command = COMMAND.format(downstream, unit_model)
    plan = read_json(record, command).get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("manifest"), dict):
        raise UserError(f"{record}: expected plan -> manifest; run {command} again")
    return plan


def read_means(workspace: Workspace, downstream: str, unit_model: str, split: str) -> Means:
    """Read a split. Raises ``UserError`` where it is missing, or older than its manifest."""
    path = means_folder(workspace, downstream, unit_model) / f"{split}.npy"
    manifest = workspace.downstream_data(downstream) / "manifest" / f"{split}.tsv"
    command = COMMAND.format(downstream, unit_model)
    again = f"run {command} again"
    plan = read_plan(workspace, downstream, unit_model)
    _, entries = read_manifest(manifest)
    if plan["manifest"].get(split) != sha256(manifest):
        raise UserError(f"{path}: stale, {manifest} has changed; {again}")
    left_out = files_left_out(record_of(workspace, downstream, unit_model), command)
    entries = [entry for entry in entries if entry.file not in left_out]
    files = {entry.file: number for number, entry in enumerate(distinct(entries))}
    try:
        # a map first: it takes no memory where the file declares more than it holds
        means = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}") from None
    if means.dtype != np.float32 or means.ndim != 3 or len(means) != len(files):
        raise UserError(
            f"{path}: expected float32 ({len(files)}, layers, D), found {means.dtype} "
            f"{means.shape}; {again}"
        )
    index = torch.tensor([files[entry.file] for entry in entries])
    return Means(torch.from_numpy(means), entries, index)
