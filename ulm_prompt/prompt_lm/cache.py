"""The prompted LM that remembers: one prefill over ``units <s>``, then steps over a key-value
cache.

Several hypotheses of a row (a beam) stand side by side in its cache. Each sees the row and its own
past and none of the others', so that reordering a beam moves a mask and copies no keys.

Rows of one batch may carry different prompts, of different tasks, over the one LM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ulm_prompt.prompt_lm.model import KeysValues, PromptLanguageModel

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
    which: Tensor | None = None  # (B,), each row's prompt; None where there is one

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
            None if self.which is None else self.which[index],
        )


class CachedLM:
    """A prompted LM for decoding, or N of them that share the LM and differ in the prompt. The
    prompts' keys and values are projected here, once.
    """

    def __init__(
        self,
        models: PromptLanguageModel | Sequence[PromptLanguageModel],
        pad: int,
        eos: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        """``dtype``: what the LM is to compute in (default: as it is); it stays so.

        The prompts are projected before that: the projections are ill-conditioned, and a vector
        that is rounded before one is another behind it.
        """
        models = [models] if isinstance(models, PromptLanguageModel) else list(models)
        self.models, model = models, models[0]
        assert all(other.lm is model.lm for other in models), "prompts over different LMs"
        self.model = model
        self.pad, self.eos = pad, eos
        self.layers = model.lm.decoder.layers
        self.device = model.lm.decoder.embed_tokens.weight.device
        lengths = [0 if each.prompt is None else each.prompt.length for each in models]
        self.prefix_length = max(lengths)  # P
        self.seps = self.in_use = None  # of several prompts: (N, 1, D) and (N, P)
        with torch.inference_mode():
            layers = zip(*(each.prefixes() for each in models))
            prefixes = [self._stacked(own) for own in layers]
        if dtype is not None:
            model.lm.to(dtype)
        with torch.inference_mode():
            like = model.lm.decoder.embed_tokens.weight
            self.prefixes = [
                own and KeysValues(own.keys.to(like), own.values.to(like)) for own in prefixes
            ]
            if len(models) > 1:
                self.seps = torch.stack([each.in_lm_dtype(each.prompt.sep) for each in models])
                places = torch.arange(self.prefix_length, device=self.device)
                self.in_use = places < torch.tensor(lengths, device=self.device)[:, None]

    @torch.inference_mode()
    def prefill(
        self,
        rows: Sequence[Tensor],
        score_rows: float | None = None,
        which: Sequence[int] | None = None,
    ) -> State:
        """Read whole rows ``</s> units <s>``; Q is 1. ``which``: each row's prompt, where there are
        several.

        Rows are padded on the right, where no real symbol looks. The last layer and the output
        projection compute each row's end alone, unless ``score_rows``, a temperature, asks for the
        log-probability of the rows' own symbols.
        """
        assert (which is None) == (self.seps is None), "one prompt, or which of several"
        model, device = self.model, self.device
        tokens = torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=self.pad
        ).to(device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        if which is not None:
            which = torch.tensor(which, device=device)
        length = tokens.shape[1]
        x = model.embed(tokens, model.positions(length), self._sep(which))  # (B, T, D)
        mask = self._mask(length, which)  # (T, P + T) or (B, 1, T, P + T)
        buffers = [self._buffer(x, layer, which) for layer in range(len(self.layers))]
        for layer, buffer in zip(self.layers[:-1], buffers):
            x = model.block(layer, x, buffer, mask)
        ends = lengths[:, None] - 1  # (B, 1)
        every = torch.arange(len(rows), device=device)[:, None]
        if score_rows is None:
            at_ends = mask[ends].unsqueeze(1) if mask.ndim == 2 else mask[every, :, ends]
            x = model.block(self.layers[-1], x, buffers[-1], at_ends, ends)
            logits = model.logits(x).float()  # (B, 1, V)
            row_scores = logits.new_zeros(len(rows))
        else:
            logits = model.logits(model.block(self.layers[-1], x, buffers[-1], mask)).float()
            row_scores = self._score(tokens, logits / score_rows)
            logits = logits[every, ends]
        real = torch.arange(length, device=device) < lengths[:, None]  # (B, T)
        prefix = real.new_ones(len(rows), self.prefix_length)
        if which is not None:
            prefix = self.in_use[which]
        visible = torch.cat([prefix, real], dim=1).unsqueeze(1)  # (B, 1, P + T)
        cache = [(buffer.keys, buffer.values) for buffer in buffers]
        logits = self._answers(logits, 1, which)
        return State(logits, cache, visible, lengths, row_scores, which=which)

    @torch.inference_mode()
    def step(self, state: State, symbols: Tensor, parents: Tensor | None = None) -> State:
        """Append one symbol to every hypothesis: ``symbols``, (B, Q).

        ``parents``, (B, Q): the hypothesis that each one goes on from (default: itself).
        """
        batch, count = symbols.shape
        positions = self.model.positions(int(state.lengths.max()) + 1)[state.lengths]
        x = self.model.embed(symbols, positions.unsqueeze(1), self._sep(state.which))  # (B, Q, D)
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
            logits=self._answers(logits, place, state.which),
            cache=cache,
            visible=visible,
            lengths=state.lengths + 1,
            place=place,
        )

    def _stacked(self, prefixes: Sequence[KeysValues | None]) -> KeysValues | None:
        """One layer's prefixes of all prompts, (N, H, P, D/H) each: zeros behind a shorter one.
        None of an LM without a prompt.
        """
        if prefixes[0] is None:
            return None
        padded = (
            [F.pad(tensor, (0, 0, 0, self.prefix_length - tensor.shape[2])) for tensor in side]
            for side in zip(*prefixes)
        )
        return KeysValues(*(torch.cat(side) for side in padded))

    def _sep(self, which: Tensor | None) -> Tensor | None:
        """Each row's own ``<s>``: (B, 1, D)."""
        return None if which is None else self.seps[which]

    def _answers(self, logits: Tensor, place: int, which: Tensor | None) -> Tensor:
        """Logits (B, Q, V) of the ``place``-th symbol after each row's own label map."""
        places = torch.full(logits.shape[1:2], place, device=self.device)
        if which is None:
            return self.model.answers(logits, places)
        for number, model in enumerate(self.models):
            if model.label_map is not None:
                rows = which == number
                logits[rows] = model.answers(logits[rows], places)
        return logits

    def _mask(self, length: int, which: Tensor | None) -> Tensor:
        """What a token sees: (T, P + T); (B, 1, T, P + T) where prompts differ in length."""
        if which is None or self.in_use.all():
            return self.model.causal_mask(length)
        prefix = self.in_use[which][:, None, None, :].expand(-1, -1, length, -1)
        causal = self.model.causal_mask(length)[:, -length:]
        return torch.cat([prefix, causal.expand(len(which), 1, -1, -1)], dim=3)

    def _buffer(self, x: Tensor, layer: int, which: Tensor | None) -> Buffer:
        """An empty buffer for a prefill over ``x``, (B, T, D), the prefix in its first places."""
        batch, length, width = x.shape
        heads = self.layers[layer].nh
        room = self.prefix_length + length + SLACK
        keys = x.new_empty(batch, heads, room, width // heads)
        values = torch.empty_like(keys)
        if self.prefixes[layer] is not None:
            own = self.prefixes[layer]
            if which is not None:
                own = KeysValues(own.keys[which], own.values[which])
            keys[:, :, : self.prefix_length] = own.keys
            values[:, :, : self.prefix_length] = own.values
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
