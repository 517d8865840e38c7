"""Unit models by name: which speech checkpoint and layer, k-means and unit LM belong together, and
where they lie.

The released ones stand in pretrained_models/registry.yaml; a user's own in
<workspace>/pretrained_models/my_unit_models.yaml, in the same format.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.workspace import REPOSITORY, Workspace

REGISTRY = REPOSITORY / "pretrained_models" / "registry.yaml"
OWN = "my_unit_models.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # names become file names: no /, nothing hidden
# ASCII, as in a request; no user:password@, which error messages would show
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/[!-~]+")
_WHEEL = re.compile(r"\w+-[\w.]+-py3-none-\w+\.whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(unsafe_hash=True)  # files are told apart by hash; a frozen one cannot be read
class WheelEntry:
    """A package on PyPI that holds a file; registry.yaml says what the keys mean."""

    file: str = MISSING
    sha256: str = MISSING
    member: str = MISSING


@dataclass
class FileEntry:
    """A file in the table; registry.yaml says what the keys mean."""

    url: str | None = None
    path: str | None = None
    wheel: WheelEntry | None = None
    note: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass
class UnitModelEntry:
    """A unit model in the table."""

    feature_type: str = MISSING
    checkpoint: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    clusters: int = MISSING
    kmeans: FileEntry | None = None
    lm: FileEntry | None = None


@dataclass
class Registry:
    """A table of unit models, as it is written."""

    base_url: str | None = None
    checkpoints: dict[str, FileEntry] = field(default_factory=dict)
    unit_models: dict[str, UnitModelEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class PretrainedFile:
    """Where a file of the table lies here, and where it comes from."""

    path: Path  # an LM: its folder
    url: str | None
    sha256: str | None  # of what the url or the wheel gives
    size: int | None
    is_lm: bool = False
    wheel: WheelEntry | None = None
    note: str | None = None  # what a user should know of it
    ships: bool = False  # with the repository

    @property
    def is_released(self) -> bool:
        """Whether it can be downloaded or ships with the repository; else it is the user's own."""
        return self.ships or bool(self.url or self.wheel)

    @property
    def download(self) -> Path:
        """Where the url's content goes: an LM comes as an archive."""
        return self.path.with_name(f"{self.path.name}.tgz") if self.is_lm else self.path

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files that must be there for it to be whole."""
        if self.is_lm:
            return self.path / "checkpoint_best.pt", self.path / "dict.txt"
        return (self.path,)


@dataclass(frozen=True)
class UnitModel:
    """A unit model with its local paths; a file that it lacks or needs not is None."""

    name: str
    feature_type: str
    layer: int | None
    normalize: bool | None
    clusters: int
    checkpoint: PretrainedFile | None
    kmeans: PretrainedFile | None
    lm: PretrainedFile | None
    workspace: Workspace

    @property
    def ckpt_path(self) -> Path | None:
        """The speech model's checkpoint; None where the features need none."""
        return self.checkpoint.path if self.checkpoint else None

    @property
    def learned_kmeans(self) -> Path:
        """Where a k-means that was learned or converted here lies."""
        return _folder(self.workspace) / f"{self.name}_km.npz"

    @property
    def km_path(self) -> Path:
        """The k-means to use: one learned or converted here before the released one."""
        if self.kmeans is None or (self.kmeans.is_released and self.learned_kmeans.exists()):
            return self.learned_kmeans
        return self.kmeans.path

    @property
    def lm_folder(self) -> Path:
        """The unit LM's folder: checkpoint_best.pt and dict.txt. One that ships with the repository
        serves until another is trained here, or another k-means is used.
        """
        own = self.workspace.lm(self.name)
        if self.lm is None:
            return own
        shipped = self.kmeans.path if self.kmeans else None
        return own if self.lm.ships and (own.exists() or self.km_path != shipped) else self.lm.path

    @property
    def files(self) -> dict[str, PretrainedFile]:
        """What there is of ``checkpoint``, ``kmeans`` and ``lm``."""
        found = {"checkpoint": self.checkpoint, "kmeans": self.kmeans, "lm": self.lm}
        return {kind: file for kind, file in found.items() if file is not None}


def find_unit_model(name: str, workspace: Workspace) -> UnitModel | None:
    """The unit model of that name, or None: units may have been made elsewhere.

    Raises ``UserError`` for a broken table.
    """
    return unit_models(workspace).get(name)


def unit_model(name: str, workspace: Workspace, base_url: str | None = None) -> UnitModel:
    """The unit model of that name. Raises ``UserError``, naming those that exist, for an unknown
    one.
    """
    known = unit_models(workspace, base_url)
    if name not in known:
        raise UserError(
            f"unit model {name}: unknown; there is {', '.join(known)}; "
            f"describe your own in {_folder(workspace) / OWN}"
        )
    return known[name]


def lm_folder(workspace: Workspace, name: str, shipped: bool = False) -> Path:
    """The folder of that unit model's LM, also for one that no table names. ``shipped``: the one
    that ships with the repository, though another was trained in the workspace.
    """
    known = find_unit_model(name, workspace)
    if shipped and known and known.lm and known.lm.ships:
        return known.lm.path
    return known.lm_folder if known else workspace.lm(name)


