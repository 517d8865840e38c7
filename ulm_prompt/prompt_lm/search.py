"""Answers symbol by symbol: greedy, sampled, or within the label sets; several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ulm_prompt.prompt_lm.cache import CachedLM, State
from ulm_prompt.prompt_lm.labels import LabelSets

# (log-probabilities (B, V), row numbers, step) -> symbols (B,)
Choose = Callable[[Tensor, Sequence[int], int], Tensor]

KEEP = 0.75  # rows that have ended leave the batch when no more than this part goes on: it copies


@dataclass
class Answer:
    """The symbols before ``</s>`` and the log-probability that the LM gave each."""

    symbols: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ended: bool = False


def log_probabilities(logits: Tensor, pad: int, temperature: float = 1.0) -> Tensor:
    """(..., V) -> (..., V), ``<pad>`` ruled out, as fairseq's generator does."""
    scores = F.log_softmax(logits / temperature, dim=-1)
    scores[..., pad] = -torch.inf
    return scores


def likeliest(scores: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """The greedy choice."""
    return scores.argmax(-1)


@dataclass
class Search:
    """One way to answer: how a symbol is chosen, and among which (None: the whole vocabulary)."""

    choose: Choose = likeliest
    labels: LabelSets | None = None

    def start(self, rows: Sequence[int], device: torch.device) -> None:
        """Begin an answer to each of ``rows``, row numbers."""
        self.answers = [Answer() for _ in rows]
        self.open = list(self.answers)  # of the rows that are still in the batch
        self.places = torch.zeros(len(rows), dtype=torch.long, device=device)  # in ``labels``

    def extend(
        self, scores: Tensor, rows: Sequence[int], eos: int, number: int, last: bool
    ) -> Tensor:
        """Choose the ``number``-th symbol of each open answer by ``scores``, (B, V): returns (B,).

        An answer ends before ``</s>``, after the ``last`` symbol that it may have, or where the
        labels allow nothing but ``</s>``.
        """
        permitted = scores if self.labels is None else self.labels.mask(scores, self.places)
        symbols = self.choose(permitted, rows, number)  # (B,)
        chosen = scores.gather(1, symbols[:, None]).squeeze(1)
        stops = [last] * len(rows)
        if self.labels is not None:
            self.places = self.labels.following[self.places, symbols]
            stops = [last or end for end in self.labels.ends[self.places].tolist()]
        for answer, symbol, score, stop in zip(self.open, symbols.tolist(), chosen.tolist(), stops):
            if not answer.ended and symbol != eos:
                answer.symbols.append(symbol)
                answer.scores.append(score)
            answer.ended |= stop or symbol == eos
        return symbols

    def keep(self, index: Tensor) -> None:
        """Only the rows at ``index`` stay in the batch."""
        self.open = [self.open[place] for place in index.tolist()]
        self.places = self.places[index]

    @property
    def over(self) -> bool:
        return all(answer.ended for answer in self.open)


@torch.inference_mode()
def follow(
    lm: CachedLM,
    state: State,
    rows: Sequence[int],
    max_labels: int,
    *searches: Search,
) -> list[list[Answer]]:
    """Each search's answers to the rows of ``state``, whose numbers are ``rows``.

    The searches stand side by side in the cache, so that a step of all of them is one step.
    """
    for search in searches:
        search.start(rows, lm.device)
    active = [(search, 0) for search in searches]  # and where its hypothesis stands
    for number in range(max_labels):
        scores = log_probabilities(state.logits, lm.pad)  # (B, Q, V)
        last = number + 1 == max_labels
        extended = [
            (search, column, search.extend(scores[:, column], rows, lm.eos, number, last))
            for search, column in active
        ]
        extended = [entry for entry in extended if not entry[0].over]
        if not extended:
            break
        active = [(search, column) for column, (search, _, _) in enumerate(extended)]
        parents = torch.tensor([column for _, column, _ in extended], device=lm.device)  # (Q,)
        symbols = torch.stack([chosen for _, _, chosen in extended], dim=1)  # (B, Q)
        of_each_row = zip(*(search.open for search, _ in active))
        keep = [
            place
            for place, answers in enumerate(of_each_row)
            if not all(answer.ended for answer in answers)
        ]
        if len(keep) <= KEEP * len(rows):
            index = torch.tensor(keep, device=lm.device)
            state, symbols = state.select(keep), symbols[index]
            rows = [rows[place] for place in keep]
            for search, _ in active:
                search.keep(index)
        state = lm.step(state, symbols, parents.expand(len(rows), -1))
    return [search.answers for search in searches]
