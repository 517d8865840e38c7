"""How much of its attention the LM spends on the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import PromptLanguageModel, heads_of


@torch.inference_mode()
def attention_on_prompt(model: PromptLanguageModel, rows: Sequence[Tensor]) -> Tensor:
    """The share of attention that falls on each prefix position where the answer is read, at the
    rows' last symbol, averaged over rows: (L, H, P). What remains of 1 falls on the tokens.

    ``rows``: symbols ``</s> units <s>``, of any lengths. ``model`` has a prompt.
    """
    total = 0
    for row in rows:
        total = total + torch.stack(
            _of_one(model, row.to(model.lm.decoder.embed_tokens.weight.device))
        )
    return (total / len(rows)).float().cpu()


def _of_one(model: PromptLanguageModel, row: Tensor) -> list[Tensor]:
    x = model.embed(row[None], model.positions(len(row)))  # (1, T, D)
    mask = model.causal_mask(len(row))  # (T, P + T)
    shares = []
    for layer, prefix in zip(model.lm.decoder.layers, model.prefixes()):
        attention = layer.self_attn
        normed = layer.self_attn_layer_norm(x)
        query = heads_of(layer, attention.q_proj(normed[:, -1:]))  # (1, H, 1, D/H)
        own = heads_of(layer, attention.k_proj(normed))
        keys, _ = prefix.join(own, own)  # (1, H, P + T, D/H)
        scores = query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        shares.append(scores.float().softmax(-1)[0, :, 0, : prefix.keys.shape[2]])  # (H, P)
        x = model.block(layer, x, prefix, mask)
    return shares
