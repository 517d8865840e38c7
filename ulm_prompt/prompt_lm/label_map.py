"""The learnable verbalizer: a linear map from the LM's output to label scores (SpeechPrompt v2).

With a fixed verbalizer a label *is* a unit, and its score is that unit's logit. Here every label
has a trained weight for each symbol of the LM. The units that the labels are renamed to stay their
names: in the text, in teacher forcing, and in the answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

WEIGHT = "label_map.weight"  # in a checkpoint


class LabelMap(nn.Module):
    """``weight``, (labels, V): a label's score is its row times the LM's logits. It starts as the
    fixed verbalizer: one at the label's own unit.
    """

    def __init__(self, units: Sequence[int], vocabulary: int, count: int, eos: int) -> None:
        """``units``: the symbol that names each label. ``count``: labels of an utterance."""
        super().__init__()
        self.count, self.eos = count, eos
        self.register_buffer("units", torch.tensor(units), persistent=False)
        self.weight = nn.Parameter(torch.eye(vocabulary)[self.units])

    def forward(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits over symbols at ``places``, (Q,), of ``<s> labels </s>``: (B, Q, V) -> (B, Q, V).

        ``<s>`` keeps the LM's own. At a label's place only labels are possible, and after the last
        one only ``</s>``, so that there is nothing to learn there.
        """
        scores = logits @ self.weight.float().T  # (B, Q, labels)
        impossible = torch.full_like(logits, -torch.inf)
        labels = impossible.index_copy(2, self.units, scores)
        end = impossible.clone()
        end[..., self.eos] = 0.0
        places = places[:, None]
        return torch.where(places == 0, logits, torch.where(places > self.count, end, labels))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the prompt."""
        return {WEIGHT: self.weight.detach().clone()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], source: str) -> None:
        """Take the weight from a checkpoint. Raises ``UserError`` naming ``source`` when it is
        missing or has another shape.
        """
        found = tuple(state[WEIGHT].shape) if WEIGHT in state else "none"
        if found != tuple(self.weight.shape):
            raise UserError(
                f"{source}: expected {WEIGHT} of shape {tuple(self.weight.shape)}, found {found}; "
                "it belongs to another task or LM"
            )
        self.weight.copy_(state[WEIGHT])
