"""Decoding: one prefill over ``units <s>``, then a key-value cache for the few label steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batching import batches_by_length
from .model import KeysValues, PromptLanguageModel


@dataclass
class Prefilled:
    """A batch after its prefill: the next symbol's logits, and what later steps attend to."""

    logits: Tensor  # (B, V)
    cache: list[KeysValues]  # per layer, (B, H, P + T, D/H)
    visible: Tensor  # (B, P + T): False at padding
    lengths: Tensor  # (B,)


@dataclass(frozen=True)
class Symbols:
    """Indices that decoding treats apart."""

    pad: int
    eos: int


def decode(
    model: PromptLanguageModel,
    rows: Sequence[Tensor],
    symbols: Symbols,
    max_labels: int,
    allowed: Sequence[Tensor],
    batch_size: int,
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Greedy answers to ``rows`` (each ``</s> units <s>``), as (row number, free answer, answer
    within the labels).

    Free: over the whole vocabulary except ``<pad>``, until ``</s>`` or ``max_labels`` symbols.
    Within the labels: step k chooses among ``allowed[k]``, and there are as many steps. Rows come
    in order of length.
    """
    sizes = torch.tensor([len(row) for row in rows]).numpy()
    for batch in batches_by_length(sizes.argsort(kind="mergesort"), sizes, None, batch_size):
        state = prefill(model, [rows[index] for index in batch], symbols.pad)
        within = restricted(model, state, allowed)
        free = greedy(model, state, symbols, max_labels)
        yield from zip(batch.tolist(), free, within)


@torch.inference_mode()
def prefill(model: PromptLanguageModel, rows: Sequence[Tensor], pad: int) -> Prefilled:
    """Run the LM over whole rows, padded on the right; the last layer at each row's end alone."""
    device = model.lm.decoder.embed_tokens.weight.device
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    tokens = tokens.to(device)  # (B, T)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    length = tokens.shape[1]
    x = model.embed(tokens, model.positions(length))
    mask = model.causal_mask(length)
    *body, last = model.lm.decoder.layers
    *prefixes, last_prefix = model.prefixes()
    cache = []
    for layer, prefix in zip(body, prefixes):
        x, keys_values = model.block(layer, x, prefix, mask)
        cache.append(keys_values)
    ends = lengths[:, None] - 1  # (B, 1)
    x, keys_values = model.block(last, x, last_prefix, mask[ends].unsqueeze(1), ends)
    cache.append(keys_values)
    real = torch.arange(length, device=device) < lengths[:, None]  # (B, T)
    prefix = real.new_ones(len(rows), mask.shape[1] - length)
    return Prefilled(model.logits(x[:, 0]), cache, torch.cat([prefix, real], 1), lengths)


@torch.inference_mode()
def step(model: PromptLanguageModel, state: Prefilled, tokens: Tensor) -> Prefilled:
    """Append one symbol, (B,), to every row."""
    positions = model.positions(int(state.lengths.max()) + 1)[state.lengths].unsqueeze(1)
    x = model.embed(tokens[:, None], positions)  # (B, 1, D)
    visible = torch.cat([state.visible, torch.ones_like(state.visible[:, :1])], dim=1)
    mask = visible[:, None, None]  # (B, 1, 1, S)
    cache = []
    for layer, past in zip(model.lm.decoder.layers, state.cache):
        x, keys_values = model.block(layer, x, past, mask)
        cache.append(keys_values)
    return Prefilled(model.logits(x[:, 0]), cache, visible, state.lengths + 1)


def greedy(
    model: PromptLanguageModel, state: Prefilled, symbols: Symbols, max_labels: int
) -> list[list[int]]:
    """The most likely symbol at each step, until ``</s>``. Rows that have ended leave the batch."""
    answers: list[list[int]] = [[] for _ in range(len(state.lengths))]
    alive = list(range(len(answers)))
    while True:
        best = _without(state.logits, symbols.pad).argmax(-1)
        chosen = best.tolist()
        keep = []
        for place, (row, symbol) in enumerate(zip(alive, chosen)):
            if symbol != symbols.eos:
                answers[row].append(symbol)
                if len(answers[row]) < max_labels:
                    keep.append(place)
        if not keep:
            return answers
        if len(keep) < len(alive):
            state, best = select(state, keep), best[keep]
            alive = [alive[place] for place in keep]
        state = step(model, state, best)


def restricted(
    model: PromptLanguageModel, state: Prefilled, allowed: Sequence[Tensor]
) -> list[list[int]]:
    """The most likely symbol among ``allowed[k]`` at step k, for as many steps as there are."""
    answers = []
    for number, choices in enumerate(allowed):
        choices = choices.to(state.logits.device)
        best = choices[state.logits[:, choices].argmax(-1)]
        answers.append(best)
        if number + 1 < len(allowed):
            state = step(model, state, best)
    return torch.stack(answers, dim=1).tolist()


def select(state: Prefilled, places: list[int]) -> Prefilled:
    """Only the rows at ``places``."""
    index = torch.tensor(places, device=state.lengths.device)
    return Prefilled(
        state.logits[index],
        [KeysValues(keys[index], values[index]) for keys, values in state.cache],
        state.visible[index],
        state.lengths[index],
    )


def _without(logits: Tensor, symbol: int) -> Tensor:
    """``logits``, (B, V), with one symbol ruled out."""
    ruled_out = torch.tensor([symbol], device=logits.device)
    return logits.index_fill(1, ruled_out, -torch.inf)
