"""Unit models by name: which speech checkpoint and layer, k-means and unit LM belong together, and
where each file is.

The released ones are in pretrained_models/registry.yaml; a user's own are in
<workspace>/pretrained_models/my_unit_models.yaml, in the same format.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from pipeline.config import load_config
from pipeline.errors import UserError, near
from pipeline.workspace import REPOSITORY, Workspace

REGISTRY = REPOSITORY / "pretrained_models" / "registry.yaml"
OWN = "my_unit_models.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # names become file names: no /, nothing hidden
# ASCII, as in a request; no user:password@, which error messages would show
_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F.:]+\])(:\d{1,5})?/[!-~]+")
_WHEEL = re.compile(r"\w+-[\w.]+-py3-none-\w+\.whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(unsafe_hash=True)  # omegaconf cannot read a frozen one
class WheelEntry:
    """A package on PyPI that holds a file. What the keys of the entries mean: registry.yaml."""

    file: str = MISSING
    sha256: str = MISSING
    member: str = MISSING


@dataclass
class FileEntry:
    """A file."""

    url: str | None = None
    path: str | None = None
    wheel: WheelEntry | None = None
    note: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass
class UnitModelEntry:
    """A unit model."""

    feature_type: str = MISSING
    checkpoint: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    clusters: int = MISSING
    kmeans: FileEntry | None = None
    lm: FileEntry | None = None


@dataclass
class Registry:
    """The whole table."""

    base_url: str | None = None
    checkpoints: dict[str, FileEntry] = field(default_factory=dict)
    unit_models: dict[str, UnitModelEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class PretrainedFile:
    """A file of a table: its local path, and where it comes from."""

    path: Path  # an LM: its folder
    url: str | None = None
    sha256: str | None = None  # of what the url or the wheel gives
    size: int | None = None
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
        """The files that it consists of."""
        if self.is_lm:
            return self.path / "checkpoint_best.pt", self.path / "dict.txt"
        return (self.path,)


@dataclass(frozen=True)
class UnitModel:
    """A unit model. What no table describes has neither files nor feature type."""

    name: str
    workspace: Workspace
    feature_type: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    clusters: int | None = None
    checkpoint: PretrainedFile | None = None
    kmeans: PretrainedFile | None = None
    lm: PretrainedFile | None = None
    shipped_first: bool = False

    @property
    def shipped(self) -> UnitModel:
        """The same unit model with the k-means and LM that ship with the repository, even if others
        were made in the workspace.
        """
        return replace(self, shipped_first=True)

    @property
    def is_described(self) -> bool:
        """Whether a table describes it; if not, its units may have been made elsewhere."""
        return self.feature_type is not None

    @property
    def ckpt_path(self) -> Path | None:
        """The speech model's checkpoint; None where the features need none."""
        return self.checkpoint.path if self.checkpoint else None

    @property
    def learned_kmeans(self) -> Path:
        """The path of a k-means that is learned or converted in the workspace."""
        return self.workspace.pretrained / f"{self.name}_km.npz"

    @property
    def km_path(self) -> Path:
        """The k-means to use: one learned or converted here comes before the released one."""
        listed = self.kmeans
        if listed is None:
            return self.learned_kmeans
        is_final = not listed.is_released or (listed.ships and self.shipped_first)
        return listed.path if is_final or not self.learned_kmeans.exists() else self.learned_kmeans

    @property
    def lm_folder(self) -> Path:
        """The unit LM's folder: checkpoint_best.pt and dict.txt. One that ships with the repository
        is used until another is trained here, or another k-means is used.
        """
        trained = self.workspace.lm(self.name)
        if self.lm is None:
            return trained
        if not self.lm.ships or self.shipped_first:
            return self.lm.path
        another_kmeans = self.km_path != (self.kmeans.path if self.kmeans else None)
        return trained if trained.exists() or another_kmeans else self.lm.path

    @property
    def files(self) -> dict[str, PretrainedFile]:
        """The listed files among ``checkpoint``, ``kmeans`` and ``lm``."""
        kinds = ("checkpoint", "kmeans", "lm")
        return {kind: file for kind in kinds if (file := getattr(self, kind)) is not None}


def find_unit_model(name: str, workspace: Workspace) -> UnitModel:
    """The unit model of that name, also one that no table describes.

    Raises ``UserError`` for a broken table.
    """
    return unit_models(workspace).get(name) or UnitModel(name, workspace)


def unit_model(name: str, workspace: Workspace, base_url: str | None = None) -> UnitModel:
    """The unit model of that name. Raises ``UserError`` with the known names for an unknown one."""
    known = unit_models(workspace, base_url)
    if name not in known:
        raise UserError(
            f"unit model {name}: unknown{near(name, known)}; there is {', '.join(known)}; "
            f"describe your own in {workspace.pretrained / OWN}"
        )
    return known[name]


