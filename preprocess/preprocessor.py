"""The base class of every downstream task: its actions, their checks, and what they write. Where a
table of recordings is not enough, a task's ``preprocessor.py`` has a subclass of ``Preprocessor``
that says which utterances a split holds and how they are labelled.
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
from pipeline.unit_models import find_unit_model
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
    """One row to be. ``labels`` are a name for each of the task's slots, a text, whose characters
    are labels, or what ``named_labels`` reads. Without ``frames`` it is the whole file.
    """

    path: str  # relative to the corpus folder
    labels: Sequence[str]
    start: int = 0
    frames: int | None = None
    name: str | None = None  # where the row's name is not its path (a crop)


ConfigType = TypeVar("ConfigType", bound=Config)


class Preprocessor(Generic[ConfigType]):
    """The actions of one task, which sets ``config_class``, ``slots`` and ``utterances``."""

    config_class: type[Config] = Config
    slots: tuple[str, ...]  # the kinds of labels, such as action, object, location

    def __init__(
        self, downstream: str, config: ConfigType, workspace: Workspace, skip_bad: bool = False,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self.downstream, self.config, self.workspace = downstream, config, workspace
        self.skip_bad, self.device = skip_bad, device
        self.bad_audio: dict[Path, str] = {}  # what ``utterances`` found unusable, and why
        self.listing = Listing()
        data = workspace.downstream_data(downstream)
        self.manifest, self.units = data / "manifest", data / config.taskrc.unit_model
        self.quantized = self.units / "quantized"
        self._known = find_unit_model(config.taskrc.unit_model, workspace)
        fill_in(config.fairseqrc, config.taskrc.unit_model, self._known)
        check_numbers(config)
        self.root = in_workspace(workspace, config.datarc.root_path or ".")  # the corpus folder
        self.ckpt_path = in_workspace(workspace, config.fairseqrc.ckpt_path)  # some need none
        self._own_km_path = in_workspace(workspace, config.fairseqrc.km_path)
        self.learned_km_path = self._own_km_path or self._known.learned_kmeans

    @property
    def km_path(self) -> Path:
        """The k-means to use."""
        return self._own_km_path or self._known.km_path

    @property
    def km_ships(self) -> bool:
        """Whether the k-means to use is one that ships with the repository."""
        shipped = self._known.kmeans
        return bool(shipped and shipped.ships and self.km_path == shipped.path)

    def utterances(self, split: str) -> list[Utterance]:
        """The split's utterances in their final order."""
        raise NotImplementedError

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """Slot and name of each label, in their order; here: one for each slot, or characters."""
        is_text = isinstance(utterance.labels, str)
        return ((0 if is_text else slot, name) for slot, name in enumerate(utterance.labels))

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """Each slot's names by number: in the order of train, or of the characters' codes."""
        names: list[dict[str, None]] = [{} for _ in self.slots]
        for utterance in train:
            for slot, name in self.named_labels(utterance):
                names[slot][name] = None
        order = sorted if isinstance(train[0].labels, str) else list
        return [order(of_slot) for of_slot in names]

    def generate_manifest(self) -> None:
        """Write ``manifest/{train,valid,test}.tsv`` and ``labels.json``."""
        if not self.root.is_dir():
            what = f"{self.root}: corpus folder of {self.downstream} not found"
            raise UserError(f"{what}; name it with --set datarc.root_path=FOLDER")
        splits = {}
        for split in SPLITS:
            listed, where = self.utterances(split), str(self.root)
            if not listed:
                raise UserError(f"{where}: no utterance for the {split} split of {self.downstream}")
            splits[split] = [u._replace(path=located(u.path, self.root, where)) for u in listed]
        names = self.label_names(splits["train"])
        pairs = [(slot, name) for slot, slot_names in enumerate(names) for name in slot_names]
        numbers = {pair: str(number) for number, pair in enumerate(pairs)}  # no two slots share one
        warnings = warnings_of(dict(zip(self.slots, names)), splits, self.config.datarc.expected)
        for line in (*self.listing.notes(), *warnings):
            self.say(line)
        frames, record = self._measure([u for listed in splits.values() for u in listed])
        entries = {
            split: [self._entry(u, frames, numbers) for u in listed if u.path in frames]
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
        """The samples of each good file; and for the record, their rates and what was counted."""
        whole = {u.path for u in utterances if u.frames is None}
        frames: dict[str, int] = {}
        rates: dict[str, int] = {}
        tally = Tally()
        tally.bad.update(self.bad_audio)
        paths = sorted({u.path for u in utterances})
        for path in progress_bar(paths, desc=f"{self.downstream} headers", unit="file"):
            try:
                frames[path], rates[path], notes = measured(self.root / path, path in whole)
                tally.add(notes)
            except BadAudio as error:
                tally.add(error, self.root / path)
        tally.report(self.manifest / "bad_audio.txt", self.skip_bad, self.say)
        return frames, {"audio": tally.record(), "rates": rates_record(rates)}

    def _entry(
        self, row: Utterance, frames: dict[str, int], numbers: dict[tuple[int, str], str]
    ) -> Entry:
        pairs = list(self.named_labels(row))
        for slot, name in pairs:
            if (slot, name) not in numbers:
                what = f"{row.path}: {self.slots[slot]} {name!r} never occurs in the train split"
                raise UserError(f"{what}; put a row there (or draw by another taskrc.seed)")
        length = frames[row.path] if row.frames is None else row.frames
        labels = " ".join(numbers[pair] for pair in pairs)
        return Entry(row.path, length, row.start, row.name or row.path, labels)

    def feature_reader(self, all_layers: bool = False) -> tuple[FeatureReader, torch.device]:
        """The configured features, on the chosen device, with the reason printed; of ``all_layers``
        as the checkpoint normalises.
        """
        settings = self.config.fairseqrc
        device, why = choose_device(self.device)
        features.check_dtype(settings.dtype, device)
        layer = (None, None) if all_layers else (settings.layer, settings.normalize)
        source = Source(self.ckpt_path, *layer, device, all_layers, settings.dtype)
        reader = feature_reader(settings.feature_type, source)
        self.say(f"{settings.feature_type} features in {settings.dtype} on {why}{reader.note}")
        return reader, device

    def speech_model_record(self) -> dict[str, object]:
        """What the features of all layers depend on, apart from the audio."""
        settings = self.config.fairseqrc
        checkpoint = self._digest(self.ckpt_path, "the speech model's checkpoint")
        dtype = {} if settings.dtype == "float32" else {"dtype": settings.dtype}  # as earlier
        return {"feature_type": settings.feature_type, "checkpoint": checkpoint, **dtype}

    def unit_model_record(self) -> dict[str, object]:
        """What the units depend on, apart from the audio."""
        settings = self.config.fairseqrc
        record = self.speech_model_record()
        record |= {"layer": settings.layer, "normalize": settings.normalize}
        return record | {"kmeans": self._digest(self.km_path, "k-means file")}

    def _digest(self, path: Path | None, what: str) -> str | None:
        if path is None:
            return None
        is_kmeans = path == self.km_path
        if not path.is_file() and (is_kmeans or not path.is_dir()):  # a model may be a folder
            missing = f"is {kind_of_file(path)}" if path.is_dir() else "not found"
            get = f"python pretrained_models/download.py {self.config.taskrc.unit_model}"
            other = f"{'--action learn_kmeans, or ' if is_kmeans else ''}--set fairseqrc"
            remedy = f"get it by {get}, or {other}.km_path or ckpt_path=FILE"
            raise UserError(f"{path}: {what} {missing}; {remedy}")
        return sha256(path) if is_kmeans else fingerprint(path)

    def postprocess(self) -> None:
        """Write ``<unit_model>/{train,valid,test}``, a row ``file|units|labels`` an entry."""
        merge, unit_model = self.config.taskrc.merge, self.config.taskrc.unit_model
        splits = {s: unit_rows(self.manifest, self.quantized, s, merge) for s in SPLITS}
        labels = read_json(self.manifest / "labels.json", "runner.py --action generate_manifest")
        for split, (rows, bad) in splits.items():
            count = write_rows(self.workspace.rows(self.downstream, unit_model, split), rows)
            mean = sum(row.units.count(" ") + 1 for row in rows) / count
            more = f"; {bad} rows left out, their audio is bad" if bad else ""
            self.say(f"{split}: {count} rows, {mean:.1f} units a row{more}")
        write_json(self.units / "labels.json", labels)
        runs = "merged" if merge else "kept"
        self.say(f"read {self.quantized}, wrote {self.units} (runs {runs})")
        self.save_run(self.units)

    def save_run(self, folder: Path, **more: object) -> None:
        """Leave the resolved config, what made the output, and the manifest's hashes beside it."""
        save_config(self.config, folder / "config.yaml")
        write_json(folder / "provenance.json", provenance() | made_from(self.manifest) | more)

    def say(self, text: str) -> None:
        """Print a line about this downstream."""
        print(f"{self.downstream}: {text}")
