"""How a prompt starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fairseq.dataclass import ChoiceEnum

if TYPE_CHECKING:
    from .model import PromptLanguageModel
    from .row_dataset import RowDataset

METHODS = ChoiceEnum(["normal", "tokens"])
SAMPLE_ROWS = 64


@torch.no_grad()
def initialise(
    model: PromptLanguageModel, method: str, scale: float, rows: RowDataset, seed: int
) -> None:
    """Set the prompt's vectors in place.

    ``normal``: N(0, scale^2); as published with scale 1. ``tokens``: keys and values of each layer are that layer's
    own (layer-normed) inputs at random positions of random training rows, so that the prompt speaks the layer's
    language; ``<s>`` is the mean unit embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = model.prompt
    for parameter in prompt.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    if method == "normal":
        return
    chosen = torch.randperm(len(rows), generator=generator)[:SAMPLE_ROWS].tolist()
    batch = rows.collater([rows[index] for index in chosen])
    tokens = batch["net_input"]["tokens"]
    layers = model.lm.decoder.layers
    x = model.embed(tokens, model.positions(tokens.shape[1]))
    mask = model.causal_mask(tokens.shape[1])[:, prompt.length :]  # no prompt yet
    real = (tokens != rows.pad).flatten().nonzero().squeeze(1)
    for index, layer in enumerate(layers):
        normed = layer.self_attn_layer_norm(x).flatten(0, 1)  # (B * T, D)
        picks = real[torch.randint(len(real), (prompt.length,), generator=generator)]
        prompt.keys[index] = prompt.values[index] = normed[picks]
        x, _ = model.block(layer, x, None, mask)
    embeddings = model.lm.decoder.embed_tokens.weight
    prompt.sep.copy_(embeddings[4:].mean(0, keepdim=True))
