"""Training the downstream model on the layers' means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import MISSING
from torch import Tensor
from tqdm import tqdm

from baselines.downstream_model import DownstreamModel
from pipeline.config import load_config
from pipeline.errors import UserError

CONFIG = Path(__file__).resolve().parent / "config" / "downstream.yaml"


@dataclass
class Settings:
    """config/downstream.yaml, which says what each means."""

    projector_dim: int = MISSING
    lr: float = MISSING
    batch_size: int = MISSING
    max_update: int = MISSING
    clip_norm: float = MISSING
    validate_every: int = MISSING
    seed: int = MISSING


class Split(NamedTuple):
    """``means[index[row]]`` has the labels ``labels[row]``."""

    means: Tensor  # (files, L, D)
    index: Tensor  # (rows,)
    labels: Tensor  # (rows, slots), counted from each slot's first

    def to(self, device: torch.device) -> Split:
        """The same on the device."""
        return Split(*(tensor.to(device) for tensor in self))


def load_settings(overrides: list[str]) -> Settings:
    """Read the config. Raises ``UserError`` for an unknown key or a value that cannot be."""
    settings = load_config(Settings, CONFIG, overrides)
    for key in ("projector_dim", "batch_size", "max_update", "validate_every"):
        if getattr(settings, key) < 1:
            raise UserError(f"--set {key}={getattr(settings, key)}: expected at least 1")
    if settings.lr <= 0 or settings.clip_norm < 0:
        raise UserError("--set lr and clip_norm: expected lr above 0 and clip_norm of 0 or more")
    return settings


def train(
    data: Split, valid: Split, slots: list[int], settings: Settings
) -> tuple[DownstreamModel, dict[int, float]]:
    """Return the model that was best on valid, and the valid accuracy in % by update.

    The same seed on the same kind of machine gives the same model.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = DownstreamModel(*data.means.shape[1:], slots, settings.projector_dim)
    device = data.means.device
    model.to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, settings.lr, fused=True)
    curve: dict[int, float] = {}
    best: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for update in tqdm(range(1, settings.max_update + 1), disable=None, mininterval=1):
        if not order:
            rows = torch.randperm(len(data.index), generator=generator).to(device)
            order = list(rows.split(settings.batch_size))
        rows = order.pop()
        means = data.means.index_select(0, data.index[rows])  # (B, L, D)
        loss = model.loss(means, data.labels[rows])
        adam.zero_grad()
        loss.backward()
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
        adam.step()
        if update % settings.validate_every == 0 or update == settings.max_update:
            score = accuracy(model, valid)
            if score > max(curve.values(), default=-1):
                best = {name: value.clone() for name, value in model.state_dict().items()}
            curve[update] = score
    model.load_state_dict(best)
    return model, curve


def accuracy(model: DownstreamModel, split: Split) -> float:
    """How many rows have all their labels right, in %."""
    right = model.predict(split.means)[split.index] == split.labels
    return 100 * right.all(dim=1).float().mean().item()
