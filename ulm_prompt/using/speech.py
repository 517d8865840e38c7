"""Cut recordings into pieces, and turn audio into units with the unit model of a workspace.

A long recording is cut at pauses. Sound without pauses becomes overlapping windows. A frame is
sound if it is louder than the noise around it. A pause is a stretch of frames without sound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.unit_models import UnitModel
from pipeline.workspace import REPOSITORY
from preprocess.actions.config import FairseqConfig, TaskConfig, fill_in, in_workspace
from preprocess.speech2unit.audio import (
    BadAudio,
    Waveform,
    array_waveform,
    length_and_rate,
    mono_blocks,
    read_audio,
)
from preprocess.speech2unit.features import (
    SAMPLE_RATE,
    Source,
    feature_reader,
    merge_runs,
    units_as_text,
)
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from ulm_prompt.prompt_data.prompt_record import UnitSettings
from ulm_prompt.prompt_lm.data import batches_by_length

BATCH_SAMPLES = 60 * SAMPLE_RATE  # samples that are encoded in one batch
Recording = Path | np.ndarray  # a file, or the samples of array_waveform: (T,) float32 at 16 kHz

FRAME = 0.01  # s: one period of a low voice, so that the level does not ripple
SMOOTH = 3  # frames of a moving average of power: white noise then varies by less than 2 dB
SILENT = 1e-8  # power, -80 dB of full scale: rounding and dither are not sound
NEAR = 10.0  # s of a block with one noise floor, from the block and a neighbour: noise changes
QUIET_SHARE = 10  # % of these frames are below the noise floor: speech has at least so many pauses
ABOVE = 10.0  # dB over the noise floor: a spoken word is so loud, steady noise never is
RANGE = 40.0  # dB below the loudest frame: breath and echo of a clean recording are not sound
PAUSE = 0.25  # s without sound: the closure inside "stop" or "eight" is shorter
LEAST = 0.1  # s with sound: a shorter sound is a click
LONGEST = 2.0  # s of one piece: a slow word; a longer piece becomes windows
AROUND = 0.25  # s that are read before and after a piece, for weak first and last consonants


class Piece(NamedTuple):
    """A piece of a recording: ``start`` and ``end`` of the sound in seconds, and the samples
    ``first`` to ``last``, at the rate of the recording, that a prompt reads.
    """

    start: float
    end: float
    first: int
    last: int


def size_of(audio: Recording) -> tuple[int, int]:
    """Return the number of samples, and the samples per second. Raises ``BadAudio``."""
    return length_and_rate(audio) if isinstance(audio, Path) else (len(audio), SAMPLE_RATE)


def read_waveform(audio: Recording, first: int, last: int) -> Waveform:
    """Read samples ``first`` to ``last``, mono at 16 kHz. Raises ``BadAudio``."""
    if isinstance(audio, Path):
        return read_audio(audio, first, last - first)
    return array_waveform(audio[first:last])


def find_pieces(audio: Recording, longest: float = LONGEST) -> list[Piece]:
    """Return the pieces of a recording, in order. A file is read in blocks, with four bytes of
    memory per frame. Sound of more than ``longest`` seconds without a pause becomes windows of
    half that length, which overlap by half. Raises ``BadAudio``, also if the file has no sound.
    """
    total, rate = size_of(audio)
    if total < (hop := round(rate * FRAME)):
        raise BadAudio(f"is shorter than {1000 * FRAME:.0f} ms")
    blocks = mono_blocks(audio, 1000 * hop, total) if isinstance(audio, Path) else [audio]
    powers = []
    for samples in blocks:  # (T,)
        whole = samples[: len(samples) // hop * hop]
        powers.append(whole.reshape(-1, hop).var(axis=1, dtype=np.float32))  # ignores a DC offset
    padded = np.pad(np.concatenate(powers), SMOOTH // 2, mode="edge")
    mean = np.convolve(padded, np.full(SMOOTH, 1 / SMOOTH), "valid")  # (F,)
    levels = 10 * np.log10(np.maximum(mean, SILENT))  # dB of full scale
    is_sound = levels > _thresholds(levels, hop / rate)
    edges = np.flatnonzero(np.diff(is_sound, prepend=False, append=False))
    pieces = _cut(edges.reshape(-1, 2) * (hop / rate), total / rate, longest)
    if not pieces:
        raise BadAudio("contains no sound that is louder than the noise floor")
    return [Piece(*times[:2], *(round(time * rate) for time in times[2:])) for times in pieces]


def _thresholds(levels: np.ndarray, hop: float) -> np.ndarray:
    """Return the level above which a frame is sound, (F,). ``levels``: (F,), ``hop`` s apart."""
    block = round(NEAR / hop)  # frames
    pairs = [  # the noise floor of blocks i and i + 1 together
        np.percentile(levels[start : start + 2 * block], QUIET_SHARE)
        for start in range(0, max(1, len(levels) - block), block)
    ]
    floors = np.maximum([pairs[0], *pairs], [*pairs, pairs[-1]])  # of block i: the higher of two
    floor = np.repeat(floors, block)[: len(levels)]
    return np.maximum(floor + ABOVE, levels.max() - RANGE)


def _cut(runs: np.ndarray, seconds: float, longest: float) -> list[tuple[float, ...]]:
    """Return for each piece start and end of the sound, and start and end of the part to read (at
    most to the middle of a pause), in seconds. ``runs``, (runs, 2): all stretches with sound.
    """
    sounds: list[list[float]] = []
    for start, end in runs:
        if sounds and start - sounds[-1][1] < PAUSE:
            sounds[-1][1] = end
        else:
            sounds.append([start, end])
    sounds = [[start, end] for start, end in sounds if end - start >= LEAST]
    edges = [0.0, *((left[1] + right[0]) / 2 for left, right in zip(sounds, sounds[1:])), seconds]
    pieces = []
    for (start, end), earliest, latest in zip(sounds, edges, edges[1:]):
        length = end - start if end - start <= longest else longest / 2
        count = 1 + int(np.ceil((end - start - length) / (length / 2)))
        for begin in np.linspace(start, end - length, count):
            to_read = max(earliest, begin - AROUND), min(latest, begin + length + AROUND)
            pieces.append((float(begin), float(begin + length), *to_read))
    return pieces


@dataclass
class SavedConfig:
    """The config that a downstream was quantised with; ``datarc`` has the keys of the task."""

    taskrc: TaskConfig
    fairseqrc: FairseqConfig
    datarc: dict[str, Any]


class UnitFiles:
    """The settings and files of a unit model in a workspace. No model is loaded."""

    def __init__(self, unit_model: UnitModel, downstream: str | None) -> None:
        """Use the settings that ``downstream`` was quantised with, or else the registry's settings.
        Raises ``UserError`` if neither describes the unit model.
        """
        workspace, self.unit_model = unit_model.workspace, unit_model
        self.settings, self.merge = FairseqConfig(), True
        self._plan: dict[str, Any] = {}  # of quantising; empty if units were made elsewhere
        if downstream is not None:
            folder = workspace.downstream_data(downstream) / unit_model.name
            if (folder / "config.yaml").is_file():
                saved = load_config(SavedConfig, folder / "config.yaml")
                self.settings, self.merge = saved.fairseqrc, saved.taskrc.merge
            self._quantized = folder / "quantized"
            if (made := self._quantized / "provenance.json").is_file():
                plan = read_json(made, "preprocess/runner.py --action quantized").get("plan")
                self._plan = plan if isinstance(plan, dict) else {}
        if self._plan:  # postprocess wrote the config, without the dtype of quantising
            self.settings.dtype = self._plan.get("dtype", "float32")
        fill_in(self.settings, unit_model.name, unit_model)
        self.km_path = in_workspace(workspace, self.settings.km_path) or unit_model.km_path
        self.ckpt_path = in_workspace(workspace, self.settings.ckpt_path)

    def check_exist(self) -> None:
        """Raise ``UserError`` if the k-means or the speech model is missing."""
        name, root = self.unit_model.name, self.unit_model.workspace.root
        option = "" if root == REPOSITORY else f" --workspace {root}"
        for kind, path in {"k-means": self.km_path, "speech model": self.ckpt_path}.items():
            if path and not path.exists():
                raise UserError(
                    f"{path}: {kind} of {name} not found; get it with "
                    f"python pretrained_models/download.py {name}{option}, or copy it to this path"
                )

    def check_fresh(self) -> None:
        """Raise ``UserError`` unless the downstream was quantised with the present k-means. Units
        that were made elsewhere are not checked.
        """
        expected, exists = self._plan.get("kmeans"), self.km_path.is_file()
        if expected is not None and not (exists and sha256(self.km_path) == expected):
            problem = "differs from" if exists else "not found, expected"
            raise UserError(
                f"{self.km_path}: {problem} the k-means that {self._quantized} was made with; "
                "restore it, or quantise and train again"
            )

    def unit_settings(self) -> UnitSettings:
        """Return the settings, with a fingerprint of the k-means centres if the file exists. A
        released file and its conversion have equal fingerprints.
        """
        kmeans, settings = None, self.settings
        if self.km_path.is_file():
            centres = load_kmeans(self.km_path)
            digest = hashlib.sha256(repr(centres.shape).encode())
            digest.update(np.ascontiguousarray(centres, dtype="<f8").data)
            kmeans = digest.hexdigest()[:16]
        features = settings.feature_type, settings.layer, settings.normalize
        return UnitSettings(*features, self.merge, kmeans, settings.dtype)


class SpeechToUnits:
    """Turns waveforms into units, with loaded models."""

    def __init__(self, files: UnitFiles, device: torch.device) -> None:
        """Load the models. Raises ``UserError`` if a file is broken or the k-means does not fit."""
        model = files.settings
        source = Source(files.ckpt_path, model.layer, model.normalize, device, dtype=model.dtype)
        self.reader = feature_reader(model.feature_type, source)
        self._kmeans = KMeans(load_kmeans(files.km_path, self.reader.dim), device)
        self._finish = merge_runs if files.merge else str  # as in the prompt's rows

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Return the units, ``"71 12 57"``, of each waveform, (T_i,) float32 at 16 kHz. A batch
        contains waveforms of similar length.
        """
        units = [""] * len(waveforms)
        sizes = np.array([len(waveform) for waveform in waveforms], dtype=np.int64)
        most_samples = max([BATCH_SAMPLES, *sizes])
        for batch in batches_by_length(range(len(sizes)), sizes, most_samples, max(1, len(sizes))):
            frames = self.reader([waveforms[number] for number in batch])  # (F_i, D) each
            for number, features in zip(batch, frames):
                units[number] = self._finish(units_as_text(self._kmeans(features)))
        return units
