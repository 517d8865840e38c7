"""The prompted LM that remembers: one prefill over ``units <s>``, then steps over a key-value
cache. Several hypotheses of a row (a beam) stand side by side in its cache. Each sees the row and
its own past and none of the others', so that reordering a beam moves a mask and copies no keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ulm_prompt.prompt_lm.model import KeysValues, PromptLanguageModel, mask_at

SLACK = 8  # steps that a new cache has room for; it grows by half when they are taken


class Buffer(NamedTuple):
    """One layer's keys and values with room to append to: (B, H, room, D/H) each."""

    keys: Tensor
    values: Tensor
    used: int  # positions written so far

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the tokens' keys and values behind the others; return all, (B, H, S, D/H) each."""
        end = self.used + keys.shape[2]
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True)
class State:
    """A batch of B rows with Q hypotheses each. Steps write behind the ``used`` positions of the
    cache, so two steps from one state are allowed, one after the other.
    """

    logits: Tensor  # (B, Q, V) float32, of the next symbol
    cache: list[tuple[Tensor, Tensor]]  # per layer, (B, H, room, D/H) each
    visible: Tensor  # (B, Q, used), what a hypothesis attends to: False at padding
    lengths: Tensor  # (B,), symbols read so far
    row_scores: Tensor  # (B,), log-probability of the row itself, 0 unless asked for
    number: int = 1  # of the next symbol in ``<s> labels </s>``

    @property
    def used(self) -> int:
        return self.visible.shape[2]

    def select(self, rows: Tensor) -> State:
        """Only the rows at ``rows``."""
        cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        others = (self.visible, self.lengths, self.row_scores)
        return State(self.logits[rows], cache, *(each[rows] for each in others), self.number)


class CachedLM:
    """A prompted LM for decoding. The prompt's keys and values are projected here, once."""

    def __init__(
        self, model: PromptLanguageModel, pad: int, eos: int, dtype: torch.dtype | None = None
    ) -> None:
        """``dtype``: see ``to``."""
        self.model, self.pad, self.eos = model, pad, eos
        self.layers = model.lm.decoder.layers
        self.device = model.lm.decoder.embed_tokens.weight.device
        self.prefix_length = 0 if model.prompt is None else model.prompt.length  # P
        with torch.inference_mode():
            self.prefixes = model.prefixes()
        if dtype is not None:
            self.to(dtype)

    def to(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype`` from now on; the LM stays so. Make the ``CachedLM`` of each prompt
        before one of them rounds the LM: the projections are ill-conditioned, and a vector rounded
        before one is another vector behind it.
        """
        self.model.lm.to(dtype)
        rounded = [prefix and [tensor.to(dtype) for tensor in prefix] for prefix in self.prefixes]
        self.prefixes = [prefix and KeysValues(*prefix) for prefix in rounded]

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Tensor], score_rows: float | None = None) -> State:
        """Read whole rows ``</s> units <s>``, padded on the right, where no real symbol looks; Q is
        1. The last layer and the output projection compute each row's end alone, unless
        ``score_rows``, a temperature, asks for the log-probability of the rows' own symbols.
        """
        model, device = self.model, self.device
        tokens = pad_sequence(list(rows), True, self.pad).to(device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        length = tokens.shape[1]
        x = model.embed(tokens, model.positions(length))  # (B, T, D)
        mask = model.mask(tokens)  # (1 or B, T, P + T)
        buffers = [self._buffer(x, prefix) for prefix in self.prefixes]
        for layer, buffer in zip(self.layers[:-1], buffers):
            x = model.block(layer, x, buffer, mask.unsqueeze(1))
        ends = lengths[:, None] - 1  # (B, 1)
        if score_rows is None:
            x = model.block(self.layers[-1], x, buffers[-1], mask_at(mask, ends), ends)
            logits = model.logits(x)  # (B, 1, V)
            row_scores = logits.new_zeros(len(rows))
        else:
            x = model.block(self.layers[-1], x, buffers[-1], mask.unsqueeze(1))
            logits = model.logits(x)  # (B, T, V)
            following = tokens[:, 1:]  # (B, T - 1)
            scores = F.log_softmax((logits / score_rows)[:, :-1], dim=-1)  # (B, T - 1, V)
            scores = scores.gather(2, following.unsqueeze(2)).squeeze(2)
            row_scores = scores.masked_fill(following == self.pad, 0.0).sum(1)
            logits = logits[torch.arange(len(rows), device=device)[:, None], ends]
        real = torch.arange(length, device=device) < lengths[:, None]  # (B, T)
        visible = F.pad(real, (self.prefix_length, 0), value=True).unsqueeze(1)  # (B, 1, P + T)
        cache = [(buffer.keys, buffer.values) for buffer in buffers]
        logits = model.answers(logits, torch.ones_like(ends[0]))
        return State(logits, cache, visible, lengths, row_scores)

    @torch.inference_mode()
    def step(self, state: State, symbols: Tensor, parents: Tensor | None = None) -> State:
        """Append one symbol to every hypothesis: ``symbols``, (B, Q), after the hypotheses
        ``parents``, (B, Q) (default: itself).
        """
        batch, count = symbols.shape
        positions = self.model.positions(int(state.lengths.max()) + 1)[state.lengths]
        x = self.model.embed(symbols, positions.unsqueeze(1))  # (B, Q, D)
        seen = state.visible
        if parents is not None:
            seen = seen.gather(1, parents.unsqueeze(2).expand(-1, -1, state.used))
        itself = torch.eye(count, dtype=torch.bool, device=self.device).expand(batch, -1, -1)
        visible = torch.cat([seen, itself], dim=2)  # (B, Q, used + Q)
        cache = [
            tuple(_grown(tensor, state.used, visible.shape[2]) for tensor in tensors)
            for tensors in state.cache
        ]
        for layer, tensors in zip(self.layers, cache):
            x = self.model.block(layer, x, Buffer(*tensors, state.used), visible.unsqueeze(1))
        number = state.number + 1
        of_symbols = torch.full((count,), number, device=self.device)
        logits = self.model.answers(self.model.logits(x), of_symbols)
        return State(logits, cache, visible, state.lengths + 1, state.row_scores, number)

    def _buffer(self, x: Tensor, prefix: KeysValues | None) -> Buffer:
        """A layer's buffer for a prefill over ``x``, (B, T, D), that holds the ``prefix``."""
        batch, length, width = x.shape
        heads = self.layers[0].nh
        keys = x.new_empty(batch, heads, self.prefix_length + length + SLACK, width // heads)
        values = torch.empty_like(keys)
        if prefix is not None:
            Buffer(keys, values, 0).join(*prefix)
        return Buffer(keys, values, self.prefix_length)


def _grown(tensor: Tensor, used: int, needed: int) -> Tensor:
    """The same keys or values with room for at least ``needed`` positions."""
    if needed <= tensor.shape[2]:
        return tensor
    grown = tensor.new_empty(*tensor.shape[:2], needed + needed // 2, tensor.shape[3])
    grown[:, :, :used] = tensor[:, :, :used]
    return grown
