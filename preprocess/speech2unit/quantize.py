"""The loop over a manifest: audio -> features -> units, in batches, out in the manifest's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from preprocess.manifest import Entry
from preprocess.speech2unit.audio import AudioReader, BadAudio
from preprocess.speech2unit.features import SAMPLE_RATE, FeatureReader
from preprocess.speech2unit.kmeans import KMeans

_WINDOW = 8  # batches read ahead and sorted by length, so that a batch holds similar lengths


class Encoder:
    """Reads the entries' audio and computes their features. ``bad`` collects what could not be
    used, and why.
    """

    def __init__(self, reader: FeatureReader, device: torch.device, batch_seconds: float) -> None:
        self.audio = AudioReader()
        self.bad: dict[Path, str] = {}
        self.reader = reader
        self.device = device
        if reader.cpu_threads is not None:
            torch.set_num_threads(reader.cpu_threads)
        self._batch_samples = int(batch_seconds * SAMPLE_RATE)

    def features(
        self, root: Path, entries: Sequence[Entry], title: str
    ) -> Iterator[tuple[Entry, torch.Tensor]]:
        """Yield each entry with its (T, D) features, in order, leaving out the bad ones."""
        window: list[_Loaded] = []
        for entry in tqdm(
            entries, title, unit="file", disable=None
        ):  # silent where there is no terminal
            loaded = self._load(root / entry.path, entry)
            if loaded is not None:
                window.append(loaded)
            if sum(len(item.samples) for item in window) >= _WINDOW * self._batch_samples:
                yield from self._encode(window)
                window = []
        yield from self._encode(window)

    def _load(self, path: Path, entry: Entry) -> _Loaded | None:
        try:
            samples = self.audio.read(path, entry.start, entry.frames)
            if len(samples) < self.reader.min_samples:
                shortest = 1000 * self.reader.min_samples / SAMPLE_RATE
                raise BadAudio(f"is shorter than one frame ({shortest:.0f} ms)")
        except BadAudio as error:
            self.bad[path] = str(error)
            return None
        return _Loaded(entry, samples)

    def _encode(self, window: list[_Loaded]) -> Iterator[tuple[Entry, torch.Tensor]]:
        order = sorted(range(len(window)), key=lambda index: len(window[index].samples))
        features: dict[int, torch.Tensor] = {}
        for batch in self._batches(order, [len(item.samples) for item in window]):
            waveforms = [torch.from_numpy(window[index].samples) for index in batch]
            with torch.inference_mode():
                features.update(zip(batch, self.reader(waveforms), strict=True))
        for index, item in enumerate(window):
            yield item.entry, features[index]

    def _batches(self, order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) + 1) * lengths[index] > self._batch_samples:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


class _Loaded(NamedTuple):
    entry: Entry
    samples: np.ndarray  # (T,)


def quantize(
    encoder: Encoder, kmeans: KMeans, root: Path, entries: Sequence[Entry], title: str
) -> Iterator[tuple[str, str]]:
    """Yield ``(file, units)`` for each entry, units as integers and spaces, runs kept."""
    for entry, features in encoder.features(root, entries, title):
        yield entry.file, " ".join(map(str, kmeans(features).tolist()))


def merge_runs(units: str) -> str:
    """Collapse runs of one unit: ``"71 71 12 12 71"`` becomes ``"71 12 71"`` (``taskrc.merge``)."""
    symbols = units.split(" ")
    return " ".join(
        unit for index, unit in enumerate(symbols) if index == 0 or unit != symbols[index - 1]
    )
