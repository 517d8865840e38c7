"""Search for answers with the cache: greedy or sampled answers, answers within the label sets, and
beam search. ``decode`` gives two answers to every row of a test split.
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

KEEP = 0.75  # ended rows are removed if at most this share is open: removing copies the cache
BATCH_TOKENS = 65_536  # padded tokens in one prefill


class Answer(NamedTuple):
    """The symbols before ``</s>``, the log-probability of each, and the total score in a beam."""

    symbols: list[int]
    scores: list[float]
    total: float = 0.0


def log_probabilities(logits: Tensor, pad: int, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities, (..., V), -inf for ``<pad>`` as in fairseq's generator."""
    scores = F.log_softmax(logits / temperature, dim=-1)
    scores[..., pad] = -torch.inf
    return scores


def likeliest(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """Choose the likeliest symbols: greedy search."""
    return scores.argmax(-1)


def sampler(seed: int, topk: int = 0, topp: float = 0.0, temperature: float = 1.0) -> Choose:
    """Return a function that draws symbols at ``temperature``, like fairseq's ``Sampling``: from
    the fewest symbols with a total probability over ``topp``, else from the ``topk`` likeliest,
    else from all. A draw depends on the seed, the row number and the step, not on the batch.
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
def step_search(
    lm: CachedLM, state: State, rows: Sequence[int], max_labels: int, choose: Choose,
    label_sets: LabelSets,
) -> list[list[Answer]]:  # fmt: skip
    """Return two answers per row of ``state``: one of symbols that ``choose`` takes from the whole
    vocabulary, and one of the likeliest symbols within ``label_sets``. ``rows``: the row numbers.

    Both answers are hypotheses of the same cache, so one step computes both. An answer ends before
    ``</s>``, after ``max_labels`` symbols, or when ``label_sets`` allow only ``</s>``.
    """
    shape, device = (len(rows), 2, max_labels), lm.device
    symbols = torch.full(shape, lm.eos, device=device)
    symbol_scores = torch.zeros(shape, device=device)
    open_rows = torch.arange(len(rows), device=device)
    ended = torch.zeros(shape[:2], dtype=torch.bool, device=device)
    label_states = torch.zeros_like(open_rows)
    parents = torch.zeros(shape[:2], dtype=torch.long, device=device)  # a prefill has 1 hypothesis
    for step in range(max_labels):
        scores = log_probabilities(state.logits, lm.pad).expand(-1, 2, -1)  # (B, 2, V)
        within = label_sets.mask(scores[:, 1], label_states).argmax(-1)
        chosen = torch.stack([choose(scores[:, 0], rows, step), within], dim=1)  # (B, 2)
        label_states = label_sets.next_states[label_states, within]
        chosen = chosen.masked_fill(ended, lm.eos)
        symbols[open_rows, :, step] = chosen
        symbol_scores[open_rows, :, step] = scores.gather(2, chosen.unsqueeze(2)).squeeze(2)
        ended = ended | (chosen == lm.eos)
        ended[:, 1] |= label_sets.ends[label_states]
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
    lengths = (symbols != lm.eos).sum(2)  # (B, 2); after </s>, every symbol is </s>
    return [
        [Answer(answer[:length], scores[:length]) for length, answer, scores in zip(*row)]
        for row in zip(lengths.tolist(), symbols.tolist(), symbol_scores.tolist())
    ]


@torch.inference_mode()
def beam_search(
    lm: CachedLM, state: State, beam: int, max_labels: int, label_sets: LabelSets | None = None,
    lenpen: float = 1.0, temperature: float = 1.0,
) -> list[list[Answer]]:  # fmt: skip
    """Return up to ``beam`` finished answers per row, best first, as fairseq's SequenceGenerator.

    In fairseq, the row is a forced prefix of every hypothesis, so the row and its length count in
    the total: (log p(row) + log p(answer and ``</s>``)) / length ** lenpen. A row is finished when
    it has ``beam`` answers. After ``max_labels`` symbols, only ``</s>`` is allowed. ``state``
    comes from a prefill with ``row_temperature``.
    """
    batch, _, vocabulary = state.logits.shape
    beam = min(beam, vocabulary - 1)  # <pad> is never chosen
    finished: list[list[Answer]] = [[] for _ in range(batch)]
    rows = list(range(batch))
    # Q open hypotheses per row, best first: total scores (-inf: unused), symbol scores, symbols
    totals = state.row_scores.new_full((batch, beam), -torch.inf)
    totals[:, 0] = state.row_scores  # at first, only one is used
    scores = totals.new_empty(batch, beam, 0)  # (B, Q, n)
    symbols = scores.long()
    label_states = torch.zeros_like(totals).long()
    for step in range(max_labels + 1):
        step_scores = log_probabilities(state.logits, lm.pad, temperature)
        step_scores = step_scores.expand(-1, beam, -1)  # (B, Q, V); a prefill has 1 hypothesis
        if step == max_labels:
            not_eos = torch.arange(vocabulary, device=lm.device) != lm.eos
            step_scores = step_scores.masked_fill(not_eos, -torch.inf)
        elif label_sets is not None:
            step_scores = label_sets.mask(step_scores, label_states)
        totals = (totals.unsqueeze(2) + step_scores).flatten(1)  # (B, Q * V)
        totals, flat = totals.topk(min(2 * beam, beam * vocabulary - 1))
        parents, chosen = flat // vocabulary, flat % vocabulary
        ends = (chosen == lm.eos) & (totals > -torch.inf)
        lengths = (state.lengths**lenpen).tolist()  # counts the last </s>, not the first
        for row, candidate in ends[:, :beam].nonzero().tolist():
            if len(answers := finished[rows[row]]) < beam:
                parent = (row, int(parents[row, candidate]))
                total = totals[row, candidate].item() / lengths[row]
                answers.append(Answer(symbols[parent].tolist(), scores[parent].tolist(), total))
        # the best candidates that have not ended; at most beam of 2 * beam have ended
        rank = ends.long() * ends.shape[1] + torch.arange(ends.shape[1], device=lm.device)
        best = rank.topk(beam, largest=False)[1]  # (B, Q)
        totals, parents, chosen = (tensor.gather(1, best) for tensor in (totals, parents, chosen))
        has_open = (totals > -torch.inf).any(1).tolist()  # False: no more answers are allowed
        keep = [i for i, row in enumerate(rows) if len(finished[row]) < beam and has_open[i]]
        if step == max_labels or not keep:
            break
        row_index = torch.arange(len(rows), device=lm.device)[:, None]
        chosen_scores = step_scores[row_index, parents, chosen]  # (B, Q)
        scores = torch.cat([scores[row_index, parents], chosen_scores.unsqueeze(2)], dim=2)
        symbols = torch.cat([symbols[row_index, parents], chosen.unsqueeze(2)], dim=2)
        label_states = label_states[row_index, parents]
        if label_sets is not None:
            label_states = label_sets.next_states[label_states, chosen]
        if len(keep) <= KEEP * len(rows):
            kept, rows = torch.tensor(keep, device=lm.device), [rows[i] for i in keep]
            hypotheses = totals, scores, symbols, label_states, parents, chosen
            totals, scores, symbols, label_states, parents, chosen = (x[kept] for x in hypotheses)
            state = state.select(kept)
        last = state.visible.shape[1] - 1  # 0 after the prefill, which has 1 hypothesis
        state = lm.step(state, chosen, parents.clamp(max=last))
    return [sorted(answers, key=lambda answer: -answer.total) for answers in finished]


@dataclass(frozen=True)
class Options:
    """The settings of the search. The default is greedy search, as published."""

    max_labels: int  # longer answers are cut
    max_units: int = 16_384  # longer rows get no answer: memory grows with the square of the length
    batch_size: int = 64
    beam: int = 1
    lenpen: float = 1.0
    sampling: bool = False
    topk: int = 0
    topp: float = 0.0
    temperature: float = 1.0
    seed: int = 1


class Decoded(NamedTuple):
    """Two answers to one row: over the whole vocabulary, and within the label sets."""

    row: int
    free: Answer
    within: Answer
    log_odds: float | None = None  # if there are two labels: of ``within`` against the other label


def decode(
    lm: CachedLM, rows: Sequence[Tensor], label_sets: LabelSets, options: Options,
    done: Container[int] = (),
) -> Iterator[list[Decoded]]:  # fmt: skip
    """Yield the answers to ``rows``, ``</s> units <s>`` each, batch by batch. A row of more than
    ``max_units`` gets none. Sampling draws the free answer, never the answer in ``label_sets``.

    The batches depend only on the rows and the options. A batch is skipped if its rows are all
    ``done``. This does not change the other batches.
    """
    label_sets = label_sets.to(lm.device)
    sizes = np.array([len(row) for row in rows])
    order = sizes.argsort(kind="mergesort")
    order = order[sizes[order] <= options.max_units + 2]
    choose = likeliest
    if options.sampling:
        choose = sampler(options.seed, options.topk, options.topp, options.temperature)
    most_tokens = max(BATCH_TOKENS, options.max_units + 2)
    max_labels, label_map = options.max_labels, lm.model.label_map
    if label_map is not None:  # after its labels only </s> is possible: no step is needed
        max_labels = min(max_labels, label_map.count)
    for batch in batches_by_length(order, sizes, most_tokens, options.batch_size):
        numbers = batch.tolist()
        if all(number in done for number in numbers):
            continue
        tokens = [rows[number] for number in numbers]
        if options.beam > 1:
            state = lm.prefill(tokens, row_temperature=options.temperature)
            limits, scoring = (options.beam, max_labels), (options.lenpen, options.temperature)
            free, within = (
                [beam[0] for beam in beam_search(lm, state, *limits, sets, *scoring)]
                for sets in (None, label_sets)
            )
        else:
            state = lm.prefill(tokens)
            free, within = zip(*step_search(lm, state, numbers, max_labels, choose, label_sets))
        log_odds = _log_odds(state, label_sets, within)
        yield [Decoded(*fields) for fields in zip(numbers, free, within, log_odds)]


def _log_odds(state: State, label_sets: LabelSets, answers: Sequence[Answer]) -> list[float | None]:
    """Return the log-odds of each answer against the other label; None unless there are two."""
    symbols = label_sets.allowed[0].nonzero().squeeze(1).tolist()
    if len(symbols) != 2 or not label_sets.ends[label_sets.next_states[0, symbols]].all():
        return [None] * len(answers)
    first, second = state.logits[:, 0, symbols].T.tolist()  # (B,) each
    odds = [logit - other for logit, other in zip(first, second)]
    return [odd if answer.symbols == symbols[:1] else -odd for odd, answer in zip(odds, answers)]
