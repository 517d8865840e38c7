"""Answers symbol by symbol: greedy, sampled or within the label sets, side by side; and beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.devices import in_float64
from ulm_prompt.prompt_lm.cache import CachedLM, State

if TYPE_CHECKING:
    from ulm_prompt.prompt_lm.labels import LabelSets

# (log-probabilities (B, V), row numbers, step) -> symbols (B,)
Choose = Callable[[Tensor, Sequence[int], int], Tensor]

KEEP = 0.75  # rows that have ended leave a batch that shrinks to this share: leaving copies


@dataclass
class Answer:
    """The symbols before ``</s>`` and the log-probability that the LM gave each."""

    symbols: list[int]
    scores: list[float]


def log_probabilities(logits: Tensor, pad: int, temperature: float = 1.0) -> Tensor:
    """(..., V) -> (..., V), ``<pad>`` ruled out, as fairseq's generator does."""
    scores = F.log_softmax(logits / temperature, dim=-1)
    scores[..., pad] = -torch.inf
    return scores


def likeliest(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """The greedy choice."""
    return scores.argmax(-1)


def sampler(seed: int, topk: int = 0, topp: float = 0.0, temperature: float = 1.0) -> Choose:
    """Draw from the distribution at ``temperature``, as fairseq's ``Sampling`` cuts it.

    ``topp`` > 0: among the fewest symbols whose probability exceeds it; else ``topk`` > 0: among
    the ``topk`` likeliest; else among all. A row's draws depend on the seed, its number and the
    step, not on its batch.
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
    lm: CachedLM,
    state: State,
    rows: Sequence[int],
    max_labels: int,
    choose: Choose,
    labels: LabelSets,
) -> list[list[Answer]]:
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


@dataclass
class Hypothesis:
    """A finished answer of a beam and its normalised score."""

    answer: Answer
    score: float


@dataclass
class Beams:
    """The open hypotheses of B rows, Q each, best first."""

    state: State
    totals: Tensor  # (B, Q) cumulative scores; -inf: not in use
    symbols: Tensor  # (B, Q, n)
    scores: Tensor  # (B, Q, n), of each symbol
    label_states: Tensor  # (B, Q)

    def select(self, rows: Tensor) -> Beams:
        """Only the rows at ``rows``."""
        tensors = (self.totals, self.symbols, self.scores, self.label_states)
        return Beams(self.state.select(rows), *(tensor[rows] for tensor in tensors))


@torch.inference_mode()
def beam_search(
    lm: CachedLM,
    state: State,
    beam: int,
    max_labels: int,
    labels: LabelSets | None = None,
    lenpen: float = 1.0,
    temperature: float = 1.0,
) -> list[list[Hypothesis]]:
    """Each row's ``beam`` finished hypotheses, best first, as fairseq's ``SequenceGenerator`` finds
    them.

    There the row itself is a forced prefix of the hypothesis, so its log-probability and its length
    take part in the score: (log p(row) + log p(answer and ``</s>``)) / length ** lenpen. A row is
    done when it has ``beam`` hypotheses, or at ``max_labels`` symbols, after which only ``</s>``
    may follow. ``state`` comes from a prefill that scored its rows.
    """
    batch, _, vocabulary = state.logits.shape
    beam = min(beam, vocabulary - 1)  # <pad> is never chosen
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    rows = list(range(batch))
    totals = state.row_scores.new_full((batch, beam), -torch.inf)
    totals[:, 0] = state.row_scores  # only the first hypothesis is in use
    nothing = totals.new_empty(batch, beam, 0)
    beams = Beams(state, totals, nothing.long(), nothing, torch.zeros_like(totals).long())
    for number in range(max_labels + 1):
        scores = log_probabilities(beams.state.logits, lm.pad, temperature)
        scores = scores.expand(-1, beam, -1)  # (B, Q, V): at first there is one hypothesis
        if number == max_labels:
            others = torch.arange(vocabulary, device=lm.device) != lm.eos
            scores = scores.masked_fill(others, -torch.inf)
        elif labels is not None:
            scores = labels.mask(scores, beams.label_states)
        totals = (beams.totals.unsqueeze(2) + scores).flatten(1)  # (B, Q * V)
        totals, flat = totals.topk(min(2 * beam, beam * vocabulary - 1))
        parents, symbols = flat // vocabulary, flat % vocabulary
        ends = (symbols == lm.eos) & (totals > -torch.inf)
        lengths = (beams.state.lengths**lenpen).tolist()  # the last </s> counts, not the first
        for row, candidate in ends[:, :beam].nonzero().tolist():
            done = finished[rows[row]]
            if len(done) < beam:
                path = (row, int(parents[row, candidate]))
                answer = Answer(beams.symbols[path].tolist(), beams.scores[path].tolist())
                done.append(Hypothesis(answer, totals[row, candidate].item() / lengths[row]))
        # the best candidates that have not ended; of 2 * beam at most beam have
        rank = ends.long() * ends.shape[1] + torch.arange(ends.shape[1], device=lm.device)
        unended = rank.topk(beam, largest=False)[1]  # (B, Q)
        parents, symbols = parents.gather(1, unended), symbols.gather(1, unended)
        beams = _extended(beams, parents, symbols, totals.gather(1, unended), scores)
        hopeful = (beams.totals > -torch.inf).any(1).tolist()  # False: the label sets are used up
        keep = [index for index, row in enumerate(rows) if len(finished[row]) < beam]
        keep = [index for index in keep if hopeful[index]]
        if number == max_labels or not keep:
            break
        if labels is not None:
            beams.label_states = labels.following[beams.label_states, symbols]
        if len(keep) <= KEEP * len(rows):
            chosen = torch.tensor(keep, device=lm.device)
            beams, parents, rows = beams.select(chosen), parents[chosen], [rows[i] for i in keep]
        before = beams.state.visible.shape[1]  # one hypothesis before the first step
        beams.state = lm.step(beams.state, beams.symbols[:, :, -1], parents.clamp(max=before - 1))
    return [sorted(done, key=lambda hypothesis: -hypothesis.score) for done in finished]


def _extended(
    beams: Beams, parents: Tensor, symbols: Tensor, totals: Tensor, scores: Tensor
) -> Beams:
    """Each hypothesis is its parent and one symbol more; ``scores``: (B, Q, V), the parents'."""
    history = parents.unsqueeze(2).expand(-1, -1, beams.symbols.shape[2])
    of_symbols = scores.flatten(1).gather(1, parents * scores.shape[2] + symbols)
    return Beams(
        beams.state,
        totals,
        torch.cat([beams.symbols.gather(1, history), symbols.unsqueeze(2)], dim=2),
        torch.cat([beams.scores.gather(1, history), of_symbols.unsqueeze(2)], dim=2),
        beams.label_states.gather(1, parents),
    )
