"""The tables of unit models: which speech encoder, layer, k-means and unit LM belong together,
and the path of each file. pretrained_models/registry.yaml lists the released unit models. Users
list other ones in <workspace>/pretrained_models/my_unit_models.yaml, in the same format.
"""

from __future__ import annotations

import functools
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline.config import load_config, load_yaml
from pipeline.errors import UserError, near
from pipeline.workspace import REPOSITORY, Workspace

REGISTRY = REPOSITORY / "pretrained_models" / "registry.yaml"
USER_TABLE = "my_unit_models.yaml"
LM_FILES = ("checkpoint_best.pt", "dict.txt")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # names become file names: no /, nothing hidden
# ASCII, as in an HTTP request; no user:password@, which error messages would show
_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F.:]+\])(:\d{1,5})?/[!-~]+")
_WHEEL = re.compile(r"\w+-[\w.]+-py3-none-\w+\.whl")


@dataclass(unsafe_hash=True)  # not frozen: omegaconf cannot fill a frozen dataclass
class WheelEntry:
    """A wheel on PyPI that contains a file. registry.yaml explains the keys of all entries."""

    file: str = MISSING
    sha256: str = MISSING
    member: str = MISSING


@dataclass(unsafe_hash=True)
class FileEntry:
    """A file in a table: a download, a member of a wheel, or a path."""

    url: str | None = None
    path: Path | None = None
    wheel: WheelEntry | None = None
    note: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass
class UnitModelEntry:
    """A unit model in a table."""

    feature_type: str = MISSING
    checkpoint: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    clusters: int = MISSING
    kmeans: FileEntry | None = None
    lm: FileEntry | None = None


@dataclass
class Registry:
    """The content of a table."""

    base_url: str | None = None
    checkpoints: dict[str, FileEntry] = field(default_factory=dict)
    unit_models: dict[str, UnitModelEntry] = field(default_factory=dict)


@dataclass(unsafe_hash=True)
class PretrainedFile(FileEntry):
    """A file with the full ``url`` and the local ``path`` (of an LM: the path of the folder)."""

    is_lm: bool = False
    ships: bool = False  # with the repository

    @property
    def is_released(self) -> bool:
        """Whether the file can be downloaded or ships with the repository; else the user has it."""
        return self.ships or bool(self.url or self.wheel)

    @property
    def download(self) -> Path:
        """The path of the download. The download of an LM is an archive."""
        return self.path.with_name(f"{self.path.name}.tgz") if self.is_lm else self.path

    @property
    def parts(self) -> tuple[Path, ...]:
        """The path of each part: of an LM, the files in the folder."""
        return tuple(self.path / name for name in LM_FILES) if self.is_lm else (self.path,)


@dataclass(frozen=True)
class UnitModel:
    """A unit model. If no table describes it, it has neither files nor a feature type: the units
    may come from another program.
    """

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
        """This unit model with the k-means and LM that ship, even if the workspace has others."""
        return replace(self, shipped_first=True)

    @property
    def ckpt_path(self) -> Path | None:
        """The path of the speech encoder's checkpoint; None if the features need no checkpoint."""
        return self.checkpoint.path if self.checkpoint else None

    @property
    def learned_kmeans(self) -> Path:
        """The path for a k-means that is learned or converted in the workspace."""
        return self.workspace.pretrained / f"{self.name}_km.npz"

    @property
    def km_path(self) -> Path:
        """The k-means to use. A learned or converted k-means replaces the released k-means."""
        listed = self.kmeans
        if listed is None:
            return self.learned_kmeans
        is_final = not listed.is_released or (listed.ships and self.shipped_first)
        return listed.path if is_final or not self.learned_kmeans.exists() else self.learned_kmeans

    @property
    def lm_folder(self) -> Path:
        """The folder of the unit LM that stages read. An LM that ships is used until the workspace
        contains another LM (``Workspace.lm``) or another k-means.
        """
        trained = self.workspace.lm(self.name)
        if self.lm is None:
            return trained
        if not self.lm.ships or self.shipped_first:
            return self.lm.path
        has_other_kmeans = self.km_path != (self.kmeans.path if self.kmeans else None)
        return trained if trained.exists() or has_other_kmeans else self.lm.path

    @property
    def files(self) -> dict[str, PretrainedFile]:
        """The files in the table, by kind: ``checkpoint``, ``kmeans`` or ``lm``."""
        kinds = ("checkpoint", "kmeans", "lm")
        return {kind: file for kind in kinds if (file := getattr(self, kind)) is not None}


def find_unit_model(name: str, workspace: Workspace) -> UnitModel:
    """Return the unit model called ``name``, even if no table describes it."""
    return unit_models(workspace).get(name) or UnitModel(name, workspace)


