"""Beam search with the meaning it has in fairseq's ``SequenceGenerator``.

There the row itself is a forced prefix of the hypothesis: its log-probability and its length take
part in the score, (log p(row) + log p(answer and ``</s>``)) / length ** lenpen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.labels import LabelSets
from ulm_prompt.prompt_lm.search import KEEP, Answer, log_probabilities


@dataclass
class Hypothesis:
    """A finished answer and its normalised score."""

    answer: Answer
    score: float


@dataclass
class Beams:
    """What B rows have on their way, Q hypotheses each, best first."""

    state: State
    totals: Tensor  # (B, Q) cumulative scores; -inf: not in use
    symbols: Tensor  # (B, Q, n)
    scores: Tensor  # (B, Q, n), of each symbol
    places: Tensor  # (B, Q), states of the label sets

    def select(self, places: list[int]) -> Beams:
        """Only the rows at ``places``."""
        index = torch.tensor(places, device=self.totals.device)
        tensors = (self.totals, self.symbols, self.scores, self.places)
        return Beams(self.state.select(places), *(tensor[index] for tensor in tensors))


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
    """Each row's ``beam`` finished hypotheses, best first.

    A row is done when it has so many, or at ``max_labels`` symbols, after which only ``</s>`` may
    follow. ``state`` comes from a prefill that scored its rows.
    """
    batch, _, vocabulary = state.logits.shape
    beam = min(beam, vocabulary - 1)  # <pad> is never chosen
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    rows = list(range(batch))
    beams = _start(state, beam)
    for number in range(max_labels + 1):
        scores = log_probabilities(beams.state.logits, lm.pad, temperature)
        scores = scores.expand(-1, beam, -1)  # (B, Q, V): at first there is one hypothesis
        if number == max_labels:
            scores = _only(scores, lm.eos)
        elif labels is not None:
            scores = labels.mask(scores, beams.places)
        totals = (beams.totals.unsqueeze(2) + scores).flatten(1)  # (B, Q * V)
        found, flat = totals.topk(min(2 * beam, beam * vocabulary - 1))
        parents, symbols = flat // vocabulary, flat % vocabulary
        ends = (symbols == lm.eos) & (found > -torch.inf)
        lengths = (beams.state.lengths**lenpen).tolist()  # the last </s> counts, not the first
        for place, candidate in ends[:, :beam].nonzero().tolist():
            done = finished[rows[place]]
            if len(done) < beam:
                path = (place, int(parents[place, candidate]))
                answer = Answer(beams.symbols[path].tolist(), beams.scores[path].tolist())
                done.append(Hypothesis(answer, found[place, candidate].item() / lengths[place]))
        # the best candidates that have not ended; of 2 * beam at most beam have
        rank = ends.long() * ends.shape[1] + torch.arange(ends.shape[1], device=lm.device)
        going = rank.topk(beam, largest=False)[1]  # (B, Q)
        parents, symbols = parents.gather(1, going), symbols.gather(1, going)
        beams = _advanced(beams, parents, symbols, found.gather(1, going), scores)
        hopeful = (beams.totals > -torch.inf).any(1).tolist()  # False: the label sets are used up
        keep = [
            place
            for place, row in enumerate(rows)
            if len(finished[row]) < beam and number < max_labels and hopeful[place]
        ]
        if not keep:
            break
        if labels is not None:
            beams.places = labels.following[beams.places, symbols]
        if len(keep) <= KEEP * len(rows):
            beams, parents = beams.select(keep), parents[keep]
            rows = [rows[place] for place in keep]
        before = beams.state.visible.shape[1]  # one hypothesis before the first step
        beams.state = lm.step(beams.state, beams.symbols[:, :, -1], parents.clamp(max=before - 1))
    return [sorted(done, key=lambda hypothesis: -hypothesis.score) for done in finished]


def _start(state: State, beam: int) -> Beams:
    """Only the first hypothesis is in use."""
    batch = len(state.lengths)
    totals = state.row_scores.new_full((batch, beam), -torch.inf)
    totals[:, 0] = state.row_scores
    nothing = totals.new_empty(batch, beam, 0)
    places = torch.zeros_like(totals, dtype=torch.long)
    return Beams(state, totals, nothing.long(), nothing, places)


def _only(scores: Tensor, symbol: int) -> Tensor:
    """``scores``, (..., V), with every other symbol ruled out."""
    kept = torch.full_like(scores, -torch.inf)
    kept[..., symbol] = scores[..., symbol]
    return kept


def _advanced(
    beams: Beams, parents: Tensor, symbols: Tensor, totals: Tensor, scores: Tensor
) -> Beams:
    """Each hypothesis is its parent and one symbol more; ``scores``: (B, Q, V), the parents'."""
    history = parents.unsqueeze(2).expand(-1, -1, beams.symbols.shape[2])
    own = scores.flatten(1).gather(1, parents * scores.shape[2] + symbols)
    return Beams(
        beams.state,
        totals,
        torch.cat([beams.symbols.gather(1, history), symbols.unsqueeze(2)], dim=2),
        torch.cat([beams.scores.gather(1, history), own.unsqueeze(2)], dim=2),
        beams.places.gather(1, parents),
    )