def lm_folder(workspace: Workspace, name: str) -> Path:
    """The folder of that unit model's LM, also for one that no table describes."""
    return find_unit_model(name, workspace).lm_folder


def unit_models(workspace: Workspace, base_url: str | None = None) -> dict[str, UnitModel]:
    """Every unit model, released ones first. ``base_url`` is a mirror, used instead of the tables'.

    Raises ``UserError``, with table and entry, for anything that is not as registry.yaml says.
    """
    own_path = workspace.pretrained / OWN
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
    urls: dict[Path, str] = {}  # of two downloads to one path, the second would pass for the first
    for file in checkpoints.values():
        if file.url and urls.setdefault(file.path, file.url) != file.url:
            raise UserError(
                f"{own_path}: {file.url} and {urls[file.path]} would both be {file.path.name}; "
                "download one yourself and give its path:"
            )
    return models


@functools.cache
def _released() -> Registry:
    return load_config(Registry, REGISTRY)


@dataclass(frozen=True)
class _Reader:
    """Checks one table's entries and turns them into local paths."""

    table: Path
    workspace: Workspace
    base_url: str | None

    def check_name(self, name: str, taken: dict[str, object]) -> None:
        self._check(
            NAME.fullmatch(name), name, "a name is letters, digits, and _ . - after the first"
        )
        self._check(name not in taken, name, f"the name is taken by {REGISTRY}; choose another")

    def checkpoint(self, name: str, entry: FileEntry) -> PretrainedFile:
        """A checkpoint keeps the file name of its url: people have it under that name."""
        file_name = f"{name}.ort"
        if entry.url:
            file_name = re.split("[?#]", entry.url)[0].rsplit("/", 1)[-1]
            is_model = NAME.fullmatch(file_name) and file_name.endswith(".pt")
            what = f"url must end in a file name like model.pt, found {entry.url}"
            self._check(is_model, name, what)
        return self._file(name, entry, self.workspace.pretrained / file_name)

    def unit_model(
        self, name: str, entry: UnitModelEntry, checkpoints: dict[str, PretrainedFile]
    ) -> UnitModel:
        known = [None, *checkpoints]
        what = f"checkpoint {entry.checkpoint} unknown; there is {', '.join(checkpoints)}"
        self._check(entry.checkpoint in known, name, what)
        what = f"clusters must be positive, found {entry.clusters}"
        self._check(entry.clusters > 0, name, what)
        km_path = self.workspace.pretrained / f"{name}_km.bin"
        kmeans = self._file(f"{name}.kmeans", entry.kmeans, km_path)
        lm = self._file(f"{name}.lm", entry.lm, self.workspace.lm(name), is_lm=True)
        sound = entry.feature_type, entry.layer, entry.normalize, entry.clusters
        checkpoint = checkpoints.get(entry.checkpoint or "")
        return UnitModel(name, self.workspace, *sound, checkpoint, kmeans, lm)

    def _file(
        self, name: str, entry: FileEntry | None, local: Path, is_lm: bool = False
    ) -> PretrainedFile | None:
        if entry is None:
            return None
        sources = [entry.url, entry.path, entry.wheel]
        self._check(sources.count(None) == 2, name, "give either url or path or wheel")
        if entry.path is not None:
            hashed = entry.sha256 or entry.size
            self._check(not hashed, name, "sha256 and size belong to a url or a wheel")
            ships = self.table == REGISTRY
            root = REPOSITORY if ships else self.workspace.root
            path = root / Path(entry.path).expanduser()
            return PretrainedFile(path, is_lm=is_lm, note=entry.note, ships=ships)
        for digest in (entry.sha256, entry.wheel and entry.wheel.sha256):
            is_hash = digest is None or _SHA256.fullmatch(digest)
            self._check(is_hash, name, f"sha256 must be 64 digits 0-9a-f, found {digest}")
        url = entry.url
        if entry.wheel:
            what = f"a wheel is NAME-VERSION-py3-none-PLATFORM.whl, found {entry.wheel.file}"
            self._check(_WHEEL.fullmatch(entry.wheel.file), name, what)
            shared = Workspace(REPOSITORY).pretrained / local.name  # one copy serves all workspaces
            local = shared if shared.exists() and not local.exists() else local
        elif "://" not in url:
            what = f"{url} is relative; give base_url, or a whole address"
            self._check(self.base_url, name, what)
            url = f"{self.base_url.rstrip('/')}/{url}"
        self._check(url is None or _URL.fullmatch(url), name, f"expected http(s)://, found {url}")
        return PretrainedFile(local, url, entry.sha256, entry.size, is_lm, entry.wheel, entry.note)

    def _check(self, is_right: object, name: str, reason: str) -> None:
        if not is_right:
            raise UserError(f"{self.table}: {name}: {reason}")
