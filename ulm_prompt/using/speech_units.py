"""Speech to units as a workspace's unit model has it: which features, which k-means."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import load_yaml
from pipeline.errors import UserError
from pipeline.files import read_json, sha256
from pipeline.unit_models import UnitModel
from pipeline.workspace import REPOSITORY
from preprocess.actions.config import Config, FairseqConfig, fill_in
from ulm_prompt.using.prompt_record import UnitSettings

if TYPE_CHECKING:
    from torch import Tensor


def kmeans_fingerprint(centres: np.ndarray) -> str:
    """SHA-256 over the centres as float64, 16 hexadecimal digits: the same for a released file and
    its conversion.
    """
    digest = hashlib.sha256(repr(centres.shape).encode())
    digest.update(np.ascontiguousarray(centres, dtype="<f8").data)
    return digest.hexdigest()[:16]


def _read_saved(path: Path) -> Config:
    """The config that a downstream was quantised with, less its task's own keys."""
    config = load_yaml(path)
    schema = OmegaConf.structured(Config)
    known = {name: value for name, value in config.items() if name in ("fairseqrc", "taskrc")}
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, known, {"datarc": {"root_path": ""}}))
    except (OmegaConfBaseException, ValueError) as error:
        reason = ascii(str(error).split("\n")[0][:200])[1:-1]
        raise UserError(
            f"{path}: {reason}; run preprocess/runner.py --action postprocess again"
        ) from None


class UnitFiles:
    """What a unit model's units are made with here. Nothing is loaded yet."""

    def __init__(self, unit_model: UnitModel, downstream: str | None) -> None:
        """The settings are those that ``downstream`` was quantised with, otherwise the registry's.

        Raises ``UserError`` for a unit model that neither tells of.
        """
        workspace = unit_model.workspace
        self.unit_model, self._root = unit_model.name, workspace.root
        self.settings, self.merge = FairseqConfig(), True
        self._quantized: Path | None = None
        if downstream is not None:
            folder = workspace.downstream_data(downstream) / unit_model.name
            self._quantized = folder / "quantized" / "provenance.json"
            if (folder / "config.yaml").is_file():
                saved = _read_saved(folder / "config.yaml")
                self.settings, self.merge = saved.fairseqrc, saved.taskrc.merge
        fill_in(self.settings, unit_model.name, unit_model)
        self.km_path = unit_model.km_path
        if self.settings.km_path is not None:
            self.km_path = workspace.root / Path(self.settings.km_path).expanduser()
        self.ckpt_path = None
        if self.settings.ckpt_path is not None:
            self.ckpt_path = workspace.root / Path(self.settings.ckpt_path).expanduser()

    def check_here(self) -> None:
        """Raises ``UserError`` for a file that is missing."""
        there = "" if self._root == REPOSITORY else f" --workspace {self._root}"
        for path, what in ((self.km_path, "k-means"), (self.ckpt_path, "speech model")):
            if path is not None and not path.is_file():
                raise UserError(
                    f"{path}: {what} of {self.unit_model} not found; get it by "
                    f"python pretrained_models/download.py {self.unit_model}{there}, or put it "
                    "there"
                )

    def check_fresh(self) -> None:
        """Raises ``UserError`` unless the k-means that the downstream was quantised with is here;
        nothing where it was quantised elsewhere.
        """
        if self._quantized is None or not self._quantized.is_file():
            return
        plan = read_json(self._quantized, "preprocess/runner.py --action quantized").get("plan")
        wanted = plan.get("kmeans") if isinstance(plan, dict) else None
        if wanted is None:
            return
        here = self.km_path.is_file()
        if not here or sha256(self.km_path) != wanted:
            found = (
                "not the k-means" if here else f"k-means of {self.unit_model} not found, the one"
            )
            raise UserError(
                f"{self.km_path}: {found} that {self._quantized.parent} was made with; "
                "restore it, or quantise and train again"
            )

    def record(self) -> UnitSettings:
        """The settings, and the k-means by its fingerprint where it is here."""
        from preprocess.speech2unit.kmeans import load_kmeans

        kmeans = None
        if self.km_path.is_file():
            kmeans = kmeans_fingerprint(load_kmeans(self.km_path))
        settings = self.settings
        return UnitSettings(
            settings.feature_type, settings.layer, settings.normalize, self.merge, kmeans
        )


class SpeechToUnits:
    """Waveforms to units, the models loaded."""

    def __init__(self, files: UnitFiles) -> None:
        """Raises ``UserError`` for a model that is broken, or that does not fit its k-means."""
        from preprocess.speech2unit.features import Source, best_device, feature_reader
        from preprocess.speech2unit.kmeans import KMeans, load_kmeans

        settings = files.settings
        device, _ = best_device()
        centres = load_kmeans(files.km_path)
        source = Source(files.ckpt_path, settings.layer, settings.normalize, device)
        self.reader = feature_reader(settings.feature_type, source)
        if centres.shape[1] != self.reader.dim:
            raise UserError(
                f"{files.km_path}: its centres have {centres.shape[1]} numbers, a feature frame "
                f"has {self.reader.dim}; k-means and features do not belong together"
            )
        self._kmeans = KMeans(centres, device)
        self.has_model = files.ckpt_path is not None
        self._merge = files.merge

    def __call__(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Map (T_i,) float32 at 16 kHz to units as text, runs merged where training had them so."""
        import torch

        from preprocess.speech2unit.features import merge_runs, written

        finish = merge_runs if self._merge else str
        with torch.inference_mode():
            return [finish(written(self._kmeans(each))) for each in self.reader(waveforms)]
