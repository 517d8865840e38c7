"""The mean over time of every layer of a speech encoder, for each utterance.

SUPERB's weighted sum of layers, projector and mean pooling are linear, and all frames share the
layers' weights. So these steps commute: a downstream model computes the same from the means as from
all frames. The means take a fiftieth of the storage, and the speech encoder does not run again.
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
from preprocess.actions.manifest import Entry, audio_record, distinct, read_manifest
from preprocess.actions.stream import AudioStream
from preprocess.preprocessor import Preprocessor

COMMAND = "baselines/layer_means.py --downstream {} --unit_model {}"


class LayerMeans(AudioRun):
    """Manifests -> ``layer_means/{train,valid,test}.npy``, float32 (files, L, D), with one row per
    distinct piece of audio in the manifest that can be used.
    """

    suffix = ".npy"

    def __init__(self, preprocessor: Preprocessor) -> None:
        downstream, unit_model = preprocessor.downstream, preprocessor.config.taskrc.unit_model
        folder = means_folder(preprocessor.workspace, downstream, unit_model)
        command = COMMAND.format(downstream, unit_model)
        super().__init__(preprocessor, folder, preprocessor.speech_encoder_record(), command)

    def stream(self) -> AudioStream[str]:
        reader, device = self.preprocessor.feature_reader(all_layers=True)
        seconds = self.preprocessor.config.fairseqrc.batch_seconds
        return AudioStream(reader, _mean_as_text, device, seconds)

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        if count == 0:
            raise UserError(f"{path}: no usable file in this split; repair its audio")
        array = None
        with replacing(path) as temporary:
            for number, line in enumerate(lines):
                content = io.BytesIO(base64.b64decode(line.result))
                mean = np.load(content, allow_pickle=False)  # (L, D)
                if array is None:
                    shape = (count, *mean.shape)
                    array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                array[number] = mean
            array.flush()


def _mean_as_text(features: torch.Tensor) -> str:
    """Map (T, L, D) to the mean over time (L, D), as text: a .npy file in base 64."""
    buffer = io.BytesIO()
    np.save(buffer, features.mean(dim=0).cpu().numpy())
    return base64.b64encode(buffer.getvalue()).decode()


class Means(NamedTuple):
    """The means of a split: ``means[index[row]]`` belongs to ``entries[row]``."""

    means: torch.Tensor  # (files, L, D) float32
    entries: list[Entry]  # the manifest without files that have bad audio
    index: torch.Tensor  # (rows,)


def means_folder(workspace: Workspace, downstream: str, unit_model: str) -> Path:
    return workspace.downstream_data(downstream) / unit_model / "layer_means"


def read_plan(workspace: Workspace, downstream: str, unit_model: str) -> dict[str, Any]:
    """Read what the means were made from. Raises ``UserError`` if the record is missing."""
    record = means_folder(workspace, downstream, unit_model) / "provenance.json"
    return read_json(record, COMMAND.format(downstream, unit_model))["plan"]


def read_means(workspace: Workspace, downstream: str, unit_model: str, split: str) -> Means:
    """Read a split. Raises ``UserError`` if it is missing, or if the manifest has changed."""
    folder = means_folder(workspace, downstream, unit_model)
    path = folder / f"{split}.npy"
    manifest = workspace.downstream_data(downstream) / "manifest" / f"{split}.tsv"
    command = COMMAND.format(downstream, unit_model)
    plan = read_plan(workspace, downstream, unit_model)
    _, skipped_files = audio_record(folder / "provenance.json", command)
    _, entries = read_manifest(manifest)
    if plan["manifest"].get(split) != sha256(manifest):
        raise UserError(f"{path}: stale, {manifest} has changed; run {command} again")
    entries = [entry for entry in entries if entry.file not in skipped_files]
    files = {entry.file: number for number, entry in enumerate(distinct(entries))}
    try:
        means = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run {command} again") from None
    if means.dtype != np.float32 or means.ndim != 3 or len(means) != len(files):
        reason = f"expected float32 ({len(files)}, layers, D), found {means.dtype} {means.shape}"
        raise UserError(f"{path}: {reason}; run {command} again")
    index = torch.tensor([files[entry.file] for entry in entries])
    return Means(torch.from_numpy(means), entries, index)
