"""SUPERB's downstream model for utterances (Yang et al. 2021, arXiv 2105.01051, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DownstreamModel(nn.Module):
    """Weighted sum of layers, projector, mean over time, linear classifier.

    The order is that of SUPERB's toolkit s3prl (0.4.18): ``Featurizer``'s softmax-weighted sum with
    all weights equal at the start, the task's ``projector``, then ``UtteranceLevel``: mean pooling
    over the utterance's own frames and one linear layer. There is no nonlinearity in it, so the
    mean is taken first here (``baselines/means.py``), for the same output and the same gradient.
    The classifier has one group of outputs a slot (IC: action, object, location).
    """

    def __init__(self, layers: int, dim: int, slots: Sequence[int], projector_dim: int) -> None:
        super().__init__()
        # of one layer the softmax is 1, whatever its weight
        self.layer_weights = nn.Parameter(torch.zeros(layers), requires_grad=layers > 1)
        self.projector = nn.Linear(dim, projector_dim)
        self.classifier = nn.Linear(projector_dim, sum(slots))
        self._slots = list(slots)

    @property
    def trained_parameters(self) -> int:
        """How many numbers training changes."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def forward(self, means: Tensor) -> tuple[Tensor, ...]:
        """Map the layers' means (B, L, D) to each slot's logits (B, labels)."""
        weights = self.layer_weights.softmax(dim=0)
        mixed = (means * weights[:, None]).sum(dim=1)  # (B, D); a third faster than einsum
        return self.classifier(self.projector(mixed)).split(self._slots, dim=1)

    def loss(self, means: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of (B, slots) labels, each counted from its slot's first; the mean over
        utterances, summed over slots.
        """
        return sum(
            F.cross_entropy(logits, labels[:, slot]) for slot, logits in enumerate(self(means))
        )

    @torch.inference_mode()
    def predict(self, means: Tensor, batch: int = 1024) -> Tensor:
        """Map (N, L, D) to the likeliest label of each slot, (N, slots)."""
        parts = [
            torch.stack([logits.argmax(dim=1) for logits in self(part)], dim=1)
            for part in means.split(batch)
        ]
        return torch.cat(parts)
