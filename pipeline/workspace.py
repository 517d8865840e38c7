"""Where everything is under ``--workspace`` (default: the repository)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]


def name_part(word: str) -> str:
    """``word``, a date or name that becomes part of a path: argparse's ``type`` of such flags.

    Raises ``UserError`` for what no file name holds, and what would lead to another folder.
    """
    is_name = word.strip() and word.isprintable() and "/" not in word and word[0] != "."
    if not is_name or len(word.encode()) > 100:
        raise UserError(
            f"{word[:120]!r}: becomes part of a file's name; expected 1 to 100 letters, digits or "
            "signs, no / and no . at the beginning"
        )
    return word


@dataclass(frozen=True)
class Workspace:
    """The folder tree of one working copy. Every method returns a path; none creates anything."""

    root: Path

    def downstream_data(self, downstream: str) -> Path:
        """Manifests, and one folder of quantised splits per unit model."""
        return self.root / "preprocess" / downstream / "data"

    def rows(self, downstream: str, unit_model: str, split: str) -> Path:
        """The split that preprocessing leaves: ``file|units|labels``."""
        return self.downstream_data(downstream) / unit_model / split

    def datasets(self, unit_model: str) -> Path:
        """labelspace.json, verbal.json and, per downstream, data_prompt/ and data_freq/."""
        return self.root / "ulm_prompt" / "datasets" / unit_model

    def prompt_text(self, unit_model: str, downstream: str, kind: str, split: str) -> Path:
        """``units <s> labels`` a line; ``kind``: data_prompt or data_<method> of verbalizer.py."""
        return self.datasets(unit_model) / downstream / kind / f"{split}.txt"

    def data_bin(self, unit_model: str, task: str) -> Path:
        """fairseq's binaries of one task."""
        return self.root / "ulm_prompt" / "data-bins" / unit_model / f"{task}-data-bin"

    @property
    def pretrained(self) -> Path:
        """Speech models, k-means and unit LMs."""
        return self.root / "pretrained_models"

    def lm(self, unit_model: str) -> Path:
        """The unit LM: checkpoint_best.pt and dict.txt, as the released archives hold them."""
        return self.pretrained / f"{unit_model}_lm"

    def checkpoints(self, task: str, unit_model: str, date: str) -> Path:
        return self.root / "checkpoints" / f"{task}_{unit_model}_checkpoints_{date}"

    def logs(self, task: str, unit_model: str, date: str) -> Path:
        return self.root / "logs" / f"{task}_{unit_model}_log_{date}"

    def samples(self, task: str, unit_model: str, model_date: str, sample_date: str) -> Path:
        """The published output of decoding: id -> file_name, src, label, predict."""
        name = f"samples_{task}_{unit_model}_{model_date}.json"
        return self.root / "samples" / f"samples_{sample_date}" / name
