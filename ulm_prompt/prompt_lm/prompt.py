"""The trainable part: prefix keys and values for every layer, and the ``<s>`` vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

_PREFIX = "decoder."
_INPUT = _PREFIX + "prefix_embed_prompts.weight"
_INFIX = _PREFIX + "infix_embed_prompts.weight"
_SEP = _PREFIX + "sep_embed.weight"
_KEY = _PREFIX + "deep_key_embed_prompts.{}.weight"
_VALUE = _PREFIX + "deep_value_embed_prompts.{}.weight"


class Prompt(nn.Module):
    """P prefix vectors per layer on the key and on the value side, before the layer's frozen
    projections (while it trains ``projected``, behind them: see projection.py).

    ``keys`` and ``values``: (L, P, D). ``sep``: (1, D), stands for ``<s>`` before scaling and
    position. ``inputs``: (P, D), as published: the prefix's input vectors. Every layer replaces the
    keys and values of the prefix positions, so nothing ever attends to what becomes of them; they
    take part in the published parameter count, P*D*(1+2L) + D, and in no computation.
    """

    def __init__(
        self, layers: int, length: int, width: int, dropout: float = 0.0, projected: bool = False
    ) -> None:
        super().__init__()
        self.projected = projected
        self.inputs = nn.Parameter(torch.empty(length, width))
        self.keys = nn.Parameter(torch.empty(layers, length, width))
        self.values = nn.Parameter(torch.empty(layers, length, width))
        self.sep = nn.Parameter(torch.empty(1, width))
        self.dropout = nn.Dropout(dropout)  # one mask a step, shared by the batch
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # as published: N(0, 1)

    @property
    def length(self) -> int:
        """P."""
        return self.inputs.shape[0]

    def published_state(self) -> dict[str, Tensor]:
        """The tensors under the names of the published checkpoints."""
        state = {_INPUT: self.inputs, _INFIX: self.inputs.new_empty(0, self.inputs.shape[1])}
        for layer in range(self.keys.shape[0]):
            state[_KEY.format(layer)] = self.keys[layer]
            state[_VALUE.format(layer)] = self.values[layer]
        state[_SEP] = self.sep
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_published_state(self, state: dict[str, Tensor], source: str) -> None:
        """Take the tensors from a checkpoint with the published names; other entries (the LM's) are
        left alone.

        Raises ``UserError`` naming ``source`` and the tensor that is missing or has another shape.
        """
        targets = {_INPUT: self.inputs, _SEP: self.sep}
        for layer in range(self.keys.shape[0]):
            targets[_KEY.format(layer)] = self.keys[layer]
            targets[_VALUE.format(layer)] = self.values[layer]
        extra = [name for name in state if "_embed_prompts." in name and name not in targets]
        for name in extra:
            if state[name].numel():
                raise UserError(
                    f"{source}: {name} does not belong to an LM of {len(self.keys)} layers"
                )
        for name, target in targets.items():
            if name not in state:
                raise UserError(f"{source}: {name} is missing; is this a prompt for another LM?")
            if state[name].shape != target.shape:
                raise UserError(
                    f"{source}: {name} is {tuple(state[name].shape)}, the LM needs "
                    f"{tuple(target.shape)}; this prompt belongs to another LM"
                )
            target.copy_(state[name])

    @classmethod
    def from_published_state(cls, state: dict[str, Tensor], layers: int, source: str) -> Prompt:
        """A prompt of the size that the checkpoint holds."""
        if _INPUT not in state or state[_INPUT].ndim != 2:
            raise UserError(f"{source}: no prompt in it ({_INPUT} is missing)")
        prompt = cls(layers, *state[_INPUT].shape)
        prompt.load_published_state(state, source)
        return prompt
