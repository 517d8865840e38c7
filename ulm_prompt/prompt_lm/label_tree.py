"""The probability of every label sequence of a task at once: one step a level of their tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cached_lm import CachedLM, State
from .search import log_probabilities

Labels = tuple[int, ...]


class LabelTree:
    """Label sequences, and the prefixes of them that the LM has to read.

    A level's hypotheses are all prefixes of that length which something may follow; they stand side
    by side in the cache, so that a task of single labels takes no step at all.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], eos: int) -> None:
        self.sequences: list[Labels] = list(dict.fromkeys(map(tuple, sequences)))
        self.longest = max(map(len, self.sequences))
        self._levels = self._prefixes()
        # of each level: which sequences, at which prefix, go on with which symbol
        self._arcs: list[tuple[Tensor, Tensor, Tensor]] = []
        for length, level in enumerate(self._levels):
            arcs = [
                (number, level[sequence[:length]], (*sequence, eos)[length])
                for number, sequence in enumerate(self.sequences)
                if len(sequence) >= length and sequence[:length] in level
            ]
            self._arcs.append(tuple(map(torch.tensor, zip(*arcs))))

    def _prefixes(self) -> list[dict[Labels, int]]:
        """Each level's prefixes with their places."""
        levels = []
        for length in range(self.longest):
            longer = (sequence for sequence in self.sequences if len(sequence) > length)
            prefixes = dict.fromkeys(sequence[:length] for sequence in longer)
            levels.append({prefix: place for place, prefix in enumerate(prefixes)})
        return levels

    @torch.inference_mode()
    def score(self, lm: CachedLM, state: State) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all S sequences after the rows of ``state``: in all, (B, S), and of
        each label, (B, S, longest), 0 behind the last.

        ``</s>`` counts where something else could follow (one sequence begins another), and not
        where a sequence can only end.
        """
        batch, device = len(state.lengths), lm.device
        shares = state.logits.new_zeros(batch, len(self.sequences), self.longest + 1)
        for length, (level, arcs) in enumerate(zip(self._levels, self._arcs)):
            if length:
                before = self._levels[length - 1]
                parents = torch.tensor([before[prefix[:-1]] for prefix in level], device=device)
                symbols = torch.tensor([prefix[-1] for prefix in level], device=device)
                state = lm.step(state, symbols.expand(batch, -1), parents.expand(batch, -1))
            scores = log_probabilities(state.logits, lm.pad)  # (B, prefixes, V)
            numbers, prefixes, symbols = (each.to(device) for each in arcs)
            shares[:, numbers, length] = scores[:, prefixes, symbols]
        totals = shares.sum(2)
        for number, sequence in enumerate(self.sequences):
            shares[:, number, len(sequence) :] = 0.0  # </s> is no label
        return totals, shares[:, :, : self.longest]
