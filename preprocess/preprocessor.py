"""The base class of every downstream task: its actions, their checks, and what they write.

A task is a folder with ``config.yaml`` and ``preprocessor.py``. There ``Preprocessor`` is
subclassed, and says which utterances a split holds and how they are labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from pipeline.config import save_config
from pipeline.devices import choose_device
from pipeline.errors import UserError
from pipeline.files import kind_of_file, read_json, write_json
from pipeline.rows import SPLITS, check_name, write_rows
from pipeline.runs import progress_bar, provenance
from pipeline.unit_models import find_unit_model
from pipeline.workspace import Workspace
from preprocess.actions.config import Config, check_numbers, fill_in
from preprocess.actions.corpus import Listing, located, notes
from preprocess.actions.manifest import (
    Entry,
    distinct,
    inside,
    made_from,
    unit_rows,
    write_manifest,
)  # fmt: skip
from preprocess.actions.stream import rates_record
from preprocess.speech2unit import features
from preprocess.speech2unit.audio import BadAudio, Tally, measured, report_bad_audio
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
    """The actions of one task, which sets ``config_class`` and ``slots`` and lists its
    ``utterances``.
    """

    config_class: type[Config] = Config
    slots: tuple[str, ...]  # the kinds of labels, such as action, object, location

    def __init__(
        self, downstream: str, config: ConfigType, workspace: Workspace, skip_bad: bool = False,
        device: str = "auto",
    ) -> None:  # fmt: skip
        self.downstream = downstream
        self.config = config
        self.workspace = workspace
        self.skip_bad, self.device = skip_bad, device
        self.bad_audio: dict[Path, str] = {}  # what the corpus holds and cannot be used, and why
        self.listing = Listing()
        self.data = workspace.downstream_data(downstream)
        self.manifest = self.data / "manifest"
        self.units = self.data / config.taskrc.unit_model
        self.quantized = self.units / "quantized"
        self._known = find_unit_model(config.taskrc.unit_model, workspace)
        fill_in(config.fairseqrc, config.taskrc.unit_model, self._known)
        check_numbers(config)

    @property
    def km_path(self) -> Path:
        """The k-means to use."""
        configured = self.config.fairseqrc.km_path
        return self._known.km_path if configured is None else self.in_workspace(configured)

    @property
    def km_ships(self) -> bool:
        """Whether the k-means to use is one that ships with the repository."""
        shipped = self._known.kmeans
        return bool(shipped and shipped.ships and self.km_path == shipped.path)

    @property
    def learned_km_path(self) -> Path:
        """Where ``learn_kmeans`` writes."""
        configured = self.config.fairseqrc.km_path
        return self.in_workspace(configured) if configured else self._known.learned_kmeans

    @property
    def ckpt_path(self) -> Path | None:
        """The speech model's checkpoint, None for features that need none."""
        settings = self.config.fairseqrc
        return None if settings.ckpt_path is None else self.in_workspace(settings.ckpt_path)

    def utterances(self, split: str) -> list[Utterance]:
        """List the split's utterances in their final order. Raises ``UserError`` for a corpus that
        lacks it.
        """
        raise NotImplementedError

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """The names of each slot in the order of their numbers, which is here the order of their
        first appearance in train, or of the characters' codes.
        """
        names: list[dict[str, None]] = [{} for _ in self.slots]
        for utterance in train:
            for slot, name in self.named_labels(utterance):
                names[slot][name] = None
        is_text = isinstance(train[0].labels, str)
        return [sorted(slot_names) if is_text else list(slot_names) for slot_names in names]

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """Slot and name of each label, in their order; here: one for each slot, or characters."""
        is_text = isinstance(utterance.labels, str)
        return ((0 if is_text else slot, name) for slot, name in enumerate(utterance.labels))

    @property
    def root(self) -> Path:
        """The corpus folder."""
        return self.in_workspace(self.config.datarc.root_path)

    def in_workspace(self, path: str) -> Path:
        """A path of the config: a relative one starts at the workspace, wherever the command is
        typed.
        """
        try:
            return self.workspace.root / Path(path).expanduser()
        except RuntimeError:
            raise UserError(f"{path}: there is no such user; write the folder out") from None

    def generate_manifest(self) -> None:
        """Write ``manifest/{train,valid,test}.tsv`` and ``labels.json``."""
        if not self.root.is_dir():
            raise UserError(
                f"{self.root}: corpus folder of {self.downstream} not found; "
                "name it with --set datarc.root_path=FOLDER"
            )
        splits = {
            split: [u._replace(path=located(u.path, self.root, str(self.root))) for u in utterances]
            for split, utterances in ((split, self.utterances(split)) for split in SPLITS)
        }
        for split, utterances in splits.items():
            if not utterances:
                raise UserError(
                    f"{self.root}: no utterance for the {split} split of {self.downstream}"
                )
        names = self.label_names(splits["train"])
        slots = dict(zip(self.slots, names))
        for note in notes(self.listing, slots, splits, self.config.datarc.expected):
            self.say(note)
        pairs = [(slot, name) for slot, slot_names in enumerate(names) for name in slot_names]
        numbers = {pair: number for number, pair in enumerate(pairs)}  # no two slots share one
        frames = self._measure([u for utterances in splits.values() for u in utterances])
        entries = {
            split: [
                Entry(
                    u.path,
                    frames[u.path] if u.frames is None else u.frames,
                    u.start,
                    u.name or u.path,
                    self._labels(u, numbers),
                )
                for u in utterances
                if self.root / u.path not in self.bad_audio
            ]
            for split, utterances in splits.items()
        }
        for split in SPLITS:
            count = write_manifest(self.manifest / f"{split}.tsv", self.root, entries[split])
            self.say(f"{split}: {count} utterances, {len(distinct(entries[split]))} distinct")
        records = [{"slot": self.slots[slot], "name": name} for slot, name in pairs]
        write_json(self.manifest / "labels.json", dict(enumerate(records)))
        self.say(f"read {self.root}, wrote {self.manifest} ({len(pairs)} labels)")
        self.save_run(self.manifest, **self._measured)

    def report_bad_audio(self, skip: bool) -> None:
        """List the bad files beside the manifests. Raises ``UserError`` unless they may be
        skipped.
        """
        report_bad_audio(self.bad_audio, self.manifest / "bad_audio.txt", skip)

    def _measure(self, utterances: Sequence[Utterance]) -> dict[str, int]:
        """The samples of each file. Keeps for the record their rates and what was counted."""
        for utterance in utterances:
            check_name(utterance.path), check_name(utterance.name or "")
        whole = {u.path for u in utterances if u.frames is None}
        paths = sorted({inside(u.path, self.root, str(self.root)) for u in utterances})
        frames: dict[str, int] = {}
        rates: dict[str, int] = {}
        tally = Tally()
        for path in progress_bar(paths, desc=f"{self.downstream} headers", unit="file"):
            try:
                frames[path], rates[path], notes = measured(self.root / path, path in whole)
                tally.add(notes)
            except BadAudio as error:
                self.bad_audio[self.root / path] = str(error)
                tally.add(error)
        self.say(str(tally))
        self.report_bad_audio(self.skip_bad)
        self._measured = {"audio": tally.record(), "rates": rates_record(rates)}
        return frames

    def _labels(self, utterance: Utterance, numbers: dict[tuple[int, str], int]) -> str:
        labels = []
        for slot, name in self.named_labels(utterance):
            if (slot, name) not in numbers:
                raise UserError(
                    f"{utterance.path}: {self.slots[slot]} {name!r} never occurs in the train "
                    "split; put a row there (where splits are drawn: another taskrc.seed)"
                )
            labels.append(str(numbers[slot, name]))
        return " ".join(labels)

    def feature_reader(self, all_layers: bool = False) -> tuple[FeatureReader, torch.device]:
        """The configured features, on the chosen device, with the reason printed.

        ``all_layers``: every layer's, of waveforms normalised as the checkpoint says.
        """
        settings = self.config.fairseqrc
        device, why = choose_device(self.device)
        features.check_dtype(settings.dtype, device)
        layer = (None, None) if all_layers else (settings.layer, settings.normalize)
        source = Source(self.ckpt_path, *layer, device, all_layers, settings.dtype)
        reader = feature_reader(settings.feature_type, source)
        why += getattr(reader, "note", "")
        self.say(f"{settings.feature_type} features in {settings.dtype} on {why}")
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
        return {
            **self.speech_model_record(),
            "layer": settings.layer,
            "normalize": settings.normalize,
            "kmeans": self._digest(self.km_path, "k-means file"),
        }

    def _digest(self, path: Path | None, what: str) -> str | None:
        if path is None:
            return None
        if not path.is_file() and (path == self.km_path or not path.is_dir()):
            name = self.config.taskrc.unit_model
            remedies = [f"python pretrained_models/download.py {name}"] if self._known else []
            if path == self.km_path:
                remedies.append("--action learn_kmeans")
            remedies.append("--set fairseqrc.km_path or ckpt_path=FILE")
            missing = f"is {kind_of_file(path)}" if path.is_dir() else "not found"
            raise UserError(f"{path}: {what} {missing}; get it by {', or '.join(remedies)}")
        return fingerprint(path)

    def postprocess(self) -> None:
        """Write ``<unit_model>/{train,valid,test}``: ``file|units|labels``, a row for each manifest
        entry.
        """
        merge, splits = self.config.taskrc.merge, {}
        for split in SPLITS:
            splits[split], bad = unit_rows(self.manifest, self.quantized, split, merge)
            if bad:
                self.say(f"{split}: {bad} rows left out, their audio is bad")
        labels = read_json(self.manifest / "labels.json", "runner.py --action generate_manifest")
        for split, rows in splits.items():
            path = self.workspace.rows(self.downstream, self.config.taskrc.unit_model, split)
            count = write_rows(path, rows)
            mean = sum(row.units.count(" ") + 1 for row in rows) / count
            self.say(f"{split}: {count} rows, {mean:.1f} units a row")
        write_json(self.units / "labels.json", labels)
        self.say(
            f"read {self.quantized}, wrote {self.units} (runs {'merged' if merge else 'kept'})"
        )
        self.save_run(self.units)

    def save_run(self, folder: Path, **more: object) -> None:
        """Leave the resolved config, what made the output, and the manifest's hashes beside it."""
        save_config(self.config, folder / "config.yaml")
        write_json(folder / "provenance.json", provenance() | made_from(self.manifest) | more)

    def say(self, text: str) -> None:
        """Print a line about this downstream."""
        print(f"{self.downstream}: {text}")
