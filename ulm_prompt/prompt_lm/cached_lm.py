"""The prompted LM that remembers: one prefill over ``units <s>``, then steps over a key-value
cache.

Several hypotheses of a row (a beam) stand side by side in its cache. Each sees the row and its own
past and none of the others', so that reordering a beam moves a mask and copies no keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import PromptLanguageModel

SLACK = 8  # places for steps that a new cache has; it grows by half when they are taken


class Buffer(NamedTuple):
    """One layer's keys and values with room to append to: (B, H, room, D/H) each."""

    keys: Tensor
    values: Tensor
    used: int  # places written so far

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the tokens' keys and values behind the others; return all, (B, H, S, D/H) each."""
        end = self.used + keys.shape[2]
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True)
class State:
    """A batch of B rows with Q hypotheses each. Steps write behind ``used`` places of the cache, so
    that going on twice from one state is allowed, one after the other.
    """

    logits: Tensor  # (B, Q, V) float32, of the next symbol
    cache: list[tuple[Tensor, Tensor]]  # per layer, (B, H, room, D/H) each
    visible: Tensor  # (B, Q, used), what a hypothesis attends to: False at padding
    lengths: Tensor  # (B,), symbols read so far
    row_scores: Tensor  # (B,), log-probability of the row itself, 0 unless asked for
    place: int = 1  # of the next symbol in ``<s> labels </s>``

    @property
    def used(self) -> int:
        return self.visible.shape[2]

    def select(self, places: list[int]) -> State:
        """Only the rows at ``places``."""
        index = torch.tensor(places, device=self.lengths.device)
        return State(
            self.logits[index],
            [(keys[index], values[index]) for keys, values in self.cache],
            self.visible[index],
            self.lengths[index],
            self.row_scores[index],
            self.place,
        )


class CachedLM:
    """A prompted LM for decoding. The prompt's keys and values are projected here, once."""

    @torch.inference_mode()
    def __init__(self, model: PromptLanguageModel, pad: int, eos: int) -> None:
        self.model = model
        self.pad, self.eos = pad, eos
        self.layers = model.lm.decoder.layers
        self.prefixes = model.prefixes()
        self.prefix_length = 0 if model.prompt is None else model.prompt.length
        self.device = model.lm.decoder.embed_tokens.weight.device

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Tensor], score_rows: float | None = None) -> State:
        """Read whole rows ``</s> units <s>``; Q is 1.

        Rows are padded on the right, where no real symbol looks. The last layer and the output
        projection compute each row's end alone, unless ``score_rows``, a temperature, asks for the
        log-probability of the rows' own symbols.
        """
        model, device = self.model, self.device
        tokens = torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=self.pad
        ).to(device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        length = tokens.shape[1]
        x = model.embed(tokens, model.positions(length))  # (B, T, D)
        mask = model.causal_mask(length)  # (T, P + T)
        buffers = [self._buffer(x, layer) for layer in range(len(self.layers))]
        for layer, buffer in zip(self.layers[:-1], buffers):
            x = model.block(layer, x, buffer, mask)
        ends = lengths[:, None] - 1  # (B, 1)
        if score_rows is None:
            x = model.block(self.layers[-1], x, buffers[-1], mask[ends].unsqueeze(1), ends)
            logits = model.logits(x).float()  # (B, 1, V)
            row_scores = logits.new_zeros(len(rows))
        else:
            logits = model.logits(model.block(self.layers[-1], x, buffers[-1], mask)).float()
            row_scores = self._score(tokens, logits / score_rows)
            logits = logits[torch.arange(len(rows), device=device)[:, None], ends]
        real = torch.arange(length, device=device) < lengths[:, None]  # (B, T)
        prefix = real.new_ones(len(rows), self.prefix_length)
        visible = torch.cat([prefix, real], dim=1).unsqueeze(1)  # (B, 1, P + T)
        cache = [(buffer.keys, buffer.values) for buffer in buffers]
        logits = model.answers(logits, torch.ones(1, device=device))
        return State(logits, cache, visible, lengths, row_scores)

    @torch.inference_mode()
    def step(self, state: State, symbols: Tensor, parents: Tensor | None = None) -> State:
        """Append one symbol to every hypothesis: ``symbols``, (B, Q).

        ``parents``, (B, Q): the hypothesis that each one goes on from (default: itself).
        """
        batch, count = symbols.shape
        positions = self.model.positions(int(state.lengths.max()) + 1)[state.lengths]
        x = self.model.embed(symbols, positions.unsqueeze(1))  # (B, Q, D)
        seen = state.visible
        if parents is not None:
            seen = seen.gather(1, parents.unsqueeze(2).expand(-1, -1, state.used))
        own = torch.eye(count, dtype=torch.bool, device=self.device).expand(batch, -1, -1)
        visible = torch.cat([seen, own], dim=2)  # (B, Q, used + Q)
        mask = visible.unsqueeze(1)  # (B, 1, Q, used + Q)
        cache = [_grown(tensors, state.used, visible.shape[2]) for tensors in state.cache]
        for layer, tensors in zip(self.layers, cache):
            x = self.model.block(layer, x, Buffer(*tensors, state.used), mask)
        place = state.place + 1
        logits = self.model.logits(x).float()
        return dataclasses.replace(
            state,
            logits=self.model.answers(logits, torch.full((count,), place, device=self.device)),
            cache=cache,
            visible=visible,
            lengths=state.lengths + 1,
            place=place,
        )

    def _buffer(self, x: Tensor, layer: int) -> Buffer:
        """An empty buffer for a prefill over ``x``, (B, T, D), the prefix in its first places."""
        batch, length, width = x.shape
        heads = self.layers[layer].nh
        room = self.prefix_length + length + SLACK
        keys = x.new_empty(batch, heads, room, width // heads)
        values = torch.empty_like(keys)
        if self.prefixes[layer] is not None:
            keys[:, :, : self.prefix_length] = self.prefixes[layer].keys
            values[:, :, : self.prefix_length] = self.prefixes[layer].values
        return Buffer(keys, values, self.prefix_length)

    def _score(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Log-probability of each row's symbols after its first: (B, T), (B, T, V) -> (B,)."""
        following = tokens[:, 1:]
        scores = F.log_softmax(logits[:, :-1], dim=-1).gather(2, following.unsqueeze(2)).squeeze(2)
        return scores.masked_fill(following == self.pad, 0.0).sum(1)


def _grown(tensors: tuple[Tensor, Tensor], used: int, needed: int) -> tuple[Tensor, Tensor]:
    """The same keys and values where at least ``needed`` places fit."""
    if needed <= tensors[0].shape[2]:
        return tensors
    grown = tuple(
        tensor.new_empty(*tensor.shape[:2], needed + needed // 2, tensor.shape[3])
        for tensor in tensors
    )
    for new, old in zip(grown, tensors):
        new[:, :, :used] = old[:, :, :used]
    return grown
