"""Answers over the cache, symbol by symbol: greedy or sampled and within the label sets, side by
side; beams; and the two answers to every row of a test split.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.devices import in_float64
from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.data import batches_by_length

if TYPE_CHECKING:
    from ulm_prompt.prompt_lm.labels import LabelSets

# (log-probabilities (B, V), row numbers, step) -> symbols (B,)
Choose = Callable[[Tensor, Sequence[int], int], Tensor]

KEEP = 0.75  # rows that have ended leave a batch that shrinks to this share: leaving copies
BATCH_TOKENS = 65_536  # padded, of the rows that are read together


class Answer(NamedTuple):
    """The symbols before ``</s>``, the log-probability of each, and a beam's score of the whole."""

    symbols: list[int]
    scores: list[float]
    total: float = 0.0


def log_probabilities(logits: Tensor, pad: int, temperature: float = 1.0) -> Tensor:
    """(..., V) -> (..., V), ``<pad>`` ruled out, as fairseq's generator does."""
    scores = F.log_softmax(logits / temperature, dim=-1)
    scores[..., pad] = -torch.inf
    return scores


def likeliest(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """The greedy choice."""
    return scores.argmax(-1)


def sampler(seed: int, topk: int = 0, topp: float = 0.0, temperature: float = 1.0) -> Choose:
    """Draw from the distribution at ``temperature``, as fairseq's ``Sampling`` cuts it: among the
    fewest symbols whose probability exceeds ``topp``, else the ``topk`` likeliest, else all. A
    row's draws depend on the seed, its number and the step, not on its batch.
    """

    def choose(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
        probabilities = torch.softmax(in_float64(scores) / temperature, dim=-1)
        ranked, symbols = probabilities.sort(dim=-1, descending=True)  # (B, V)
        if topp > 0:
            before = ranked.cumsum(-1) - ranked
            ranked = ranked.masked_fill(before >= topp, 0.0)
        elif topk > 0:
            ranked[:, topk:] = 0.0
        cumulative = ranked.cumsum(-1)
        draws = [np.random.default_rng((seed, row, step)).random() for row in rows]
        draws = torch.tensor(draws, dtype=torch.float64, device=cumulative.device)
        rank = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)
        return symbols.gather(1, rank).squeeze(1).to(scores.device)

    return choose


@torch.inference_mode()
def follow(
    lm: CachedLM, state: State, rows: Sequence[int], max_labels: int, choose: Choose,
    labels: LabelSets,
) -> list[list[Answer]]:  # fmt: skip
    """Two answers to each row of ``state``, whose numbers are ``rows``: symbols that ``choose``
    takes from the whole vocabulary, and the likeliest within ``labels``.

    Both stand side by side in the cache, so that one step serves both. An answer ends before
    ``</s>``, after ``max_labels`` symbols, or where the labels allow nothing but ``</s>``.
    """
    size, device = (len(rows), 2, max_labels), lm.device
    symbols = torch.full(size, lm.eos, device=device)
    shares = torch.zeros(size, device=device)
    open_rows = torch.arange(len(rows), device=device)
    ended = torch.zeros(size[:2], dtype=torch.bool, device=device)
    label_states = torch.zeros_like(open_rows)
    parents = torch.zeros(size[:2], dtype=torch.long, device=device)  # one hypothesis at first
    for step in range(max_labels):
        scores = log_probabilities(state.logits, lm.pad).expand(-1, 2, -1)  # (B, 2, V)
        within = labels.mask(scores[:, 1], label_states).argmax(-1)
        chosen = torch.stack([choose(scores[:, 0], rows, step), within], dim=1)  # (B, 2)
        label_states = labels.following[label_states, within]
        chosen = chosen.masked_fill(ended, lm.eos)
        symbols[open_rows, :, step] = chosen
        shares[open_rows, :, step] = scores.gather(2, chosen.unsqueeze(2)).squeeze(2)
        ended = ended | (chosen == lm.eos)
        ended[:, 1] |= labels.ends[label_states]
        keep = (~ended.all(1)).nonzero().squeeze(1)
        if step + 1 == max_labels or not len(keep):
            break
        if len(keep) <= KEEP * len(rows):
            state, rows = state.select(keep), [rows[row] for row in keep.tolist()]
            open_rows, ended, label_states = open_rows[keep], ended[keep], label_states[keep]
            chosen = chosen[keep]
            parents = None if parents is None else parents[keep]
        state = lm.step(state, chosen, parents)
        parents = None
    lengths = (symbols != lm.eos).sum(2)  # every symbol behind </s> is </s>
    return [
        [Answer(*(part[:length] for part in parts)) for length, *parts in zip(*of_row)]
        for of_row in zip(lengths.tolist(), symbols.tolist(), shares.tolist())
    ]


@torch.inference_mode()
def beam_search(
    lm: CachedLM, state: State, beam: int, max_labels: int, labels: LabelSets | None = None,
    lenpen: float = 1.0, temperature: float = 1.0,
) -> list[list[Answer]]:  # fmt: skip
    """Each row's ``beam`` finished answers, best first, as fairseq's ``SequenceGenerator`` finds
    them.

    There the row itself is a forced prefix of the hypothesis, so its log-probability and its length
    take part in the total: (log p(row) + log p(answer and ``</s>``)) / length ** lenpen. A row is
    done when it has ``beam`` answers, or at ``max_labels`` symbols, after which only ``</s>`` may
    follow. ``state`` comes from a prefill that scored its rows.
    """
    batch, _, vocabulary = state.logits.shape
    beam = min(beam, vocabulary - 1)  # <pad> is never chosen
    finished: list[list[Answer]] = [[] for _ in range(batch)]
    rows = list(range(batch))
    # the open hypotheses, Q a row, best first: cumulative scores (-inf: not in use), symbols
    totals = state.row_scores.new_full((batch, beam), -torch.inf)
    totals[:, 0] = state.row_scores  # only the first is in use
    scores = totals.new_empty(batch, beam, 0)  # (B, Q, n), of each symbol
    symbols = scores.long()
    label_states = torch.zeros_like(totals).long()
    for number in range(max_labels + 1):
        following = log_probabilities(state.logits, lm.pad, temperature)
        following = following.expand(-1, beam, -1)  # (B, Q, V): at first there is one hypothesis
        if number == max_labels:
            others = torch.arange(vocabulary, device=lm.device) != lm.eos
            following = following.masked_fill(others, -torch.inf)
        elif labels is not None:
            following = labels.mask(following, label_states)
        totals = (totals.unsqueeze(2) + following).flatten(1)  # (B, Q * V)
        totals, flat = totals.topk(min(2 * beam, beam * vocabulary - 1))
        parents, chosen = flat // vocabulary, flat % vocabulary
        ends = (chosen == lm.eos) & (totals > -torch.inf)
        lengths = (state.lengths**lenpen).tolist()  # the last </s> counts, not the first
        for row, candidate in ends[:, :beam].nonzero().tolist():
            if len(done := finished[rows[row]]) < beam:
                path = (row, int(parents[row, candidate]))
                total = totals[row, candidate].item() / lengths[row]
                done.append(Answer(symbols[path].tolist(), scores[path].tolist(), total))
        # the best candidates that have not ended; of 2 * beam at most beam have
        rank = ends.long() * ends.shape[1] + torch.arange(ends.shape[1], device=lm.device)
        unended = rank.topk(beam, largest=False)[1]  # (B, Q)
        totals, parents, chosen = (each.gather(1, unended) for each in (totals, parents, chosen))
        hopeful = (totals > -torch.inf).any(1).tolist()  # False: the label sets are used up
        keep = [i for i, row in enumerate(rows) if len(finished[row]) < beam and hopeful[i]]
        if number == max_labels or not keep:
            break
        at = torch.arange(len(rows), device=lm.device)[:, None]
        latest = following[at, parents, chosen]
        scores = torch.cat([scores[at, parents], latest.unsqueeze(2)], dim=2)
        symbols = torch.cat([symbols[at, parents], chosen.unsqueeze(2)], dim=2)
        label_states = label_states[at, parents]
        if labels is not None:
            label_states = labels.following[label_states, chosen]
        if len(keep) <= KEEP * len(rows):
            kept, rows = torch.tensor(keep, device=lm.device), [rows[i] for i in keep]
            hypotheses = totals, scores, symbols, label_states, parents, chosen
            totals, scores, symbols, label_states, parents, chosen = (x[kept] for x in hypotheses)
            state = state.select(kept)
        before = state.visible.shape[1]  # one hypothesis before the first step
        state = lm.step(state, chosen, parents.clamp(max=before - 1))
    return [sorted(done, key=lambda answer: -answer.total) for done in finished]


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


class Decoded(NamedTuple):
    """The answer to one row over the whole vocabulary, and the one within the label sets."""

    row: int
    free: Answer
    within: Answer
    log_odds: float | None = None  # of ``within``, one of two labels, against the other


def decode(
    lm: CachedLM, rows: Sequence[Tensor], labels: LabelSets, options: Options,
    done: Container[int] = (),
) -> Iterator[list[Decoded]]:  # fmt: skip
    """Answers to ``rows``, ``</s> units <s>`` each, a batch at a time; none to a row of more than
    ``max_units``. Sampling draws the free answer; within the labels it is the best in any case.

    The batches depend on the rows and the options alone: one whose rows are all ``done`` is passed
    over, and the others stay what they were.
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
            width, score = (options.beam, max_labels), (options.lenpen, options.temperature)
            both = (beam_search(lm, state, *width, sets, *score) for sets in (None, labels))
            answers = [[best for best, *_ in of_row] for of_row in zip(*both)]
        else:
            state = lm.prefill(tokens)
            answers = follow(lm, state, numbers, max_labels, choose, labels)
        odds = _log_odds(state, labels, [within for _, within in answers])
        yield [Decoded(number, *two, odd) for number, two, odd in zip(numbers, answers, odds)]


def _log_odds(state: State, labels: LabelSets, answers: Sequence[Answer]) -> list[float | None]:
    """Of each answer to a row of ``state`` against the other label; None unless there are two."""
    symbols = labels.allowed[0].nonzero().squeeze(1).tolist()
    if len(symbols) != 2 or not labels.ends[labels.following[0, symbols]].all():
        return [None] * len(answers)
    first, second = state.logits[:, 0, symbols].T.tolist()  # (B,) each
    odds = [one - other for one, other in zip(first, second)]
    return [odd if answer.symbols == symbols[:1] else -odd for odd, answer in zip(odds, answers)]
