"""The fairseq tasks: a prompt is trained on a frozen LM, and a unit LM is trained on text."""

import logging
import math
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
from torch import Tensor
from torch.nn import Module, Parameter

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import with_joint_names
from ulm_prompt.prompt_lm.data import BlockDataset, RowDataset
from ulm_prompt.prompt_lm.lm import UnitLM, load_dictionary, load_unit_lm
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import project

# no postponed annotations here: fairseq reads the types of dataclass fields

BREAK_MODES = ChoiceEnum(["none", "eos"])
INITS = ChoiceEnum(["normal", "tokens", "quiet"])
SAMPLE_ROWS = 64  # training rows that initialise a prompt
QUIET_LOGITS = 4.0  # how far "quiet" lowers the mean attention logit of a prompt position
QUIET_VALUES = 0.3  # share of the distance from the mean value that a prompt value keeps
logger = logging.getLogger(__name__)


@dataclass
class UnitPromptConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "data-bin folder of one task"})
    lm: str = field(default=MISSING, metadata={"help": "folder of the unit LM"})
    lm_dropout: float = field(default=0.0, metadata={"help": "dropout in the LM (--fine-tune)"})
    init: INITS = field(default="normal", metadata={"help": "initial values of the prompt"})
    init_scale: float = field(default=1.0, metadata={"help": "standard deviation (init=normal)"})
    shots: int = field(default=0, metadata={"help": "train rows per class (0: all)"})
    unit_noise: float = field(default=0.0, metadata={"help": "share of train units to replace"})
    max_tokens: int = II("dataset.max_tokens")
    skip_long: bool = field(default=False, metadata={"help": "skip rows over max_tokens"})
    seed: int = II("common.seed")
    label_units: str = II("model.label_units")  # joint names become symbols after the LM's symbols


