"""The fairseq task: prompt rows of one data-bin, and the frozen LM that they were written for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING
from torch.nn import Module, Parameter

from pipeline.errors import UserError
from ulm_prompt.prompt_lm.data import RowDataset, UnitNoise
from ulm_prompt.prompt_lm.lm import UnitLM, load_dictionary, load_unit_lm
from ulm_prompt.prompt_lm.prompt import METHODS, initialise

# no postponed annotations here: fairseq reads the types of a dataclass's fields


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


@register_task("unit_prompt", dataclass=UnitPromptConfig)
class UnitPromptTask(FairseqTask):
    """Loads the LM once, checks that the data-bin was written with its dict, serves the splits."""

    def __init__(self, cfg: UnitPromptConfig, unit_lm: UnitLM) -> None:
        super().__init__(cfg)
        self.unit_lm = unit_lm

    @classmethod
    def setup_task(cls, cfg: UnitPromptConfig, **kwargs: Any) -> "UnitPromptTask":
        """Raises ``UserError`` when the LM is incomplete or the data-bin has another dict."""
        unit_lm = load_unit_lm(Path(cfg.lm), cfg.lm_dropout)
        written = Path(cfg.data) / "dict.txt"
        if not written.is_file():
            raise UserError(f"{cfg.data}: no data-bin; run ulm_prompt/fairseq_preprocess.py first")
        if load_dictionary(written.parent).symbols != unit_lm.dictionary.symbols:
            raise UserError(
                f"{written}: not the dict of {cfg.lm}; run ulm_prompt/fairseq_preprocess.py again"
            )
        return cls(cfg, unit_lm)

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        dictionary = self.unit_lm.dictionary
        dataset = RowDataset(Path(self.cfg.data) / split, dictionary, shuffle=split == "train")
        if self.cfg.max_tokens:
            self._check_lengths(dataset, split)
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
        """Leave out the rows that fit no batch, and say how many. Raises ``UserError`` when they
        are not to be, or are all.
        """
        most, sizes = self.cfg.max_tokens, dataset.sizes
        count = int((sizes > most).sum())
        if not count:
            return
        found = (
            f"{split}: {count:,} of {len(sizes):,} rows are longer than max_tokens={most:,} "
            f"(row {int(sizes.argmax()) + 1:,} is the longest, {int(sizes.max()):,} tokens)"
        )
        if not self.cfg.skip_long or count == len(sizes):
            raise UserError(
                f"{found}; leave them out with --set skip_long=true, or raise max_tokens: memory "
                "grows with the square of a row's length"
            )
        dataset.leave_out(longer_than=most)
        logger.info(f"too long: {found}; left out")

    def get_batch_iterator(
        self, dataset: RowDataset, *args: Any, num_shards: int = 1, shard_id: int = 0, **others: Any
    ) -> Any:
        """All ranks go through the same batches, and each takes its share of the rows of each: a
        batch is what the recipe says, on however many ranks.
        """
        dataset.rank, dataset.world = shard_id, num_shards
        return super().get_batch_iterator(dataset, *args, **others)

    def initialise_prompt(self, model: Any) -> None:
        """Give a new prompt its starting values, by the task's ``init``."""
        if "train" not in self.datasets:
            self.load_dataset("train")
        initialise(
            model, str(self.cfg.init), self.cfg.init_scale, self.datasets["train"], self.cfg.seed
        )

    @property
    def source_dictionary(self) -> Dictionary:
        return self.unit_lm.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.unit_lm.dictionary

    def max_positions(self) -> None:
        """None: no row is filtered by length."""

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What fairseq's early stopping counts and would forget at a restart."""
        from fairseq_cli.train import should_stop_early

        return {type(self).__name__: dict(vars(should_stop_early))}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of ``get_checkpoint_dict``."""
        from fairseq_cli.train import should_stop_early

        vars(should_stop_early).update(state)


# Adam in which a parameter may move at a rate of its own.


@register_optimizer("prompt_adam", dataclass=FairseqAdamConfig)
class PromptAdam(FairseqAdam):
    """fairseq's Adam; the scheduler's rate is multiplied by a parameter's ``lr_scale`` where it has
    one.
    """

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
