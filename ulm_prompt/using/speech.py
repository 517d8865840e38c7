"""Speech as a prompt gets it: a recording's pieces, and the units of a workspace's unit model.

A long recording is cut at pauses, and slid over where it has none. A frame is sound when it is
louder than the noise around it. A pause is a stretch without sound.
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
from preprocess.speech2unit.features import SAMPLE_RATE, Source, feature_reader, merge_runs, written
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from ulm_prompt.prompt_data.prompt_record import UnitSettings
from ulm_prompt.prompt_lm.data import batches_by_length

BATCH_SAMPLES = 60 * SAMPLE_RATE  # of audio that is encoded together
Recording = Path | np.ndarray  # a file, or what array_waveform gives: (T,) float32 at 16 kHz

FRAME = 0.01  # s: one period of a low voice, so that a level does not ripple
SMOOTH = 3  # frames of a mean power: white noise then varies by less than 2 dB
SILENT = 1e-8  # power, -80 dB of full scale: rounding and dither are no sound
NEAR = 10.0  # s of one noise floor, which comes from them and 10 s before or after: noise changes
QUIET_SHARE = 10  # % of those frames lie below the noise floor: speech has that much pause
ABOVE = 10.0  # dB over the noise floor: steady noise never rises so far, a spoken word does
RANGE = 40.0  # dB under the loudest frame: breath and echo of a clean recording are no sound
PAUSE = 0.25  # s without sound: the closure inside "stop" or "eight" is shorter
LEAST = 0.1  # s with sound: shorter ones are clicks
LONGEST = 2.0  # s of one piece: a slow word; a longer piece is slid over
AROUND = 0.25  # s that are heard before and after: weak first and last consonants


class Piece(NamedTuple):
    """A piece of a recording. ``start`` and ``end`` of its sound are in seconds; samples ``first``
    to ``last``, at the recording's own rate, are what a prompt hears.
    """

    start: float
    end: float
    first: int
    last: int


def size_of(audio: Recording) -> tuple[int, int]:
    """Samples, and samples a second. Raises ``BadAudio``."""
    return length_and_rate(audio) if isinstance(audio, Path) else (len(audio), SAMPLE_RATE)


def heard_of(audio: Recording, first: int, last: int) -> Waveform:
    """Samples ``first`` to ``last`` as a prompt hears them. Raises ``BadAudio``."""
    if isinstance(audio, Path):
        return read_audio(audio, first, last - first)
    return array_waveform(audio[first:last])


def find_pieces(audio: Recording, longest: float = LONGEST) -> list[Piece]:
    """The pieces of a recording, in order; of a file, read in blocks, memory holds four bytes a
    frame. Sound of more than ``longest`` seconds without a pause becomes windows of half that
    length, which overlap by half. Raises ``BadAudio``, also where nothing rises above the noise.
    """
    total, rate = size_of(audio)
    if total < (hop := round(rate * FRAME)):
        raise BadAudio(f"is shorter than {1000 * FRAME:.0f} ms")
    blocks = mono_blocks(audio, 1000 * hop, total) if isinstance(audio, Path) else [audio]
    powers = []
    for samples in blocks:  # (T,)
        whole = samples[: len(samples) // hop * hop]
        powers.append(whole.reshape(-1, hop).var(axis=1, dtype=np.float32))  # without the offset
    padded = np.pad(np.concatenate(powers), SMOOTH // 2, mode="edge")
    mean = np.convolve(padded, np.full(SMOOTH, 1 / SMOOTH), "valid")  # of each frame, (F,)
    levels = 10 * np.log10(np.maximum(mean, SILENT))  # dB of full scale
    is_sound = levels > _thresholds(levels, hop / rate)
    edges = np.flatnonzero(np.diff(is_sound, prepend=False, append=False))
    pieces = _cut(edges.reshape(-1, 2) * (hop / rate), total / rate, longest)
    if not pieces:
        raise BadAudio("holds no sound that rises above its noise floor")
    return [Piece(*times[:2], *(round(time * rate) for time in times[2:])) for times in pieces]


def _thresholds(levels: np.ndarray, hop: float) -> np.ndarray:
    """The level above which a frame is sound, (F,), for levels (F,) every ``hop`` seconds."""
    near = round(NEAR / hop)
    pairs = [  # the floor of block i and block i + 1
        np.percentile(levels[start : start + 2 * near], QUIET_SHARE)
        for start in range(0, max(1, len(levels) - near), near)
    ]
    floors = np.maximum([pairs[0], *pairs], [*pairs, pairs[-1]])  # of block i, with either side
    floor = np.repeat(floors, near)[: len(levels)]
    return np.maximum(floor + ABOVE, levels.max() - RANGE)


def _cut(runs: np.ndarray, seconds: float, longest: float) -> list[tuple[float, ...]]:
    """Start and end of each piece and of what is heard of it, in seconds. ``runs``, (runs, 2):
    start and end of every stretch with sound.
    """
    sounds: list[list[float]] = []
    for start, end in runs:
        if sounds and start - sounds[-1][1] < PAUSE:
            sounds[-1][1] = end
        else:
            sounds.append([start, end])
    sounds = [[start, end] for start, end in sounds if end - start >= LEAST]
    edges = [0.0, *((one[1] + two[0]) / 2 for one, two in zip(sounds, sounds[1:])), seconds]
    pieces = []
    for (start, end), earliest, latest in zip(sounds, edges, edges[1:]):
        length = end - start if end - start <= longest else longest / 2
        count = 1 + int(np.ceil((end - start - length) / (length / 2)))
        for begin in np.linspace(start, end - length, count):
            heard = max(earliest, begin - AROUND), min(latest, begin + length + AROUND)
            pieces.append((float(begin), float(begin + length), *heard))
    return pieces


@dataclass
class SavedConfig:
    """The config that a downstream was quantised with; ``datarc`` has its task's keys."""

    taskrc: TaskConfig
    fairseqrc: FairseqConfig
    datarc: dict[str, Any]