class _Task(FairseqTask):
    source_dictionary = target_dictionary = property(lambda self: self.dictionary)

    def __init__(self, cfg: FairseqDataclass, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary


@register_task("unit_prompt", dataclass=UnitPromptConfig)
class UnitPromptTask(_Task):
    """Trains a prompt. The data-bin was written with the dict of the LM."""

    unit_lm: UnitLM

    @classmethod
    def setup_task(cls, cfg: UnitPromptConfig, **kwargs: Any) -> "UnitPromptTask":
        unit_lm = load_unit_lm(Path(cfg.lm), cfg.lm_dropout)
        task = cls(cfg, with_joint_names(unit_lm.dictionary, cfg.label_units.split()))
        task.unit_lm = unit_lm
        return task

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the model of ``cfg``, and set the initial values of its prompt."""
        model = super().build_model(cfg, from_checkpoint)
        if model.prompt is not None:
            self.load_dataset("train")
            task_cfg, rows = self.cfg, self.datasets["train"]
            initialise(model, str(task_cfg.init), task_cfg.init_scale, rows, task_cfg.seed)
            model.lm.to(getattr(torch, str(cfg.lm_dtype)))  # last: projections need float32
        return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Open a split, once. Raises ``UserError`` if the split is missing or damaged, or if a row
        is too long for a batch and ``skip_long`` is not set.
        """
        if split in self.datasets:
            return
        cfg, dictionary = self.cfg, self.dictionary
        dataset = RowDataset(Path(cfg.data) / split, dictionary, shuffle=split == "train")
        if long_rows := _long_rows(dataset.sizes, cfg.max_tokens, "max_tokens="):
            if not cfg.skip_long or dataset.sizes.min() > cfg.max_tokens:
                fits = dataset.sizes.min() <= cfg.max_tokens  # at least one row
                skip = "leave them out with --set skip_long=true, or " if fits else ""
                raise UserError(
                    f"{split}: {long_rows}; {skip}raise max_tokens: memory grows with the square "
                    "of a row's length"
                )
            dataset.select(np.flatnonzero(dataset.sizes <= cfg.max_tokens))
            logger.info(f"too long: {split}: {long_rows}; left out")
        positions = self.unit_lm.untouched.max_positions()
        if long_rows := _long_rows(dataset.sizes, positions, "the LM's tokens_per_sample="):
            logger.info(
                f"too long: {split}: {long_rows}; they are used, but the LM has not learned these "
                "positions: cut the utterances, or train an LM with a larger tokens_per_sample"
            )
        if split == "train" and cfg.shots:
            total = len(dataset)
            dataset.select_shots(cfg.shots, cfg.seed)
            logger.info(f"few-shot: {len(dataset):,} of {total:,} rows, {cfg.shots} of each class")
        if split == "train" and cfg.unit_noise:
            units = np.array([i for i, s in enumerate(dictionary.symbols) if s.isdecimal()])
            dataset.noise = cfg.unit_noise, units, cfg.seed
        self.datasets[split] = dataset

    def get_batch_iterator(
        self, dataset: RowDataset, *args: Any, num_shards: int = 1, shard_id: int = 0, **kwargs: Any
    ) -> Any:
        """Give each rank a share of every batch, so that the recipe's batch size is the total."""
        dataset.rank, dataset.world = shard_id, num_shards
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """Return the counters of fairseq's early stopping, which a restart would lose."""
        return {type(self).__name__: dict(vars(should_stop_early))}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters of ``get_checkpoint_dict``."""
        vars(should_stop_early).update(state)


def _long_rows(sizes: np.ndarray, limit: int | None, name: str) -> str:
    """Describe the rows with more than ``limit`` tokens, in words. Returns "" if there are none."""
    if not limit or not (count := int((sizes > limit).sum())):
        return ""
    return (
        f"{count:,} of {len(sizes):,} rows are longer than {name}{limit:,} "
        f"(row {int(sizes.argmax()) + 1:,} is the longest, {int(sizes.max()):,} tokens)"
    )


@torch.no_grad()
def initialise(
    model: PromptLanguageModel, method: str, scale: float, rows: RowDataset, seed: int
) -> None:
    """Set the initial vectors of the prompt in place.

    ``normal``: N(0, scale^2), as published with scale 1. ``tokens``: the normalised inputs of the
    layer's attention at random positions, different ones for keys and values, of random training
    rows after ``unit_noise``; and the LM's ``<s>``. ``quiet``: like ``tokens``, but after the
    projections, with keys that get little attention and values near the mean. So training starts
    from a nearly unchanged LM. ``quiet`` raises ``UserError`` without ``projected``.
    """
    prompt, decoder = model.prompt, model.lm.decoder
    if method == "quiet" and not prompt.projected:
        raise UserError("init=quiet: expected space=projected")
    generator = torch.Generator().manual_seed(seed)
    for parameter in prompt.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    if method == "normal":
        if prompt.projected:
            projected = project(prompt.keys, prompt.values, decoder.layers)
            prompt.keys[:], prompt.values[:] = map(torch.stack, projected)
        return
    chosen = torch.randperm(len(rows), generator=generator)[:SAMPLE_ROWS].tolist()
    tokens = rows.collater([rows[index] for index in chosen])["net_input"]["tokens"]  # (B, T)
    real = tokens != rows.pad
    prompt.sep.copy_(decoder.embed_tokens.weight[:1])
    x = model.embed(tokens, model.position_vectors(tokens.shape[1]))  # (B, T, D)
    mask = model.causal_mask(tokens.shape[1])[:, prompt.length :]  # (T, T): without the prompt

    def draw(vectors: Tensor) -> Tensor:  # (N, D) -> (P, D)
        return vectors[torch.randint(len(vectors), (prompt.length,), generator=generator)]

    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        inputs = layer.self_attn_layer_norm(x)[real]  # (N, D)
        keys = values = inputs
        if prompt.projected:
            keys, values = attention.k_proj(inputs), attention.v_proj(inputs)
        prompt.keys[index], prompt.values[index] = draw(keys), draw(values)
        if method == "quiet":
            query = attention.q_proj(inputs).mean(0).view(layer.nh, -1)  # (H, D/H)
            key_step = query * math.sqrt(query.shape[1]) / query.square().sum(1, keepdim=True)
            prompt.keys[index] -= QUIET_LOGITS * key_step.flatten()  # a step: mean logits + 1
            prompt.values[index] = values.mean(0).lerp(prompt.values[index], QUIET_VALUES)
        x = model.block(layer, x, None, mask)


@register_optimizer("prompt_adam", dataclass=FairseqAdamConfig)
class PromptAdam(FairseqAdam):
    """fairseq's Adam, which multiplies a parameter's learning rate by its ``lr_scale``, if any."""

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
        """Reduce gradients like fairseq, but with a buffer that has no room for the frozen LM."""
        wrapped = getattr(module, "module", None)
        if isinstance(wrapped, LegacyDistributedDataParallel):
            trained = sum(parameter.numel() for parameter in self.params)
            wrapped.buffer_size = min(wrapped.buffer_size, trained)
        super().all_reduce_grads(module)


@dataclass
class UnitLMConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "data-bin folder of unit text"})
    tokens_per_sample: int = field(default=3072, metadata={"help": "maximum tokens per block"})
    sample_break_mode: BREAK_MODES = field(default="none", metadata={"help": "eos: per utterance"})
    max_target_positions: int = II("task.tokens_per_sample")
    begin_from: str = field(default="", metadata={"help": "folder of an LM (empty: random start)"})


@register_task("unit_lm", dataclass=UnitLMConfig)
class UnitLMTask(_Task):
    """Trains a unit LM on text, without fairseq's compiled TokenBlockDataset."""

    @classmethod
    def setup_task(cls, cfg: UnitLMConfig, **kwargs: Any) -> "UnitLMTask":
        return cls(cfg, load_dictionary(Path(cfg.data)))

    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> BaseFairseqModel:
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.begin_from:  # a run that resumes loads its own weights later
            begin_from = load_unit_lm(Path(self.cfg.begin_from)).untouched
            model.load_state_dict(begin_from.state_dict())
        return model

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        by_utterance = str(self.cfg.sample_break_mode) == "eos"
        length, path = self.cfg.tokens_per_sample, Path(self.cfg.data) / split
        self.datasets[split] = BlockDataset(
            path, self.dictionary, length, by_utterance, shuffle=split == "train"
        )
