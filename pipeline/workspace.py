"""The paths of all files under ``--workspace`` (default: the repository)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]


def name_part(word: str) -> str:
    """Return ``word``, a date or name that becomes part of a path: a ``type`` for argparse.

    Raises ``UserError`` if ``word`` cannot be part of a file name or would lead to another folder.
    """
    is_name = word.strip() and word.isprintable() and "/" not in word and word[0] != "."
    if not is_name or len(word.encode()) > 100:
        raise UserError(
            f"{word[:120]!r}: becomes part of a file name; expected 1 to 100 letters, digits or "
            "signs, without / and without a . at the beginning"
        )
    return word


@dataclass(frozen=True)
class Workspace:
    """The folder tree of one working copy. Every method returns a path; none creates anything."""

    root: Path

    def downstream_data(self, downstream: str) -> Path:
        """The folder of the manifests and of one folder of quantised splits per unit model."""
        return self.root / "preprocess" / downstream / "data"

    def rows(self, downstream: str, unit_model: str, split: str) -> Path:
        """The preprocessed split, with lines of ``file|units|labels``."""
        return self.downstream_data(downstream) / unit_model / split

    def datasets(self, unit_model: str) -> Path:
        """The folder of labelspace.json, verbal.json, <downstream>/{data_prompt,data_freq}/."""
        return self.root / "ulm_prompt" / "datasets" / unit_model

    def prompt_text(self, unit_model: str, downstream: str, kind: str, split: str) -> Path:
        """Lines of ``units <s> labels``. ``kind``: data_prompt or data_<method> (verbalizer.py)."""
        return self.datasets(unit_model) / downstream / kind / f"{split}.txt"

    def data_bin(self, unit_model: str, task: str) -> Path:
        """The folder of fairseq's binaries for one task."""
        return self.root / "ulm_prompt" / "data-bins" / unit_model / f"{task}-data-bin"

    @property
    def pretrained(self) -> Path:
        """The folder of speech encoders, k-means and unit LMs."""
        return self.root / "pretrained_models"

    def lm(self, unit_model: str) -> Path:
        """The folder of a downloaded or trained LM. Stages read ``UnitModel.lm_folder`` instead."""
        return self.pretrained / f"{unit_model}_lm"

    def checkpoints(self, task: str, unit_model: str, date: str) -> Path:
        return self.root / "checkpoints" / f"{task}_{unit_model}_checkpoints_{date}"

    def logs(self, task: str, unit_model: str, date: str) -> Path:
        return self.root / "logs" / f"{task}_{unit_model}_log_{date}"

    def samples(self, task: str, unit_model: str, model_date: str, sample_date: str) -> Path:
        """The published output of decoding: id -> file_name, src, label, predict."""
        name = f"samples_{task}_{unit_model}_{model_date}.json"
        return self.root / "samples" / f"samples_{sample_date}" / name
