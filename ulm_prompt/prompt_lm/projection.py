"""Training the prompt behind the LM's key and value projections instead of before them.

A layer's prefix keys are K = W_k p + b_k. W_k is square, so K determines p: Adam can as well walk in K, where a step
moves every attention logit alike, and p is solved for when the prompt is saved. The trained numbers are as many and
the saved prompt is an ordinary one. In p-space small singular values of W_k make the same walk many times longer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor

from pipeline.errors import UserError

from .prompt import Prompt

KEYS, VALUES = "projected.keys", "projected.values"  # beside the published names in a running state
TOLERANCE = 1e-3


@torch.no_grad()
def project(prompt: Prompt, layers: Iterable[TransformerDecoderLayer]) -> tuple[Tensor, Tensor]:
    """The prefix keys and values behind the projections, (L, P, D) each."""
    if prompt.projected:
        return prompt.keys.detach(), prompt.values.detach()
    attentions = [layer.self_attn for layer in layers]
    keys = [attention.k_proj(key) for attention, key in zip(attentions, prompt.keys)]
    values = [attention.v_proj(value) for attention, value in zip(attentions, prompt.values)]
    return torch.stack(keys), torch.stack(values)


@torch.no_grad()
def in_input_space(prompt: Prompt, layers: Iterable[TransformerDecoderLayer]) -> Prompt:
    """The same prompt as vectors before the projections, as the published checkpoints hold it.

    Raises ``UserError`` when a projection is too near to singular for that.
    """
    twin = Prompt(*prompt.keys.shape)
    twin.inputs.copy_(prompt.inputs)
    twin.sep.copy_(prompt.sep)
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        twin.keys[index] = _solve(attention.k_proj, prompt.keys[index], f"layer {index}'s keys")
        twin.values[index] = _solve(
            attention.v_proj, prompt.values[index], f"layer {index}'s values"
        )
    return twin


def _solve(projection: torch.nn.Linear, projected: Tensor, name: str) -> Tensor:
    """p with ``projection(p)`` = ``projected``: (P, D), solved in float64."""
    target = (projected - projection.bias).double().cpu().T  # (D, P)
    solution = torch.linalg.lstsq(projection.weight.double().cpu(), target, driver="gelsd").solution
    found = solution.T.to(projected)
    error = (projection(found) - projected).norm() / projected.norm()
    if not error < TOLERANCE:
        raise UserError(
            f"{name}: the LM's projection is nearly singular (relative error {error:.1e} going back); "
            "train with --set space=input"
        )
    return found
