"""SUPERB's downstream model for utterances (Yang et al. 2021, arXiv 2105.01051, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.runs import progress_bar

CONFIG = "downstream.yaml"


class DownstreamModel(nn.Module):
    """Weighted sum of layers, projector, mean over time, linear classifier.

    SUPERB's toolkit s3prl (0.4.18) has this order: the softmax-weighted sum of ``Featurizer``, with
    equal weights at the start; the task's ``projector``; then ``UtteranceLevel``, mean pooling over
    the utterance's frames (without padding) and one linear layer. The model has no nonlinearity. So
    ``means.py`` takes the mean first, and the output and the gradient stay equal. The classifier
    has one group of outputs per slot (IC: action, object, location).
    """

    def __init__(self, layers: int, dim: int, slots: Sequence[int], projector_dim: int) -> None:
        super().__init__()
        # the softmax over one layer is always 1
        self.layer_weights = nn.Parameter(torch.zeros(layers), requires_grad=layers > 1)
        self.projector = nn.Linear(dim, projector_dim)
        self.classifier = nn.Linear(projector_dim, sum(slots))
        self._slots = list(slots)

    @property
    def trained_parameters(self) -> int:
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def forward(self, means: Tensor) -> tuple[Tensor, ...]:
        """Map the layers' means (B, L, D) to each slot's logits (B, labels)."""
        weights = self.layer_weights.softmax(dim=0)
        mixed = (means * weights[:, None]).sum(dim=1)  # (B, D); a third faster than einsum
        return self.classifier(self.projector(mixed)).split(self._slots, dim=1)

    def loss(self, means: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of (B, slots) labels, which count from each slot's first label:
        the mean over utterances, summed over slots.
        """
        return sum(
            F.cross_entropy(logits, labels[:, slot]) for slot, logits in enumerate(self(means))
        )

    @torch.inference_mode()
    def predict(self, means: Tensor, batch: int = 1024) -> Tensor:
        """Map (N, L, D) to the most probable label per slot, (N, slots)."""
        parts = [
            torch.stack([logits.argmax(dim=1) for logits in self(part)], dim=1)
            for part in means.split(batch)
        ]
        return torch.cat(parts)


@dataclass
class Settings:
    """The settings in config/downstream.yaml, which explains them."""

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
    labels: Tensor  # (rows, slots), counted from each slot's first label

    def to(self, device: torch.device) -> Split:
        return Split(*(tensor.to(device) for tensor in self))


def train(
    data: Split, valid: Split, slots: list[int], settings: Settings
) -> tuple[DownstreamModel, dict[int, float]]:
    """Return the best model on valid, and the valid accuracy in % by update.

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
    for update in progress_bar(range(1, settings.max_update + 1)):
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
    """Return the share of rows whose labels are all correct, in %."""
    correct = model.predict(split.means)[split.index] == split.labels
    return 100 * correct.all(dim=1).float().mean().item()
