"""Sampling: a row's draws depend on the seed, its number and the step, not on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .search import Choose


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