class UnitFiles:
    """A unit model's settings and files in a workspace. Nothing is loaded yet."""

    def __init__(self, unit_model: UnitModel, downstream: str | None) -> None:
        """Of the settings that ``downstream`` was quantised with, otherwise the registry's. Raises
        ``UserError`` for a unit model that neither describes.
        """
        workspace, self.unit_model = unit_model.workspace, unit_model
        self.settings, self.merge = FairseqConfig(), True
        self._plan: dict[str, Any] = {}  # of quantising; nothing where units were made elsewhere
        if downstream is not None:
            folder = workspace.downstream_data(downstream) / unit_model.name
            if (folder / "config.yaml").is_file():
                saved = load_config(SavedConfig, folder / "config.yaml")
                self.settings, self.merge = saved.fairseqrc, saved.taskrc.merge
            self._quantized = folder / "quantized"
            if (made := self._quantized / "provenance.json").is_file():
                plan = read_json(made, "preprocess/runner.py --action quantized").get("plan")
                self._plan = plan if isinstance(plan, dict) else {}
        if self._plan:  # the config is postprocess's, which computes nothing in a dtype
            self.settings.dtype = self._plan.get("dtype", "float32")
        fill_in(self.settings, unit_model.name, unit_model)
        self.km_path = in_workspace(workspace, self.settings.km_path) or unit_model.km_path
        self.ckpt_path = in_workspace(workspace, self.settings.ckpt_path)

    def check_here(self) -> None:
        """Raises ``UserError`` for a missing k-means or speech model."""
        name, root = self.unit_model.name, self.unit_model.workspace.root
        option = "" if root == REPOSITORY else f" --workspace {root}"
        for what, path in {"k-means": self.km_path, "speech model": self.ckpt_path}.items():
            if path and not path.exists():
                raise UserError(
                    f"{path}: {what} of {name} not found; get it by "
                    f"python pretrained_models/download.py {name}{option}, or put it there"
                )

    def check_fresh(self) -> None:
        """Raises ``UserError`` unless the k-means is the one that the downstream was quantised
        with; nothing is checked for units that were made elsewhere.
        """
        wanted, is_here = self._plan.get("kmeans"), self.km_path.is_file()
        if wanted is not None and not (is_here and sha256(self.km_path) == wanted):
            missing = f"k-means of {self.unit_model.name} not found, the one"
            raise UserError(
                f"{self.km_path}: {'not the k-means' if is_here else missing} that "
                f"{self._quantized} was made with; restore it, or quantise and train again"
            )

    def unit_settings(self) -> UnitSettings:
        """With the fingerprint of the centres, if any: a released file's and its conversion's are
        the same.
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
    """Waveforms to units, the models loaded."""

    def __init__(self, files: UnitFiles, device: torch.device) -> None:
        """Raises ``UserError`` for a broken model, or one that does not fit its k-means."""
        model = files.settings
        source = Source(files.ckpt_path, model.layer, model.normalize, device, dtype=model.dtype)
        self.reader = feature_reader(model.feature_type, source)
        self._kmeans = KMeans(load_kmeans(files.km_path, self.reader.dim), device)
        self._finish = merge_runs if files.merge else str  # as the prompt's rows were made

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Map (T_i,) float32 at 16 kHz to units as text, ``"71 12 57"``. Similar lengths are
        encoded together.
        """
        units = [""] * len(waveforms)
        sizes = np.array([len(waveform) for waveform in waveforms], dtype=np.int64)
        most = max([BATCH_SAMPLES, *sizes])
        for batch in batches_by_length(range(len(sizes)), sizes, most, max(1, len(sizes))):
            frames = self.reader([waveforms[number] for number in batch])  # (F_i, D) each
            for number, features in zip(batch, frames):
                units[number] = self._finish(written(self._kmeans(features)))
        return units