def listed_unit_model(name: str, workspace: Workspace, base_url: str | None = None) -> UnitModel:
    """Return the unit model called ``name``. Raises ``UserError`` if no table describes it."""
    models = unit_models(workspace, base_url)
    if name not in models:
        raise UserError(
            f"unit model {name}: unknown{near(name, models)}; expected one of {', '.join(models)}; "
            f"describe your own in {workspace.pretrained / USER_TABLE}"
        )
    return models[name]


def lm_folder(workspace: Workspace, name: str) -> Path:
    """Return the ``UnitModel.lm_folder`` of the unit model called ``name``."""
    return find_unit_model(name, workspace).lm_folder


def unit_models(workspace: Workspace, base_url: str | None = None) -> dict[str, UnitModel]:
    """Return all unit models by name, released ones first. ``base_url``: a mirror, which replaces
    the ``base_url`` of each table.

    Raises ``UserError``, with table and entry, if an entry does not follow registry.yaml's rules.
    """
    tables = {REGISTRY: _released()}
    if (user_table := workspace.pretrained / USER_TABLE).exists():
        tables[user_table] = asdict(load_config(Registry, user_table))
    checkpoints: dict[str, PretrainedFile] = {}
    models: dict[str, UnitModel] = {}
    for table, content in tables.items():
        source = table, workspace, base_url or content.get("base_url")
        for name, entry in content.get("checkpoints", {}).items():
            _check_name(table, name, checkpoints)
            file = checkpoints[name] = _file("checkpoint", name, entry, *source)
            urls = {other.url for other in checkpoints.values() if other.path == file.path} - {None}
            if len(urls) > 1:  # the second download would be taken for the first
                raise UserError(f"{table}: {' and '.join(urls)} would both become {file.path.name}")
        for name, entry in content.get("unit_models", {}).items():
            _check_name(table, name, models)
            checkpoint, clusters = entry.get("checkpoint"), entry["clusters"]
            if checkpoint not in (None, *checkpoints):
                reason = f"unknown; expected one of {', '.join(checkpoints)}"
                raise UserError(f"{table}: {name}: checkpoint {checkpoint}: {reason}")
            if clusters < 1:
                raise UserError(f"{table}: {name}: clusters must be positive, found {clusters}")
            models[name] = UnitModel(
                name,
                workspace,
                *(entry.get(key) for key in ("feature_type", "layer", "normalize", "clusters")),
                checkpoint and checkpoints[checkpoint],
                *(_file(kind, name, entry.get(kind), *source) for kind in ("kmeans", "lm")),
            )
    return models


@functools.cache
def _released() -> dict[str, Any]:
    """Read the released table. The tests check it against ``Registry``; that check takes 0.1 s."""
    return load_yaml(REGISTRY)


def _check_name(table: Path, name: str, taken: dict[str, Any]) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"{table}: {name}: expected letters, digits and (not first) _ . -")
    if name in taken:
        raise UserError(f"{table}: {name}: {REGISTRY} has this name already; choose another name")


def _file(
    kind: str, name: str, entry: dict[str, Any] | None, table: Path, workspace: Workspace,
    base_url: str | None,
) -> PretrainedFile | None:  # fmt: skip
    """Return the file that ``entry`` describes. ``kind``: a key of ``UnitModel.files``."""
    if entry is None:
        return None
    url, listed_path, wheel = (entry.get(key) for key in ("url", "path", "wheel"))
    file_name = {"kmeans": f"{name}_km.bin", "lm": f"{name}_lm", "checkpoint": f"{name}.ort"}[kind]
    mistake = ""
    if [url, listed_path, wheel].count(None) != 2:
        mistake = "expected exactly one of url, path and wheel"
    elif wheel and not _WHEEL.fullmatch(wheel["file"]):
        mistake = f"expected wheel NAME-VERSION-py3-none-PLATFORM.whl, found {wheel['file']}"
    elif url:
        if "://" not in url and base_url:
            url = f"{base_url.rstrip('/')}/{url}"
        if not _URL.fullmatch(url):
            mistake = f"expected http(s)://..., or a base_url and a path below it, found {url}"
        if kind == "checkpoint":  # users know the file by the name in the url
            file_name = re.split("[?#]", url)[0].rsplit("/", 1)[-1]
            if not (NAME.fullmatch(file_name) and file_name.endswith(".pt")):
                mistake = f"url must end in a file name like model.pt, found {url}"
    if mistake:
        raise UserError(f"{table}: {name}{'' if kind == 'checkpoint' else '.' + kind}: {mistake}")
    ships = table == REGISTRY and listed_path is not None
    path, shared = workspace.pretrained / file_name, REPOSITORY / "pretrained_models" / file_name
    if listed_path:
        path = (REPOSITORY if ships else workspace.root) / Path(listed_path).expanduser()
    elif wheel and shared.exists() and not path.exists():  # all workspaces share one copy
        path = shared
    details = {key: entry.get(key) for key in ("note", "sha256", "size")}
    return PretrainedFile(
        url, path, wheel and WheelEntry(**wheel), **details, is_lm=kind == "lm", ships=ships
    )
