"""Which label symbols may come next: what training shows at each place, or its label sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class LabelSets:
    """A small automaton over symbols; every answer starts in state 0.

    ``allowed``: (N, V), whether a symbol may follow in a state. ``following``: (N, V), the state it
    leads to. ``ends``: (N,), whether nothing but ``</s>`` may follow.
    """

    def __init__(self, arcs: dict[tuple[int, int], int], vocabulary: int, eos: int) -> None:
        count = 1 + max(state for pair in arcs.items() for state in (pair[0][0], pair[1]))
        self.allowed = torch.zeros(count, vocabulary, dtype=torch.bool)
        self.following = torch.zeros(count, vocabulary, dtype=torch.long)
        for (state, symbol), target in arcs.items():
            self.allowed[state, symbol] = True
            self.following[state, symbol] = target
        others = self.allowed.clone()
        others[:, eos] = False
        self.ends = ~others.any(1)

    @classmethod
    def build(
        cls, kind: str, sequences: Iterable[Sequence[int]], vocabulary: int, eos: int
    ) -> LabelSets:
        """``slots``: at each place any symbol that some sequence has there; ``trie``: only whole
        sequences. ``</s>`` may follow where some sequence ends.
        """
        arcs: dict[tuple[int, int], int] = {}
        count = 1
        for sequence in dict.fromkeys(map(tuple, sequences)):
            state = 0
            for place, symbol in enumerate(sequence, start=1):
                target = place if kind == "slots" else arcs.get((state, symbol), count)
                count = max(count, target + 1)
                arcs[state, symbol] = target
                state = target
            arcs[state, eos] = state
        return cls(arcs, vocabulary, eos)

    def to(self, device: torch.device) -> LabelSets:
        """Move in place."""
        for name in ("allowed", "following", "ends"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def mask(self, scores: Tensor, states: Tensor) -> Tensor:
        """``scores``, (..., V), ruled out where ``states``, (...), do not allow the symbol."""
        return scores.masked_fill(~self.allowed[states], -torch.inf)
