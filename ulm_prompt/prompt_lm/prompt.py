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
_TOKENS = _PREFIX + "embed_tokens.weight"  # of an LM beside the prompt


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
        _check(state, len(self.keys), *self.inputs.shape, source)
        self.inputs.copy_(state[_INPUT])
        self.sep.copy_(state[_SEP])
        for layer in range(len(self.keys) if self.length else 0):
            self.keys[layer] = state[_KEY.format(layer)]
            self.values[layer] = state[_VALUE.format(layer)]

    @classmethod
    def from_published_state(cls, state: dict[str, Tensor], layers: int, source: str) -> Prompt:
        """A prompt of the size that the checkpoint holds; beside a fine-tuned LM, ``<s>`` alone.

        Raises ``UserError``, as ``load_published_state`` does, also for an infix prompt.
        """
        infix = state.get(_INFIX)
        if infix is not None and infix.ndim == 2 and len(infix):
            raise UserError(
                f"{source}: an infix prompt of length {len(infix)} (--infix_prompt_length); only "
                "prefix prompts can be decoded, train one with --prefix_prompt_length"
            )
        inputs = state.get(_INPUT)
        if inputs is None or inputs.ndim != 2 or not (inputs.numel() or is_fine_tuned(state)):
            raise UserError(f"{source}: no prompt in it ({_INPUT} is missing)")
        length, width = inputs.shape
        _check(state, layers, length, width, source)  # before memory is taken for it
        prompt = cls(layers, length, width)
        prompt.load_published_state(state, source)
        return prompt


def is_fine_tuned(state: dict[str, Tensor]) -> bool:
    """Whether a published checkpoint is one of ``--fine_tune``: an LM, and prompts of length 0."""
    inputs = state.get(_INPUT)
    return _TOKENS in state and inputs is not None and inputs.ndim == 2 and not len(inputs)


def without_prompt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LM's part of a published checkpoint."""
    names = (name for name in state if "_embed_prompts." not in name and name != _SEP)
    return {name: state[name] for name in names}


def _check(state: dict[str, Tensor], layers: int, length: int, width: int, source: str) -> None:
    shapes = {_INPUT: (length, width), _SEP: (1, width)}
    for layer in range(layers if length else 0):
        shapes[_KEY.format(layer)] = shapes[_VALUE.format(layer)] = (length, width)
    extra = [name for name in state if "_embed_prompts." in name and name not in shapes]
    for name in extra:
        if state[name].numel():
            raise UserError(f"{source}: {name} does not belong to an LM of {layers} layers")
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{source}: {name} is missing; is this a prompt for another LM?")
        if state[name].shape != shape:
            raise UserError(
                f"{source}: {name} is {tuple(state[name].shape)}, the LM needs {shape}; "
                "this prompt belongs to another LM"
            )
