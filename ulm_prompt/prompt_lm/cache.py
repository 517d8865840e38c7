"""Decoding with a key-value cache. A prefill reads rows ``</s> units <s>``; each step appends one
symbol per hypothesis. All hypotheses of a row (a beam) share one cache. A mask lets a hypothesis
see only the row and its own symbols. So reordering a beam moves the mask and copies no keys.
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

SLACK = 8  # free positions in a new cache; a full cache grows by half


class Buffer(NamedTuple):
    """Keys and values of one layer, with free positions at the end: (B, H, room, D/H) each."""

    keys: Tensor
    values: Tensor
    used: int  # positions written so far

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the tokens' keys and values. Return all so far, (B, H, S, D/H) each."""
        end = self.used + keys.shape[2]
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True)
class State:
    """A batch of B rows with Q hypotheses each. A step overwrites the cache after the ``used``
    positions. So two searches may start from one state, but only one after the other.
    """

    logits: Tensor  # (B, Q, V) float32, for the next symbol
    cache: list[tuple[Tensor, Tensor]]  # keys and values per layer, (B, H, room, D/H) each
    visible: Tensor  # (B, Q, used), True where a hypothesis attends, False at padding
    lengths: Tensor  # (B,), symbols read so far
    row_scores: Tensor  # (B,), log-probability of the row itself, 0 unless requested
    position: int = 1  # position of the next symbol in ``<s> labels </s>``

    @property
    def used(self) -> int:
        return self.visible.shape[2]

    def select(self, rows: Tensor) -> State:
        """Return the state of the batch rows with the indices ``rows``."""
        cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        logits, visible = self.logits[rows], self.visible[rows]
        lengths, row_scores = self.lengths[rows], self.row_scores[rows]
        return State(logits, cache, visible, lengths, row_scores, self.position)


class CachedLM:
    """A prompted LM for decoding. It projects the prompt's keys and values once, when created."""

    def __init__(
        self, model: PromptLanguageModel, pad: int, eos: int, dtype: torch.dtype | None = None
    ) -> None:
        """``dtype``: see ``to``."""
        self.model, self.pad, self.eos = model, pad, eos
        self.layers = model.lm.decoder.layers
        self.device = model.lm.decoder.embed_tokens.weight.device
        self.prompt_length = 0 if model.prompt is None else model.prompt.length  # P
        with torch.inference_mode():
            self.layer_prompts = model.layer_prompts()
        if dtype is not None:
            self.to(dtype)

    def to(self, dtype: torch.dtype) -> None:
        """Convert the LM and the projected prompt to ``dtype``. If prompts share the LM, create the
        ``CachedLM`` of every prompt first. The projections are ill-conditioned: a vector rounded
        before a projection becomes a very different vector.
        """
        self.model.lm.to(dtype)
        for index, layer_prompt in enumerate(self.layer_prompts):
            if layer_prompt is not None:
                self.layer_prompts[index] = KeysValues(*(part.to(dtype) for part in layer_prompt))

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Tensor], row_temperature: float | None = None) -> State:
        """Read rows ``</s> units <s>``, padded on the right, where no real symbol attends. Return a
        state with one hypothesis per row. With ``row_temperature``, also score the symbols of the
        rows at this temperature; else compute the last layer and the logits at row ends only.
        """
        model, device = self.model, self.device
        tokens = pad_sequence(list(rows), True, self.pad).to(device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        length = tokens.shape[1]
        x = model.embed(tokens, model.position_vectors(length))  # (B, T, D)
        mask = model.mask(tokens)  # (1 or B, T, P + T)
        buffers = [self._buffer(x, layer_prompt) for layer_prompt in self.layer_prompts]
        for layer, buffer in zip(self.layers[:-1], buffers):
            x = model.block(layer, x, buffer, mask.unsqueeze(1))
        ends = lengths[:, None] - 1  # (B, 1)
        if row_temperature is None:
            x = model.block(self.layers[-1], x, buffers[-1], mask_at(mask, ends), ends)
            logits = model.logits(x)  # (B, 1, V)
            row_scores = logits.new_zeros(len(rows))
        else:
            x = model.block(self.layers[-1], x, buffers[-1], mask.unsqueeze(1))
            logits = model.logits(x)  # (B, T, V)
            next_symbols = tokens[:, 1:]  # (B, T - 1)
            scores = F.log_softmax((logits / row_temperature)[:, :-1], dim=-1)  # (B, T - 1, V)
            scores = scores.gather(2, next_symbols.unsqueeze(2)).squeeze(2)  # (B, T - 1)
            row_scores = scores.masked_fill(next_symbols == self.pad, 0.0).sum(1)
            logits = logits[torch.arange(len(rows), device=device)[:, None], ends]  # (B, 1, V)
        is_real = torch.arange(length, device=device) < lengths[:, None]  # (B, T)
        visible = F.pad(is_real, (self.prompt_length, 0), value=True).unsqueeze(1)  # (B, 1, P + T)
        cache = [(buffer.keys, buffer.values) for buffer in buffers]
        logits = model.apply_label_map(logits, torch.ones_like(ends[0]))  # 1: the first label
        return State(logits, cache, visible, lengths, row_scores)

    @torch.inference_mode()
    def step(self, state: State, symbols: Tensor, parents: Tensor | None = None) -> State:
        """Return the state after one more symbol per hypothesis: ``symbols``, (B, Q). ``parents``:
        (B, Q), the hypotheses that the symbols continue (default: hypothesis q for symbol q).
        """
        batch, count = symbols.shape
        position_vectors = self.model.position_vectors(int(state.lengths.max()) + 1)[state.lengths]
        x = self.model.embed(symbols, position_vectors.unsqueeze(1))  # (B, Q, D)
        seen = state.visible
        if parents is not None:
            seen = seen.gather(1, parents.unsqueeze(2).expand(-1, -1, state.used))
        # of the new symbols, a hypothesis sees only its own
        own_symbol = torch.eye(count, dtype=torch.bool, device=self.device).expand(batch, -1, -1)
        visible = torch.cat([seen, own_symbol], dim=2)  # (B, Q, used + Q)
        cache = [
            tuple(_with_room(tensor, state.used, visible.shape[2]) for tensor in keys_and_values)
            for keys_and_values in state.cache
        ]
        for layer, (keys, values) in zip(self.layers, cache):
            x = self.model.block(layer, x, Buffer(keys, values, state.used), visible.unsqueeze(1))
        position = state.position + 1
        positions = torch.full((count,), position, device=self.device)
        logits = self.model.apply_label_map(self.model.logits(x), positions)
        return State(logits, cache, visible, state.lengths + 1, state.row_scores, position)

    def _buffer(self, x: Tensor, layer_prompt: KeysValues | None) -> Buffer:
        """Return a layer's buffer for a prefill over ``x``, (B, T, D), with the layer's prompt."""
        batch, length, width = x.shape
        heads = self.layers[0].nh
        keys = x.new_empty(batch, heads, self.prompt_length + length + SLACK, width // heads)
        values = torch.empty_like(keys)
        if layer_prompt is not None:
            Buffer(keys, values, 0).join(*layer_prompt)
        return Buffer(keys, values, self.prompt_length)


def _with_room(tensor: Tensor, used: int, needed: int) -> Tensor:
    """Return the keys or values, in a larger copy if they have fewer than ``needed`` positions."""
    if needed <= tensor.shape[2]:
        return tensor
    larger = tensor.new_empty(*tensor.shape[:2], needed + needed // 2, tensor.shape[3])
    larger[:, :, :used] = tensor[:, :, :used]
    return larger
