"""The fairseq task that trains a unit LM on blocks of consecutive utterances."""

# no postponed annotations here: fairseq reads the types of a dataclass's fields
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from ulm_prompt.prompt_lm.batches import LosslessDataset
from ulm_prompt.prompt_lm.data import open_rows
from ulm_prompt.prompt_lm.lm import load_dictionary, load_unit_lm

BREAK_MODES = ChoiceEnum(["none", "eos"])


@dataclass
class UnitLMConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "data-bin folder of unit text"})
    tokens_per_sample: int = field(default=3072, metadata={"help": "length of a block"})
    sample_break_mode: BREAK_MODES = field(
        default="none", metadata={"help": "none: blocks across utterances; eos: one utterance each"}
    )
    max_target_positions: int = II("task.tokens_per_sample")
    begin_from: str = field(default="", metadata={"help": "folder of an LM; empty: random weights"})


class BlockDataset(LosslessDataset):
    """The whole text, ``</s>`` after every utterance, cut into samples of at most ``length``
    tokens.

    ``break_mode``: ``none`` cuts every ``length`` tokens, ``eos`` after every utterance too.
    """

    def __init__(
        self, split: Path, dictionary: Dictionary, length: int, break_mode: str, shuffle: bool
    ) -> None:
        rows = open_rows(split, dictionary)
        self.text = np.concatenate([rows[index].numpy() for index in range(len(rows))])
        rows = np.asarray(rows.sizes) if break_mode == "eos" else np.array([len(self.text)])
        ends = rows.cumsum()
        cuts = [np.arange(end - size, end, length) for size, end in zip(rows, ends)]
        self.starts = np.concatenate(cuts)
        self.sizes = np.diff(self.starts, append=len(self.text))
        self.pad, self.eos = dictionary.pad(), dictionary.eos()
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, size = self.starts[index], self.sizes[index]
        before = self.text[start - 1] if start else self.eos
        return {
            "id": int(index),
            "source": np.concatenate([[before], self.text[start : start + size - 1]]),
            "target": self.text[start : start + size],
        }

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """``src_tokens`` and ``target``: (B, T), padded on the right. No samples, for a rank
        without a last batch: one row that counts for nothing (see RowDataset).
        """
        if not samples:
            row = {"id": 0, "source": [self.eos], "target": [self.pad]}
            return {**self.collater([row]), "nsentences": 0, "ntokens": 0}
        lengths = [len(sample["target"]) for sample in samples]
        padded = {}
        for key in ("source", "target"):
            tokens = np.full((len(samples), max(lengths)), self.pad, dtype=np.int64)
            for row, sample in zip(tokens, samples):
                row[: len(sample[key])] = sample[key]
            padded[key] = torch.from_numpy(tokens)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(lengths),
            "net_input": {"src_tokens": padded["source"], "src_lengths": torch.tensor(lengths)},
            "target": padded["target"],
        }

    def ordered_indices(self) -> np.ndarray:
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))


@register_task("unit_lm", dataclass=UnitLMConfig)
class UnitLMTask(FairseqTask):
    """Language modelling over units, without fairseq's compiled TokenBlockDataset."""

    def __init__(self, cfg: UnitLMConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary

    @classmethod
    def setup_task(cls, cfg: UnitLMConfig, **kwargs: Any) -> "UnitLMTask":
        return cls(cfg, load_dictionary(Path(cfg.data)))

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.begin_from:  # a run that goes on loads its own weights after this
            model.load_state_dict(load_unit_lm(Path(self.cfg.begin_from)).model.state_dict())
        return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        self.datasets[split] = BlockDataset(
            Path(self.cfg.data) / split,
            self.dictionary,
            self.cfg.tokens_per_sample,
            str(self.cfg.sample_break_mode),
            shuffle=split == "train",
        )

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary

    def max_positions(self) -> None:
        """None: blocks are cut to length, none is filtered."""
