"""Unit models by name: which speech checkpoint and layer, k-means and unit LM belong together, and
where each file is. The released ones are in pretrained_models/registry.yaml; a user's own are in
<workspace>/pretrained_models/my_unit_models.yaml, in the same format.
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
OWN = "my_unit_models.yaml"
LM_FILES = ("checkpoint_best.pt", "dict.txt")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # names become file names: no /, nothing hidden
# ASCII, as in a request; no user:password@, which error messages would show
_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F.:]+\])(:\d{1,5})?/[!-~]+")
_WHEEL = re.compile(r"\w+-[\w.]+-py3-none-\w+\.whl")


@dataclass(unsafe_hash=True)  # omegaconf cannot read a frozen one
class WheelEntry:
    """A package on PyPI that holds a file. What the keys of the entries mean: registry.yaml."""

    file: str = MISSING
    sha256: str = MISSING
    member: str = MISSING


@dataclass(unsafe_hash=True)
class FileEntry:
    """A file."""

    url: str | None = None
    path: Path | None = None
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


@dataclass(unsafe_hash=True)
class PretrainedFile(FileEntry):
    """An entry's file: ``path`` is where it is or goes (an LM: its folder), ``url`` is whole."""

    is_lm: bool = False
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
        return tuple(self.path / name for name in LM_FILES) if self.is_lm else (self.path,)


@dataclass(frozen=True)
class UnitModel:
    """A unit model. One that no table describes has neither files nor feature type: its units may
    have been made elsewhere.
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
        """The same with the k-means and LM that ship, even if the workspace has others."""
        return replace(self, shipped_first=True)

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
        """The unit LM's folder. One that ships is used until another is trained here, or another
        k-means is used.
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
    """The unit model of that name, also one that no table describes."""
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
    """The folder of its LM, also for one that no table describes."""
    return find_unit_model(name, workspace).lm_folder


def unit_models(workspace: Workspace, base_url: str | None = None) -> dict[str, UnitModel]:
    """Every unit model, released ones first. ``base_url`` is a mirror, used instead of the tables'.

    Raises ``UserError``, with table and entry, for anything that is not as registry.yaml says.
    """
    tables = {REGISTRY: _released()}
    if (own := workspace.pretrained / OWN).exists():
        tables[own] = asdict(load_config(Registry, own))
    checkpoints: dict[str, PretrainedFile] = {}
    models: dict[str, UnitModel] = {}
    for table, content in tables.items():
        place = table, workspace, base_url or content.get("base_url")
        for name, entry in content.get("checkpoints", {}).items():
            _check_name(table, name, checkpoints)
            file = checkpoints[name] = _file("checkpoint", name, entry, *place)
            urls = {each.url for each in checkpoints.values() if each.path == file.path} - {None}
            if len(urls) > 1:  # the second download would pass for the first
                raise UserError(f"{table}: {' and '.join(urls)} would both be {file.path.name}")
        for name, entry in content.get("unit_models", {}).items():
            _check_name(table, name, models)
            checkpoint, clusters = entry.get("checkpoint"), entry["clusters"]
            if checkpoint not in (None, *checkpoints):
                known = f"there is {', '.join(checkpoints)}"
                raise UserError(f"{table}: {name}: checkpoint {checkpoint} unknown; {known}")
            if clusters < 1:
                raise UserError(f"{table}: {name}: clusters must be positive, found {clusters}")
            models[name] = UnitModel(
                name,
                workspace,
                *(entry.get(key) for key in ("feature_type", "layer", "normalize", "clusters")),
                checkpoint and checkpoints[checkpoint],
                *(_file(kind, name, entry.get(kind), *place) for kind in ("kmeans", "lm")),
            )
    return models


@functools.cache
def _released() -> dict[str, Any]:
    """The released table; the tests check it against ``Registry``, which takes 0.1 s."""
    return load_yaml(REGISTRY)


def _check_name(table: Path, name: str, taken: dict[str, Any]) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"{table}: {name}: a name is letters, digits, and _ . - after the first")
    if name in taken:
        raise UserError(f"{table}: {name}: the name is taken by {REGISTRY}; choose another")


def _file(
    kind: str, name: str, entry: dict[str, Any] | None, table: Path, workspace: Workspace,
    base_url: str | None,
) -> PretrainedFile | None:  # fmt: skip
    """The file of an entry; ``kind`` is that of ``UnitModel.files``."""
    if entry is None:
        return None
    url, own, wheel = (entry.get(key) for key in ("url", "path", "wheel"))
    local = {"kmeans": f"{name}_km.bin", "lm": f"{name}_lm", "checkpoint": f"{name}.ort"}[kind]
    wrong = ""
    if [url, own, wheel].count(None) != 2:
        wrong = "give either url or path or wheel"
    elif wheel and not _WHEEL.fullmatch(wheel["file"]):
        wrong = f"a wheel is NAME-VERSION-py3-none-PLATFORM.whl, found {wheel['file']}"
    elif url:
        if "://" not in url and base_url:
            url = f"{base_url.rstrip('/')}/{url}"
        if not _URL.fullmatch(url):
            wrong = f"expected http(s)://, or a base_url before it, found {url}"
        if kind == "checkpoint":  # people have it under the name in its url
            local = re.split("[?#]", url)[0].rsplit("/", 1)[-1]
            if not (NAME.fullmatch(local) and local.endswith(".pt")):
                wrong = f"url must end in a file name like model.pt, found {url}"
    if wrong:
        raise UserError(f"{table}: {name}{'' if kind == 'checkpoint' else '.' + kind}: {wrong}")
    ships = table == REGISTRY and own is not None
    path, shared = workspace.pretrained / local, REPOSITORY / "pretrained_models" / local
    if own:
        path = (REPOSITORY if ships else workspace.root) / Path(own).expanduser()
    elif wheel and shared.exists() and not path.exists():  # one copy serves all workspaces
        path = shared
    known = {key: entry.get(key) for key in ("note", "sha256", "size")}
    return PretrainedFile(
        url, path, wheel and WheelEntry(**wheel), **known, is_lm=kind == "lm", ships=ships
    )
