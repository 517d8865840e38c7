"""The learnable verbalizer (SpeechPrompt v2, arXiv 2303.00733)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor, nn

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import JOIN, with_joint_names

WEIGHT = "label_map.weight"  # its name in a checkpoint


class LabelMap(nn.Module):
    """A linear map from the LM's output to label scores.

    ``weight``, (labels, V): a label's score is its row times the LM's logits. It starts as the
    fixed verbalizer: one at the label's own unit. That unit stays the label's name: in the text, in
    teacher forcing, and in the answers. A label without a unit of its own has the name of several,
    ``12+47``: a symbol behind the LM's, E in all. It starts as the mean of its units, and the LM
    reads it as the mean of their embeddings.
    """

    def __init__(self, names: Sequence[str], dictionary: Dictionary, count: int) -> None:
        """``names``: what verbal.json calls each label. ``count``: labels of an utterance."""
        super().__init__()
        self.count, self.eos = count, dictionary.eos()
        symbols = with_joint_names(dictionary, names)
        means = torch.zeros(len(names), len(dictionary))
        for row, name in zip(means, names):
            for unit in (parts := name.split(JOIN)):
                row[dictionary.index(unit)] = 1 / len(parts)
        joint = torch.tensor([JOIN in name for name in names])
        numbers = torch.tensor([symbols.index(name) for name in names])
        self.register_buffer("symbols", numbers, persistent=False)
        self.register_buffer("joint_means", means[joint], persistent=False)  # (E, V)
        self.weight = nn.Parameter(means)

    def forward(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Logits of the symbols ``numbers``, (Q,), of ``<s> labels </s>``: (B, Q, V) -> (B, Q, V +
        E).

        ``<s>`` keeps the LM's own. Then only labels are possible, and after the last one only
        ``</s>``, so that there is nothing to learn there.
        """
        scores = logits @ self.weight.float().T  # (B, Q, labels)
        logits = F.pad(logits, (0, len(self.joint_means)), value=-torch.inf)
        impossible = torch.full_like(logits, -torch.inf)
        labels = impossible.index_copy(2, self.symbols, scores)
        end = impossible.clone()
        end[..., self.eos] = 0.0
        numbers = numbers[:, None]
        return torch.where(numbers == 0, logits, torch.where(numbers > self.count, end, labels))

    def embed(self, tokens: Tensor, table: nn.Embedding) -> Tensor:
        """(B, T) -> (B, T, D), of the LM's ``table`` or, behind its V rows, their means."""
        weight = table.weight  # (V, D)
        if len(self.joint_means):
            weight = torch.cat([weight, self.joint_means.to(weight) @ weight])
        return F.embedding(tokens, weight, table.padding_idx)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the prompt."""
        return {WEIGHT: self.weight.detach().clone()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], source: str) -> None:
        """Copy the weight from a checkpoint. Raises ``UserError`` naming ``source`` when it is
        missing or has another shape.
        """
        shapes = tuple(self.weight.shape), tuple(state[WEIGHT].shape) if WEIGHT in state else None
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{source}: expected {WEIGHT} of shape {shapes[0]}, found {shapes[1]}; it belongs "
                "to another task or LM"
            )
        self.weight.copy_(state[WEIGHT])
