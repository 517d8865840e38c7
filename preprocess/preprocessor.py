"""The base class of every downstream task: its actions, their checks, and the files they write.

A task that a table of recordings cannot describe has a ``preprocessor.py``: a subclass of
``Preprocessor`` that lists the utterances of each split, with their labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from pipeline.config import save_config
from pipeline.devices import choose_device
from pipeline.errors import UserError
from pipeline.files import kind_of_file, read_json, sha256, write_json
from pipeline.rows import SPLITS, write_rows
from pipeline.runs import progress_bar, provenance
from pipeline.unit_models import USER_TABLE, find_unit_model
from pipeline.workspace import Workspace
from preprocess.actions.config import Config, check_numbers, fill_in, in_workspace
from preprocess.actions.corpus import Listing, located
from preprocess.actions.manifest import (
    Entry,
    distinct,
    made_from,
    unit_rows,
    warnings_of,
    write_manifest,
)
from preprocess.actions.stream import rates_record
from preprocess.speech2unit import features
from preprocess.speech2unit.audio import BadAudio, Tally, measured
from preprocess.speech2unit.features import FeatureReader, Source, feature_reader
from preprocess.speech2unit.hf_checkpoint import fingerprint


class Utterance(NamedTuple):
    """One future row. ``labels``: one name per slot of the preprocessor, or a text whose characters
    are the labels, or anything that ``named_labels`` reads.
    """

    path: str  # relative to the corpus folder
    labels: Sequence[str]
    start: int = 0  # the first sample, counted at the file's own rate
    samples: int | None = None  # counted like start; None: from start to the end of the file
    name: str | None = None  # the row's name; None: its path (a crop needs another name)


ConfigType = TypeVar("ConfigType", bound=Config)


class Preprocessor(Generic[ConfigType]):
    """The actions of one task. A subclass sets ``config_class``, ``slots`` and ``utterances``."""

    config_class: type[Config] = Config
    slots: tuple[str, ...]  # the kinds of labels, such as action, object, location

    def __init__(
        self, downstream: str, config: ConfigType, workspace: Workspace, skip_bad: bool = False,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self.downstream, self.config, self.workspace = downstream, config, workspace
        self.skip_bad, self.device = skip_bad, device
        self.bad_audio: dict[Path, str] = {}  # reason per unusable file that ``utterances`` found
        self.listing = Listing()
        data = workspace.downstream_data(downstream)
        self.manifest, self.units = data / "manifest", data / config.taskrc.unit_model
        self.quantized = self.units / "quantized"
        self._unit_model = find_unit_model(config.taskrc.unit_model, workspace)
        fill_in(config.fairseqrc, config.taskrc.unit_model, self._unit_model)
        check_numbers(config)
        self.root = in_workspace(workspace, config.datarc.root_path or ".")  # the corpus folder
        self.ckpt_path = in_workspace(workspace, config.fairseqrc.ckpt_path)  # None: logmel, mfcc
        self._set_km_path = in_workspace(workspace, config.fairseqrc.km_path)
        self.learned_km_path = self._set_km_path or self._unit_model.learned_kmeans

    @property
    def km_path(self) -> Path:
        """The path of the k-means to use."""
        return self._set_km_path or self._unit_model.km_path

    @property
    def km_ships(self) -> bool:
        """Whether the k-means to use ships with the repository."""
        kmeans = self._unit_model.kmeans
        return bool(kmeans and kmeans.ships and self.km_path == kmeans.path)

    def utterances(self, split: str) -> list[Utterance]:
        """Return the split's utterances in their final order."""
        raise NotImplementedError

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """Return slot number and name of each label. By default: one per slot, or characters."""
        is_text = isinstance(utterance.labels, str)
        return ((0 if is_text else slot, name) for slot, name in enumerate(utterance.labels))

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """Return the names of each slot, in the order of train; characters by code point."""
        names: list[dict[str, None]] = [{} for _ in self.slots]
        for utterance in train:
            for slot, name in self.named_labels(utterance):
                names[slot][name] = None
        order = sorted if isinstance(train[0].labels, str) else list
        return [order(slot_names) for slot_names in names]

    def generate_manifest(self) -> None:
        """Write ``manifest/{train,valid,test}.tsv`` and ``labels.json``."""
        if not self.root.is_dir():
            what = f"{self.root}: corpus folder of {self.downstream} not found"
            raise UserError(f"{what}; give its path with --set datarc.root_path=FOLDER")
        splits = {}
        for split in SPLITS:
            listed, root = self.utterances(split), str(self.root)
            if not listed:
                raise UserError(f"{root}: no utterance for the {split} split of {self.downstream}")
            splits[split] = [u._replace(path=located(u.path, self.root, root)) for u in listed]
        names = self.label_names(splits["train"])
        pairs = [(slot, name) for slot, slot_names in enumerate(names) for name in slot_names]
        numbers = {pair: str(number) for number, pair in enumerate(pairs)}  # unique across slots
        warnings = warnings_of(dict(zip(self.slots, names)), splits, self.config.datarc.expected)
        for line in (*self.listing.notes(), *warnings):
            self.say(line)
        lengths, record = self._measure([u for listed in splits.values() for u in listed])
        entries = {
            split: [self._entry(u, lengths, numbers) for u in listed if u.path in lengths]
            for split, listed in splits.items()
        }
        for split in SPLITS:
            count = write_manifest(self.manifest / f"{split}.tsv", self.root, entries[split])
            self.say(f"{split}: {count} utterances, {len(distinct(entries[split]))} distinct")
        labels = [{"slot": self.slots[slot], "name": name} for slot, name in pairs]
        write_json(self.manifest / "labels.json", dict(enumerate(labels)))
        self.say(f"read {self.root}, wrote {self.manifest} ({len(pairs)} labels)")
        self.save_run(self.manifest, **record)

    def _measure(self, utterances: Sequence[Utterance]) -> tuple[dict[str, int], dict[str, object]]:
        """Return the number of samples of each good file, and a record of counts and rates."""
        whole = {u.path for u in utterances if u.samples is None and not u.start}
        lengths: dict[str, int] = {}
        rates: dict[str, int] = {}
        tally = Tally()
        tally.bad.update(self.bad_audio)
        paths = sorted({u.path for u in utterances})
        for path in progress_bar(paths, desc=f"{self.downstream} headers", unit="file"):
            try:
                lengths[path], rates[path], notes = measured(self.root / path, path in whole)
                tally.add(notes)
            except BadAudio as error:
                tally.add(error, self.root / path)
        tally.report(self.manifest / "bad_audio.txt", self.skip_bad, self.say)
        return lengths, {"audio": tally.record(), "rates": rates_record(rates)}

    def _entry(
        self, utterance: Utterance, lengths: dict[str, int], numbers: dict[tuple[int, str], str]
    ) -> Entry:
        path, start, pairs = utterance.path, utterance.start, list(self.named_labels(utterance))
        for slot, name in pairs:
            if (slot, name) not in numbers:
                what = f"{path}: {self.slots[slot]} {name!r} never occurs in the train split"
                raise UserError(f"{what}; add such a row to train (or try another taskrc.seed)")
        count = lengths[path] - start if utterance.samples is None else utterance.samples
        if start < 0 or count < 1:
            piece = f"start {start}, {count} samples: expected a piece of the file"
            raise UserError(f"{path}: {piece}, which has {lengths[path]} samples")
        labels = " ".join(numbers[pair] for pair in pairs)
        return Entry(path, count, start, utterance.name or path, labels)

    def feature_reader(self, all_layers: bool = False) -> tuple[FeatureReader, torch.device]:
        """Return the configured reader and its device, and print why this device was chosen.
        ``all_layers``: a reader of all layers; the checkpoint decides whether it normalises.
        """
        settings = self.config.fairseqrc
        device, why = choose_device(self.device)
        features.check_dtype(settings.dtype, device)
        layer = (None, None) if all_layers else (settings.layer, settings.normalize)
        source = Source(self._existing(self.ckpt_path), *layer, device, all_layers, settings.dtype)
        reader = feature_reader(settings.feature_type, source)
        self.say(f"{settings.feature_type} features in {settings.dtype} on {why}{reader.note}")
        return reader, device

    def speech_encoder_record(self) -> dict[str, object]:
        """Return everything that the features of all layers depend on, except the audio."""
        settings, path = self.config.fairseqrc, self._existing(self.ckpt_path)
        checkpoint = fingerprint(path) if path else None
        dtype = {} if settings.dtype == "float32" else {"dtype": settings.dtype}  # like old records
        return {"feature_type": settings.feature_type, "checkpoint": checkpoint, **dtype}

    def unit_model_record(self) -> dict[str, object]:
        """Return everything that the units depend on, except the audio."""
        record = self.speech_encoder_record()
        settings, kmeans = self.config.fairseqrc, self._existing(self.km_path)
        digest = sha256(kmeans) if kmeans else None
        return record | {"layer": settings.layer, "normalize": settings.normalize, "kmeans": digest}

    def _existing(self, path: Path | None) -> Path | None:
        """Return ``path``, of the checkpoint or k-means. Raises ``UserError`` if it is missing."""
        is_kmeans = path == self.km_path
        if path is None or path.is_file() or (path.is_dir() and not is_kmeans):
            return path  # a checkpoint may be a folder
        missing = f"is {kind_of_file(path)}" if path.is_dir() else "not found"
        learn, key = ("--action learn_kmeans, or ", "km") if is_kmeans else ("", "ckpt")
        what = "k-means file" if is_kmeans else "the speech encoder's checkpoint"
        listed = self._unit_model.kmeans if is_kmeans else self._unit_model.checkpoint
        get = f"run python pretrained_models/download.py {self.config.taskrc.unit_model}"
        if listed and not listed.is_released and path == listed.path:
            get = f"correct its path: in {USER_TABLE}, put the file there"
        raise UserError(f"{path}: {what} {missing}; {get}, or {learn}set fairseqrc.{key}_path")

    def postprocess(self) -> None:
        """Write ``<unit_model>/{train,valid,test}``, one row ``file|units|labels`` per entry."""
        merge, unit_model = self.config.taskrc.merge, self.config.taskrc.unit_model
        splits = {s: unit_rows(self.manifest, self.quantized, s, merge) for s in SPLITS}
        labels = read_json(self.manifest / "labels.json", "runner.py --action generate_manifest")
        for split, (rows, bad) in splits.items():
            count = write_rows(self.workspace.rows(self.downstream, unit_model, split), rows)
            mean = sum(row.units.count(" ") + 1 for row in rows) / count
            more = f"; {bad} rows left out, their audio is bad" if bad else ""
            self.say(f"{split}: {count} rows, {mean:.1f} units per row{more}")
        write_json(self.units / "labels.json", labels)
        repeated = f"repeated units {'merged' if merge else 'kept'}"
        self.say(f"read {self.quantized}, wrote {self.units} ({repeated})")
        self.save_run(self.units)

    def save_run(self, folder: Path, **more: object) -> None:
        """Write into ``folder`` the config, how its output was made, and the manifest's hashes."""
        save_config(self.config, folder / "config.yaml")
        write_json(folder / "provenance.json", provenance() | made_from(self.manifest) | more)

    def say(self, text: str) -> None:
        """Print one line about this downstream."""
        print(f"{self.downstream}: {text}")
