"""Decoding a test split: batches of similar length, and two answers to every row."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ulm_prompt.prompt_lm.batches import batches_by_length
from ulm_prompt.prompt_lm.beam import beam_search
from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.search import Answer, Choose, Search, follow, likeliest

BATCH_TOKENS = 65_536  # padded, of the rows that are read together


@dataclass(frozen=True)
class Options:
    """How answers are searched for. The default is greedy, as published."""

    max_units: int = 16_384  # a longer row is not answered: memory grows with the square

    max_labels: int = 50  # an answer that has not ended by then is cut
    batch_size: int = 64
    beam: int = 1
    lenpen: float = 1.0
    sampling: bool = False
    topk: int = 0
    topp: float = 0.0
    temperature: float = 1.0
    seed: int = 1


@dataclass
class Decoded:
    """The answer to one row over the whole vocabulary, and the one within the label sets."""

    row: int
    free: Answer
    within: Answer


def decode(
    lm: CachedLM,
    rows: Sequence[Tensor],
    labels: LabelSets,
    options: Options,
    done: Container[int] = (),
) -> Iterator[list[Decoded]]:
    """Answers to ``rows``, ``</s> units <s>`` each, a batch at a time; none to a row of more than
    ``max_units``.

    The batches depend on the rows and the options alone: one whose rows are all ``done`` is passed
    over, and the others stay what they were. Sampling draws the free answer; within the labels it
    is the best one in any case.
    """
    labels = labels.to(lm.device)
    sizes = torch.tensor([len(row) for row in rows]).numpy()
    order = sizes.argsort(kind="mergesort")
    order = order[sizes[order] <= options.max_units + 2]
    tokens = max(BATCH_TOKENS, options.max_units + 2)
    for batch in batches_by_length(order, sizes, tokens, options.batch_size):
        numbers = batch.tolist()
        if all(number in done for number in numbers):
            continue
        tokens = [rows[number] for number in numbers]
        if options.beam > 1:
            state = lm.prefill(tokens, score_rows=options.temperature)
            free = _best_of_beam(lm, state, options, None)
            within = _best_of_beam(lm, state, options, labels)
        else:
            state = lm.prefill(tokens)
            choose = likeliest
            if options.sampling:
                choose = sampler(options.seed, options.topk, options.topp, options.temperature)
            searches = Search(choose), Search(labels=labels)
            free, within = follow(lm, state, numbers, options.max_labels, *searches)
        yield [Decoded(*answers) for answers in zip(numbers, free, within)]


def _best_of_beam(
    lm: CachedLM, state: State, options: Options, labels: LabelSets | None
) -> list[Answer]:
    found = beam_search(
        lm,
        state,
        options.beam,
        options.max_labels,
        labels,
        options.lenpen,
        options.temperature,
    )
    return [hypotheses[0].answer for hypotheses in found]


# Sampling: a row's draws depend on the seed, its number and the step, not on its batch.


def sampler(seed: int, topk: int = 0, topp: float = 0.0, temperature: float = 1.0) -> Choose:
    """Draw from the distribution at ``temperature``, as fairseq's ``Sampling`` cuts it.

    ``topp`` > 0: among the fewest symbols whose probability exceeds it; else ``topk`` > 0: among
    the ``topk`` likeliest; else among all.
    """

    def choose(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
        probabilities = torch.softmax(scores.double() / temperature, dim=-1)
        ranked, symbols = probabilities.sort(dim=-1, descending=True)  # (B, V)
        if topp > 0:
            before = ranked.cumsum(-1) - ranked
            ranked = ranked.masked_fill(before >= topp, 0.0)
        elif topk > 0:
            ranked[:, topk:] = 0.0
        upto = ranked.cumsum(-1)
        draws = [np.random.default_rng((seed, row, step)).random() for row in rows]
        aim = torch.tensor(draws, dtype=torch.float64, device=scores.device) * upto[:, -1]
        place = torch.searchsorted(upto, aim[:, None], right=True)
        return symbols.gather(1, place).squeeze(1)

    return choose
