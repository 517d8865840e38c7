"""What every downstream task shares: the actions, their checks and what they leave behind.

A task is a folder with ``config.yaml`` and ``preprocessor.py``, where ``Preprocessor`` subclasses
the one here and says which utterances a split holds and what their labels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from omegaconf import MISSING

from pipeline.config import save_config
from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json, writing
from pipeline.provenance import provenance
from pipeline.rows import SPLITS, Row, write_rows
from pipeline.workspace import Workspace
from preprocess.manifest import Entry, distinct, read_manifest, write_manifest
from preprocess.speech2unit.audio import BadAudio, fail_on_bad_audio, length_and_rate
from preprocess.speech2unit.features import Source, best_device, feature_reader
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from preprocess.speech2unit.quantize import Encoder, merge_runs, quantize


@dataclass
class TaskConfig:
    """What comes out. The values and their meaning stand in each task's config.yaml."""

    unit_model: str = MISSING
    merge: bool = MISSING
    seed: int = MISSING


@dataclass
class DataConfig:
    """Where the corpus lies; a task adds its own keys in a subclass."""

    root_path: str = MISSING


@dataclass
class FairseqConfig:
    """How audio becomes units."""

    feature_type: str = MISSING
    ckpt_path: str | None = MISSING
    layer: int | None = MISSING
    normalize: bool | None = None
    km_path: str | None = MISSING
    km_clusters: int = MISSING
    km_frames: int = MISSING
    km_starts: int = MISSING
    batch_seconds: float = MISSING


@dataclass
class Config:
    """A task's config.yaml. A task with its own data keys subclasses it and gives ``datarc`` its
    own type.
    """

    taskrc: TaskConfig = field(default_factory=TaskConfig)
    datarc: DataConfig = field(default_factory=DataConfig)
    fairseqrc: FairseqConfig = field(default_factory=FairseqConfig)


class Utterance(NamedTuple):
    """One row to be: ``labels`` holds a name for each of the task's slots; no ``frames`` means the
    whole file.
    """

    path: str  # relative to the corpus folder
    labels: tuple[str, ...]
    start: int = 0
    frames: int | None = None
    name: str | None = None  # where the row's name is not its path (a crop)


ConfigType = TypeVar("ConfigType", bound=Config)


