"""Training the prompt behind the LM's key and value projections instead of before them.

A layer's prefix keys are K = W_k p + b_k. W_k is square, so K determines p: Adam can as well walk
in K, where a step moves every attention logit alike, and p is solved for when the prompt is saved.
The trained numbers are as many and the saved prompt is an ordinary one. In p-space small singular
values of W_k make the same walk many times longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor

from .prompt import Prompt

KEYS, VALUES = "projected.keys", "projected.values"  # beside the published names in a running state


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
    """The same prompt as vectors before the projections, as the published checkpoints hold it."""
    twin = Prompt(*prompt.keys.shape)
    twin.inputs.copy_(prompt.inputs)
    twin.sep.copy_(prompt.sep)
    for index, layer in enumerate(layers):
        twin.keys[index] = _solve(layer.self_attn.k_proj, prompt.keys[index])
        twin.values[index] = _solve(layer.self_attn.v_proj, prompt.values[index])
    return twin


def _solve(projection: torch.nn.Linear, projected: Tensor) -> Tensor:
    """p with ``projection(p)`` = ``projected``: (P, D), solved in float64."""
    target = (projected - projection.bias).double().cpu().T  # (D, P)
    solution = torch.linalg.lstsq(projection.weight.double().cpu(), target, driver="gelsd").solution
    return solution.T.to(projected)


@torch.no_grad()
def rounding(state: dict[str, Tensor], layers: Sequence[TransformerDecoderLayer]) -> float:
    """How far the float32 prompt of a running state is from what trained, 0 where that is the same.

    The largest relative error of a layer's prefix keys or values; it grows with the condition
    number of the LM's projections.
    """
    if KEYS not in state:
        return 0.0
    saved = Prompt.from_published_state(state, len(layers), "checkpoint")
    pairs = zip(project(saved, layers), (state[KEYS], state[VALUES]))
    errors = [(found - raw).norm(dim=(1, 2)) / raw.norm(dim=(1, 2)) for found, raw in pairs]
    return torch.cat(errors).max().item()
