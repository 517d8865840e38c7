"""Decoding a test split: batches of similar length, and two answers to every row."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.data import batches_by_length
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.search import Answer, beam_search, follow, likeliest, sampler

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
    log_odds: float | None = None  # of ``within``, one of two labels, against the other


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
    sizes = np.array([len(row) for row in rows])
    order = sizes.argsort(kind="mergesort")
    order = order[sizes[order] <= options.max_units + 2]
    choose = likeliest
    if options.sampling:
        choose = sampler(options.seed, options.topk, options.topp, options.temperature)
    most_tokens = max(BATCH_TOKENS, options.max_units + 2)
    max_labels, label_map = options.max_labels, lm.model.label_map
    if label_map is not None:  # then nothing but </s> may follow: no step to see that
        max_labels = min(max_labels, label_map.count)
    for batch in batches_by_length(order, sizes, most_tokens, options.batch_size):
        numbers = batch.tolist()
        if all(number in done for number in numbers):
            continue
        tokens = [rows[number] for number in numbers]
        if options.beam > 1:
            state = lm.prefill(tokens, score_rows=options.temperature)
            width = options.beam, max_labels
            score = options.lenpen, options.temperature
            found = (beam_search(lm, state, *width, sets, *score) for sets in (None, labels))
            answers = [[best.answer for best, *_ in both] for both in zip(*found)]
        else:
            state = lm.prefill(tokens)
            answers = follow(lm, state, numbers, max_labels, choose, labels)
        odds = log_odds(state, labels, [within for _, within in answers])
        yield [Decoded(number, *both, odd) for number, both, odd in zip(numbers, answers, odds)]


def log_odds(state: State, labels: LabelSets, answers: Sequence[Answer]) -> list[float | None]:
    """Of each answer to a row of ``state`` against the other label; None unless there are two."""
    symbols = labels.allowed[0].nonzero().squeeze(1).tolist()
    if len(symbols) != 2 or not labels.ends[labels.following[0, symbols]].all():
        return [None] * len(answers)
    first, second = state.logits[:, 0, symbols].T.tolist()  # (B,) each
    odds = [one - other for one, other in zip(first, second)]
    return [odd if answer.symbols == symbols[:1] else -odd for odd, answer in zip(odds, answers)]
