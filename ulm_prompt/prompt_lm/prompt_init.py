"""How a prompt starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from pipeline.errors import UserError

from .projection import project

if TYPE_CHECKING:
    from .model import PromptLanguageModel
    from .row_dataset import RowDataset

METHODS = ChoiceEnum(["normal", "tokens", "quiet"])
SAMPLE_ROWS = 64
QUIET_LOGITS = 4.0  # how far "quiet" lowers the mean attention logit of a prefix position
QUIET_VALUES = 0.3  # how much of its distance from the mean value a prefix value keeps


@torch.no_grad()
def initialise(
    model: PromptLanguageModel, method: str, scale: float, rows: RowDataset, seed: int
) -> None:
    """Set the prompt's vectors in place.

    ``normal``: N(0, scale^2); as published with scale 1. ``tokens``: each layer's own inputs at
    random positions of random training rows, so that the prompt speaks the layer's language, and
    the LM's ``<s>``. ``quiet``: the same behind the projections (``projected`` prompts only), with
    keys that draw little attention and values near the mean, so that training starts from a nearly
    undisturbed LM.
    """
    prompt = model.prompt
    if method == "quiet" and not prompt.projected:
        raise UserError("init=quiet: needs space=projected")
    generator = torch.Generator().manual_seed(seed)
    for parameter in prompt.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    if method != "normal":
        _from_tokens(model, method == "quiet", rows, generator)
    elif prompt.projected:
        prompt.projected = False
        prompt.keys[:], prompt.values[:] = project(prompt, model.lm.decoder.layers)
        prompt.projected = True


def _from_tokens(
    model: PromptLanguageModel, quiet: bool, rows: RowDataset, generator: torch.Generator
) -> None:
    prompt, decoder = model.prompt, model.lm.decoder
    chosen = torch.randperm(len(rows), generator=generator)[:SAMPLE_ROWS].tolist()
    tokens = rows.collater([rows[index] for index in chosen])["net_input"]["tokens"]  # (B, T)
    real = tokens != rows.pad
    prompt.sep.copy_(decoder.embed_tokens.weight[:1])
    x = model.embed(tokens, model.positions(tokens.shape[1]))  # (B, T, D)
    mask = model.causal_mask(tokens.shape[1])[:, prompt.length :]  # no prompt yet

    def draw(vectors: Tensor) -> Tensor:  # (N, D) -> (P, D)
        return vectors[torch.randint(len(vectors), (prompt.length,), generator=generator)]

    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        inputs = layer.self_attn_layer_norm(x)[real]  # (N, D)
        keys = values = inputs
        if prompt.projected:
            keys, values = attention.k_proj(inputs), attention.v_proj(inputs)
        prompt.keys[index], prompt.values[index] = draw(keys), draw(values)
        if quiet:
            query = attention.q_proj(inputs).mean(0).view(layer.nh, -1)  # (H, D/H)
            unit_logit = query * math.sqrt(query.shape[1]) / query.square().sum(1, keepdim=True)
            prompt.keys[index] -= QUIET_LOGITS * unit_logit.flatten()
            prompt.values[index] = values.mean(0).lerp(prompt.values[index], QUIET_VALUES)
        x = model.block(layer, x, None, mask)