class Preprocessor(Generic[ConfigType]):
    """The three actions of one task. ``config_class`` and ``slots`` and ``utterances`` are the
    task's own.
    """

    config_class: type[Config] = Config
    slots: tuple[str, ...]  # what an utterance's labels say, in their order

    def __init__(self, downstream: str, config: ConfigType, workspace: Workspace) -> None:
        self.downstream = downstream
        self.config = config
        self.workspace = workspace
        self.data = workspace.downstream_data(downstream)
        self.manifest = self.data / "manifest"
        self.units = self.data / config.taskrc.unit_model
        self.quantized = self.units / "quantized"
        self.km_path = self.in_workspace(
            config.fairseqrc.km_path or f"pretrained_models/{config.taskrc.unit_model}_km.npz"
        )

    def utterances(self, split: str) -> list[Utterance]:
        """List the split's utterances in their final order. Raises ``UserError`` for a corpus that
        lacks it.
        """
        raise NotImplementedError

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """The names of each slot in the order of their numbers; here: of their first appearance in
        train.
        """
        return [
            list(dict.fromkeys(utterance.labels[slot] for utterance in train))
            for slot in range(len(self.slots))
        ]

    @property
    def root(self) -> Path:
        """The corpus folder."""
        return self.in_workspace(self.config.datarc.root_path)

    def in_workspace(self, path: str) -> Path:
        """A path of the config: a relative one starts at the workspace, wherever the command is
        typed.
        """
        return self.workspace.root / Path(path).expanduser()

    def generate_manifest(self) -> None:
        """Write ``manifest/{train,valid,test}.tsv`` and ``labels.json``."""
        if not self.root.is_dir():
            raise UserError(
                f"{self.root}: corpus folder of {self.downstream} not found; "
                "name it with --set datarc.root_path=FOLDER"
            )
        splits = {split: self.utterances(split) for split in SPLITS}
        for split, utterances in splits.items():
            if not utterances:
                raise UserError(
                    f"{self.root}: no utterance for the {split} split of {self.downstream}"
                )
        numbers = self._number(self.label_names(splits["train"]))
        entries = self._entries(splits, numbers)
        for split in SPLITS:
            count = write_manifest(self.manifest / f"{split}.tsv", self.root, entries[split])
            self._say(f"{split}: {count} utterances, {len(distinct(entries[split]))} distinct")
        labels = {
            str(i): {"slot": self.slots[slot], "name": name} for (slot, name), i in numbers.items()
        }
        write_json(self.manifest / "labels.json", labels)
        self._say(f"read {self.root}, wrote {self.manifest} ({len(labels)} labels)")
        self._save_run(self.manifest)

    def _number(self, names: list[list[str]]) -> dict[tuple[int, str], int]:
        """Number the labels through all slots, so that no two slots share a number."""
        pairs = [(slot, name) for slot, slot_names in enumerate(names) for name in slot_names]
        return {pair: number for number, pair in enumerate(pairs)}

    def _entries(
        self, splits: dict[str, list[Utterance]], numbers: dict[tuple[int, str], int]
    ) -> dict[str, list[Entry]]:
        lengths: dict[str, int] = {}
        bad: dict[Path, str] = {}
        for path in sorted(
            {u.path for split in splits.values() for u in split if u.frames is None}
        ):
            try:
                lengths[path] = length_and_rate(self.root / path)[0]
            except BadAudio as error:
                bad[self.root / path] = str(error)
        fail_on_bad_audio(bad, self.manifest / "bad_audio.txt")
        return {
            split: [
                Entry(
                    u.path,
                    lengths[u.path] if u.frames is None else u.frames,
                    u.start,
                    u.name or u.path,
                    self._labels(u, numbers),
                )
                for u in utterances
            ]
            for split, utterances in splits.items()
        }

    def _labels(self, utterance: Utterance, numbers: dict[tuple[int, str], int]) -> str:
        found = []
        for slot, name in enumerate(utterance.labels):
            if (slot, name) not in numbers:
                raise UserError(
                    f"{utterance.path}: {self.slots[slot]} {name!r} never occurs in the train split"
                )
            found.append(str(numbers[slot, name]))
        return " ".join(found)

    def quantize(self) -> None:
        """Write ``<unit_model>/quantized/{train,valid,test}``: ``file|units``, one line a distinct
        file, runs kept.
        """
        manifests = {split: read_manifest(self.manifest / f"{split}.tsv") for split in SPLITS}
        centres = load_kmeans(self.km_path)
        encoder = self.encoder()
        if centres.shape[1] != encoder.reader.dim:
            raise UserError(
                f"{self.km_path}: its centres have {centres.shape[1]} numbers, a feature frame has "
                f"{encoder.reader.dim}; k-means and features do not belong together"
            )
        self._say(f"{len(centres)} clusters of {self.km_path}")
        kmeans = KMeans(centres, encoder.device)
        for split, (root, entries) in manifests.items():
            files = distinct(entries)
            lines = list(quantize(encoder, kmeans, root, files, f"{self.downstream} {split}"))
            if not encoder.bad:
                assert len(lines) == len(files)
                with writing(self.quantized / split) as handle:
                    handle.writelines(f"{file}|{units}\n" for file, units in lines)
                self._say(f"{split}: {len(lines)} files of {len(entries)} utterances")
        for note, count in encoder.audio.notes.items():
            self._say(f"note: {count} files: {note}")
        fail_on_bad_audio(encoder.bad, self.quantized / "bad_audio.txt")
        self._say(f"read {self.manifest}, wrote {self.quantized}")
        self._save_run(self.quantized, km_sha256=sha256(self.km_path))

    def encoder(self) -> Encoder:
        """The configured features, on the best device, with its reason printed."""
        settings = self.config.fairseqrc
        device, why = best_device()
        ckpt_path = None if settings.ckpt_path is None else self.in_workspace(settings.ckpt_path)
        source = Source(ckpt_path, settings.layer, settings.normalize, device)
        reader = feature_reader(settings.feature_type, source)
        self._say(f"{settings.feature_type} features on {why}")
        return Encoder(reader, device, settings.batch_seconds)

    def postprocess(self) -> None:
        """Write ``<unit_model>/{train,valid,test}``: ``file|units|labels``, a row for each manifest
        entry.
        """
        splits = {split: self._rows(split) for split in SPLITS}
        labels = read_json(
            self.manifest / "labels.json", "preprocess/runner.py --action generate_manifest"
        )
        for split, rows in splits.items():
            path = self.workspace.rows(self.downstream, self.config.taskrc.unit_model, split)
            count = write_rows(path, rows)
            mean = sum(row.units.count(" ") + 1 for row in rows) / count
            self._say(f"{split}: {count} rows, {mean:.1f} units a row")
        write_json(self.units / "labels.json", labels)
        merged = "runs merged" if self.config.taskrc.merge else "runs kept"
        self._say(f"read {self.quantized}, wrote {self.units} ({merged})")
        self._save_run(self.units)

    def _rows(self, split: str) -> list[Row]:
        _, entries = read_manifest(self.manifest / f"{split}.tsv")
        path = self.quantized / split
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            raise UserError(
                f"{path}: this split is missing; run preprocess/runner.py --action quantized first"
            ) from None
        units = dict(line.rsplit("|", 1) for line in lines)
        if list(units) != [entry.file for entry in distinct(entries)]:
            raise UserError(
                f"{path}: its {len(units)} files are not those of {self.manifest / split}.tsv; "
                "the manifest has changed: run preprocess/runner.py --action quantized again"
            )
        merge = merge_runs if self.config.taskrc.merge else str
        return [Row(entry.file, merge(units[entry.file]), entry.labels) for entry in entries]

    def _save_run(self, folder: Path, **more: str) -> None:
        save_config(self.config, folder / "config.yaml")
        write_json(folder / "provenance.json", provenance() | more)

    def _say(self, text: str) -> None:
        print(f"{self.downstream}: {text}")
