"""The fairseq tasks: prompt rows over a frozen LM, and text that a unit LM is trained on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.models import BaseFairseqModel
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.tasks import FairseqTask, register_task
from fairseq_cli.train import should_stop_early
from omegaconf import II, MISSING
from torch.nn import Module, Parameter

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import with_joint_names
from ulm_prompt.prompt_lm.data import LosslessDataset, RowDataset, UnitNoise, open_rows
from ulm_prompt.prompt_lm.lm import UnitLM, load_dictionary, load_unit_lm
from ulm_prompt.prompt_lm.prompt import METHODS, initialise

# no postponed annotations here: fairseq reads the types of a dataclass's fields

BREAK_MODES = ChoiceEnum(["none", "eos"])
logger = logging.getLogger(__name__)


@dataclass
class UnitPromptConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "data-bin folder of one task"})
    lm: str = field(default=MISSING, metadata={"help": "folder of the unit LM"})
    lm_dropout: float = field(default=0.0, metadata={"help": "dropout in the LM (--fine-tune)"})
    init: METHODS = field(default="normal", metadata={"help": "how the prompt starts"})
    init_scale: float = field(default=1.0, metadata={"help": "its standard deviation"})
    shots: int = field(default=0, metadata={"help": "train on so many rows a class; 0: all"})
    unit_noise: float = field(default=0.0, metadata={"help": "on the units of train rows"})
    max_tokens: int = II("dataset.max_tokens")
    skip_long: bool = field(default=False, metadata={"help": "leave out rows over --max-tokens"})
    seed: int = II("common.seed")
    label_units: str = II("model.label_units")  # those of several units follow the LM's symbols


@register_task("unit_prompt", dataclass=UnitPromptConfig)
class UnitPromptTask(FairseqTask):
    """The prompt's rows, and the LM, of whose dict the data-bin was written."""

    source_dictionary = target_dictionary = property(lambda self: self.dictionary)

    def __init__(self, cfg: UnitPromptConfig, unit_lm: UnitLM) -> None:
        super().__init__(cfg)
        self.unit_lm = unit_lm
        self.dictionary = with_joint_names(unit_lm.dictionary, cfg.label_units.split())

    @classmethod
    def setup_task(cls, cfg: UnitPromptConfig, **kwargs: Any) -> "UnitPromptTask":
        """Raises ``UserError`` when the LM is incomplete."""
        return cls(cfg, load_unit_lm(Path(cfg.lm), cfg.lm_dropout))

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        """The model of ``cfg``; its prompt has the starting values of ``init``."""
        model = super().build_model(cfg, from_checkpoint)
        if model.prompt is not None:
            self.load_dataset("train")
            rows, method = self.datasets["train"], str(self.cfg.init)
            initialise(model, method, self.cfg.init_scale, rows, self.cfg.seed)
            model.lm.to(getattr(torch, str(cfg.lm_dtype)))  # only now: projections in float32
        return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Open a split, once. Raises ``UserError`` for one that is missing or broken."""
        if split in self.datasets:
            return
        dictionary = self.dictionary
        dataset = RowDataset(Path(self.cfg.data) / split, dictionary, shuffle=split == "train")
        if self.cfg.max_tokens:
            self._check_lengths(dataset, split)
        positions = self.unit_lm.untouched.max_positions()
        if facts := _longer(dataset.sizes, positions, f"the LM's tokens_per_sample={positions:,}"):
            logger.info(
                f"too long: {split}: {facts}; they are used, but the LM has learned no such "
                "positions: cut those utterances, or train an LM with a larger tokens_per_sample"
            )
        if split == "train" and self.cfg.shots:
            whole = len(dataset)
            dataset.draw(self.cfg.shots, self.cfg.seed)
            logger.info(
                f"few-shot: {len(dataset):,} of {whole:,} rows, {self.cfg.shots} of each class"
            )
        if split == "train" and self.cfg.unit_noise:
            units = np.array([i for i, s in enumerate(dictionary.symbols) if s.isdecimal()])
            dataset.noise = UnitNoise(self.cfg.unit_noise, units, self.cfg.seed)
        self.datasets[split] = dataset

    def _check_lengths(self, dataset: RowDataset, split: str) -> None:
        """Leave out the rows that fit no batch, and say how many. Raises ``UserError`` unless
        ``skip_long`` asks for that, or if no row is left.
        """
        most, sizes = self.cfg.max_tokens, dataset.sizes
        facts = _longer(sizes, most, f"max_tokens={most:,}")
        if not facts:
            return
        if not self.cfg.skip_long or sizes.min() > most:
            raise UserError(
                f"{split}: {facts}; leave them out with --set skip_long=true, or raise "
                "max_tokens: memory grows with the square of a row's length"
            )
        dataset.leave_out(longer_than=most)
        logger.info(f"too long: {split}: {facts}; left out")

    def get_batch_iterator(
        self, dataset: RowDataset, *args: Any, num_shards: int = 1, shard_id: int = 0, **others: Any
    ) -> Any:
        """All ranks go through the same batches, and each takes its share of the rows of each: a
        batch is what the recipe says, on however many ranks.
        """
        dataset.rank, dataset.world = shard_id, num_shards
        return super().get_batch_iterator(dataset, *args, **others)

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What fairseq's early stopping counts and would forget at a restart."""
        return {type(self).__name__: dict(vars(should_stop_early))}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of ``get_checkpoint_dict``."""
        vars(should_stop_early).update(state)


def _longer(sizes: np.ndarray, most: int, limit: str) -> str:
    """How many rows have more than ``most`` tokens, and which is the longest; "" for none."""
    count = int((sizes > most).sum())
    if not count:
        return ""
    return (
        f"{count:,} of {len(sizes):,} rows are longer than {limit} "
        f"(row {int(sizes.argmax()) + 1:,} is the longest, {int(sizes.max()):,} tokens)"
    )


@register_optimizer("prompt_adam", dataclass=FairseqAdamConfig)
class PromptAdam(FairseqAdam):
    """fairseq's Adam; a parameter's ``lr_scale``, if it has one, multiplies its learning rate."""

    def __init__(self, cfg: FairseqAdamConfig, params: Sequence[Parameter]) -> None:
        scales: dict[float, list[Parameter]] = {}
        for parameter in params:
            scales.setdefault(getattr(parameter, "lr_scale", 1.0), []).append(parameter)
        groups = [{"params": group, "lr_scale": scale} for scale, group in scales.items()]
        super().__init__(cfg, groups)

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def all_reduce_grads(self, module: Module) -> None:
        """As fairseq does, with a buffer for what trains; it would make one for the frozen LM."""
        wrapped = getattr(module, "module", None)
        if isinstance(wrapped, LegacyDistributedDataParallel):
            trained = sum(parameter.numel() for parameter in self.params)
            wrapped.buffer_size = min(wrapped.buffer_size, trained)
        super().all_reduce_grads(module)


@dataclass
class UnitLMConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "data-bin folder of unit text"})
    tokens_per_sample: int = field(default=3072, metadata={"help": "length of a block"})
    sample_break_mode: BREAK_MODES = field(
        default="none", metadata={"help": "none: blocks across utterances; eos: one utterance each"}
    )
    max_target_positions: int = II("task.tokens_per_sample")
    begin_from: str = field(default="", metadata={"help": "folder of an LM; empty: random weights"})


@register_task("unit_lm", dataclass=UnitLMConfig)
class UnitLMTask(FairseqTask):
    """Language modelling over units, without fairseq's compiled TokenBlockDataset."""

    source_dictionary = target_dictionary = property(lambda self: self.dictionary)

    def __init__(self, cfg: UnitLMConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary

    @classmethod
    def setup_task(cls, cfg: UnitLMConfig, **kwargs: Any) -> "UnitLMTask":
        return cls(cfg, load_dictionary(Path(cfg.data)))

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.begin_from:  # a run that resumes loads its own weights after this
            begin_from = load_unit_lm(Path(self.cfg.begin_from)).untouched
            model.load_state_dict(begin_from.state_dict())
        return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        self.datasets[split] = BlockDataset(
            Path(self.cfg.data) / split,
            self.dictionary,
            self.cfg.tokens_per_sample,
            str(self.cfg.sample_break_mode),
            shuffle=split == "train",
        )


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
        sizes = np.asarray(rows.sizes) if break_mode == "eos" else np.array([len(self.text)])
        cuts = [np.arange(end - size, end, length) for size, end in zip(sizes, sizes.cumsum())]
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
            rows = [torch.as_tensor(sample[key]) for sample in samples]
            padded[key] = torch.nn.utils.rnn.pad_sequence(rows, True, self.pad)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(lengths),
            "net_input": {"src_tokens": padded["source"], "src_lengths": torch.tensor(lengths)},
            "target": padded["target"],
        }

    def ordered_indices(self) -> np.ndarray:
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