def unit_models(workspace: Workspace, base_url: str | None = None) -> dict[str, UnitModel]:
    """Every unit model, released ones first. ``base_url`` names a mirror, used instead of the
    tables'.

    Raises ``UserError``, naming table and entry, for anything that is not as registry.yaml says.
    """
    own_path = _folder(workspace) / OWN
    tables = {REGISTRY: _released()}
    if own_path.exists():
        tables[own_path] = load_config(Registry, own_path)
    checkpoints: dict[str, PretrainedFile] = {}
    models: dict[str, UnitModel] = {}
    for path, table in tables.items():
        reader = _Reader(path, workspace, base_url or table.base_url)
        for name, entry in table.checkpoints.items():
            reader.check_name(name, checkpoints)
            checkpoints[name] = reader.checkpoint(name, entry)
        for name, entry in table.unit_models.items():
            reader.check_name(name, models)
            models[name] = reader.unit_model(name, entry, checkpoints)
    _check_apart(list(checkpoints.values()), own_path)
    return models


@functools.cache
def _released() -> Registry:
    return load_config(Registry, REGISTRY)


def _folder(workspace: Workspace) -> Path:
    return workspace.root / "pretrained_models"


def _check_apart(checkpoints: list[PretrainedFile], table: Path) -> None:
    """Two downloads under one file name would take each other for their own."""
    urls: dict[Path, str] = {}
    for file in checkpoints:
        if file.url and urls.setdefault(file.path, file.url) != file.url:
            raise UserError(
                f"{table}: {file.url} and {urls[file.path]} would both be {file.path.name}; "
                "download one yourself and give its path:"
            )


@dataclass(frozen=True)
class _Reader:
    """Turns one table's entries into local paths, checking each."""

    table: Path
    workspace: Workspace
    base_url: str | None

    def check_name(self, name: str, taken: dict[str, object]) -> None:
        if not NAME.fullmatch(name):
            raise self._error(name, "a name is letters, digits, and _ . - after the first")
        if name in taken:
            raise self._error(name, f"the name is taken by {REGISTRY}; choose another")

    def checkpoint(self, name: str, entry: FileEntry) -> PretrainedFile:
        """The file name of its url is its name here, as people have it from there."""
        file_name = urlsplit(entry.url or "").path.rsplit("/", 1)[-1]
        if entry.url and not (NAME.fullmatch(file_name) and file_name.endswith(".pt")):
            raise self._error(name, f"url must end in a file name like model.pt, found {entry.url}")
        return self._file(
            name, entry, _folder(self.workspace) / (f"{name}.ort" if entry.wheel else file_name)
        )

    def unit_model(
        self, name: str, entry: UnitModelEntry, checkpoints: dict[str, PretrainedFile]
    ) -> UnitModel:
        if entry.checkpoint is not None and entry.checkpoint not in checkpoints:
            raise self._error(
                name, f"checkpoint {entry.checkpoint} unknown; there is {', '.join(checkpoints)}"
            )
        if entry.clusters < 1:
            raise self._error(name, f"clusters must be positive, found {entry.clusters}")
        kmeans = _folder(self.workspace) / f"{name}_km.bin"
        return UnitModel(
            name,
            entry.feature_type,
            entry.layer,
            entry.normalize,
            entry.clusters,
            checkpoints.get(entry.checkpoint or ""),
            self._file(f"{name}.kmeans", entry.kmeans, kmeans) if entry.kmeans else None,
            self._file(f"{name}.lm", entry.lm, self.workspace.lm(name), True) if entry.lm else None,
            self.workspace,
        )

    def _file(
        self, name: str, entry: FileEntry, local: Path, is_lm: bool = False
    ) -> PretrainedFile:
        if [entry.url, entry.path, entry.wheel].count(None) != 2:
            raise self._error(name, "give either url or path or wheel")
        if entry.path is not None and (entry.sha256 or entry.size):
            raise self._error(name, "sha256 and size belong to a url or a wheel")
        if entry.sha256 is not None and not _SHA256.fullmatch(entry.sha256):
            raise self._error(name, f"sha256 must be 64 digits 0-9a-f, found {entry.sha256}")
        if entry.path is not None:
            ships = self.table == REGISTRY
            root = REPOSITORY if ships else self.workspace.root
            local = root / Path(entry.path).expanduser()
            return PretrainedFile(local, None, None, None, is_lm, note=entry.note, ships=ships)
        if entry.wheel is not None:
            self._check_wheel(name, entry.wheel)
            kept = _folder(Workspace(REPOSITORY)) / local.name  # one copy serves all workspaces
            local = kept if kept.exists() and not local.exists() else local
        url = self._address(name, entry.url) if entry.url else None
        return PretrainedFile(local, url, entry.sha256, entry.size, is_lm, entry.wheel, entry.note)

    def _check_wheel(self, name: str, wheel: WheelEntry) -> None:
        if not (_WHEEL.fullmatch(wheel.file) and _SHA256.fullmatch(wheel.sha256) and wheel.member):
            raise self._error(
                name,
                "wheel must have a file NAME-VERSION-py3-none-PLATFORM.whl, its sha256 and a "
                f"member, found {wheel.file}",
            )

    def _address(self, name: str, url: str) -> str:
        if "://" not in url:
            if self.base_url is None:
                raise self._error(name, f"{url} is relative; give base_url, or a whole address")
            url = f"{self.base_url.rstrip('/')}/{url}"
        if not _URL.fullmatch(url):
            raise self._error(name, f"expected an http or https address, found {url}")
        return url

    def _error(self, name: str, reason: str) -> UserError:
        return UserError(f"{self.table}: {name}: {reason}")


def distinct_files(models: list[UnitModel], kinds: tuple[str, ...]) -> Iterator[PretrainedFile]:
    """The files of these kinds, one that several share once."""
    files = (file for model in models for kind, file in model.files.items() if kind in kinds)
    yield from dict.fromkeys(files)
