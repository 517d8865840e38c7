"""The trainable part: keys and values for every layer, and the ``<s>`` vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor, nn

from pipeline.errors import UserError

if TYPE_CHECKING:
    from ulm_prompt.prompt_lm.data import RowDataset
    from ulm_prompt.prompt_lm.model import PromptLanguageModel

# names in published checkpoints
_INPUTS = "decoder.prefix_embed_prompts.weight", "decoder.infix_embed_prompts.weight"
_SEP = "decoder.sep_embed.weight"
_KEY = "decoder.deep_key_embed_prompts.{}.weight"
_VALUE = "decoder.deep_value_embed_prompts.{}.weight"
_TOKENS = "decoder.embed_tokens.weight"  # of an LM beside the prompt
# names that ours have beside them
KEYS, VALUES = "projected.keys", "projected.values"  # in a running state


class Prompt(nn.Module):
    """P vectors per layer on the key and on the value side, before the layer's frozen projections
    (while it trains ``projected``, behind them: see ``project``).

    ``infix``: they stand where ``<s>`` is and only ``<s>`` and later tokens see them; else they are
    a prefix, which all tokens see. ``keys`` and ``values``: (L, P, D). ``sep``: (1, D), stands for
    ``<s>`` before scaling and position. ``inputs``: (P, D), the published input vectors of the
    prompt's positions. Every layer replaces the keys and values of these positions, so nothing
    reads what becomes of the inputs: they take part in the published parameter count,
    P*D*(1+2L) + D, and in no computation.
    """

    def __init__(
        self,
        layers: int,
        length: int,
        width: int,
        dropout: float = 0.0,
        projected: bool = False,
        infix: bool = False,
    ) -> None:
        super().__init__()
        self.projected, self.infix = projected, infix
        self.inputs = nn.Parameter(torch.empty(length, width))
        self.keys = nn.Parameter(torch.empty(layers, length, width))
        self.values = nn.Parameter(torch.empty(layers, length, width))
        self.sep = nn.Parameter(torch.empty(1, width))
        self.dropout = nn.Dropout(dropout)  # one mask a step, shared by the batch
        self.length = length  # P
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # as published: N(0, 1)

    @property
    def lengths(self) -> dict[str, int]:
        """The lengths as flags and records name them."""
        names = "prefix_prompt_length", "infix_prompt_length"
        return {name: self.length * (index == self.infix) for index, name in enumerate(names)}

    def published_state(self) -> dict[str, Tensor]:
        """The tensors under the names of the published checkpoints."""
        state = dict.fromkeys(_INPUTS, self.inputs[:0])
        state[_INPUTS[self.infix]] = self.inputs
        for layer in range(self.keys.shape[0]):
            state[_KEY.format(layer)] = self.keys[layer]
            state[_VALUE.format(layer)] = self.values[layer]
        state[_SEP] = self.sep
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_published_state(self, state: dict[str, Tensor], source: str) -> None:
        """Copy the tensors of a checkpoint with the published names; other entries (the LM's) are
        ignored.

        Raises ``UserError`` naming ``source`` and the tensor that is missing or has another shape.
        """
        parts = {_INPUTS[self.infix]: self.inputs, _SEP: self.sep}
        for layer in range(len(self.keys) if self.length else 0):
            parts[_KEY.format(layer)] = self.keys[layer]
            parts[_VALUE.format(layer)] = self.values[layer]
        for name, tensor in state.items():
            if "_embed_prompts." in name and name not in parts and tensor.numel():
                raise UserError(f"{source}: {name} does not belong to this prompt and LM")
        for name, part in parts.items():
            if name not in state:
                raise UserError(f"{source}: {name} is missing; is this a prompt for another LM?")
            if state[name].shape != part.shape:
                raise UserError(
                    f"{source}: {name} is {tuple(state[name].shape)}, the LM needs "
                    f"{tuple(part.shape)}; this prompt belongs to another LM"
                )
            part.copy_(state[name])

    @classmethod
    def from_published_state(cls, state: dict[str, Tensor], layers: int, source: str) -> Prompt:
        """A prompt of the size that the checkpoint holds; beside a fine-tuned LM, ``<s>`` alone.

        Raises ``UserError``, as ``load_published_state`` does.
        """
        sizes = [_table_shape(state, name) for name in _INPUTS]
        if min(size[0] for size in sizes) > 0:
            raise UserError(
                f"{source}: a prefix and an infix prompt, which the published code adds as input "
                "vectors only; train one of them alone"
            )
        infix = sizes[1][0] > 0
        length, width = sizes[infix]
        if not length and not is_fine_tuned(state):
            raise UserError(f"{source}: no prompt in it ({_INPUTS[0]} is missing or no table)")
        prompt = cls(layers, length, width, infix=infix)
        prompt.load_published_state(state, source)
        return prompt


def _table_shape(state: dict[str, Tensor], name: str) -> tuple[int, int]:
    """(rows, width); no rows where the table is missing or no table."""
    table = state.get(name)
    return tuple(table.shape) if table is not None and table.ndim == 2 else (0, 0)


def is_fine_tuned(state: dict[str, Tensor]) -> bool:
    """Whether a published checkpoint is one of ``--fine_tune``: an LM, and prompts of length 0."""
    no_prefix = _INPUTS[0] in state and state[_INPUTS[0]].shape[:1] == (0,)
    return _TOKENS in state and no_prefix and not _table_shape(state, _INPUTS[1])[0]


def without_prompt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LM's part of a published checkpoint."""
    names = (name for name in state if "_embed_prompts." not in name and name != _SEP)
    return {name: state[name] for name in names}


# How a prompt starts.

METHODS = ChoiceEnum(["normal", "tokens", "quiet"])
SAMPLE_ROWS = 64
QUIET_LOGITS = 4.0  # how far "quiet" lowers the mean attention logit of a prompt position
QUIET_VALUES = 0.3  # how much of its distance from the mean value a prompt value keeps


@torch.no_grad()
def initialise(
    model: PromptLanguageModel, method: str, scale: float, rows: RowDataset, seed: int
) -> None:
    """Set the prompt's vectors in place.

    ``normal``: N(0, scale^2); as published with scale 1. ``tokens``: each layer's own inputs at
    random positions of random training rows, so that the prompt speaks the layer's language, and
    the LM's ``<s>``. ``quiet``: the same behind the projections (``projected`` prompts only), with
    keys that draw little attention and values near the mean, so that training starts from a nearly
    undisturbed LM. Raises ``UserError`` for ``quiet`` before the projections.
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
        prompt.keys[:], prompt.values[:] = project(prompt, model.lm.decoder.layers)


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


# Training the prompt behind the LM's key and value projections. A layer's prompt keys are
# K = W_k p + b_k. W_k is square, so K determines p: Adam can as well walk in K, where a step moves
# every attention logit alike, and p is solved for when the prompt is saved. The trained numbers are
# as many and the saved prompt is an ordinary one. In the space of p, small singular values of W_k
# make the same walk many times longer.


@torch.no_grad()
def project(prompt: Prompt, layers: Iterable[TransformerDecoderLayer]) -> tuple[Tensor, Tensor]:
    """Keys and values before the projections, taken behind them: (L, P, D) each."""
    attentions = [layer.self_attn for layer in layers]
    keys = [attention.k_proj(key) for attention, key in zip(attentions, prompt.keys)]
    values = [attention.v_proj(value) for attention, value in zip(attentions, prompt.values)]
    return torch.stack(keys), torch.stack(values)


@torch.no_grad()
def in_input_space(prompt: Prompt, layers: Iterable[TransformerDecoderLayer]) -> Prompt:
    """The same prompt as vectors before the projections, as the published checkpoints hold it."""
    twin = Prompt(*prompt.keys.shape, infix=prompt.infix)
    twin.inputs.copy_(prompt.inputs)
    twin.sep.copy_(prompt.sep)
    for index, layer in enumerate(layers):
        twin.keys[index] = _solve(layer.self_attn.k_proj, prompt.keys[index])
        twin.values[index] = _solve(layer.self_attn.v_proj, prompt.values[index])
    return twin


def _solve(projection: nn.Linear, projected: Tensor) -> Tensor:
    """p with ``projection(p)`` = ``projected``: (P, D), solved in float64."""
    target = (projected - projection.bias).double().cpu().T  # (D, P)
    solution = torch.linalg.lstsq(projection.weight.double().cpu(), target, driver="gelsd").solution
    return solution.T.to(projected)


@torch.no_grad()
def rounding(state: dict[str, Tensor], layers: Sequence[TransformerDecoderLayer]) -> float:
    """The largest relative error of a layer's keys or values in the float32 prompt of a running
    state, against what trained; 0 where both are the same. It grows with the condition number of
    the LM's projections.
    """
    if KEYS not in state:
        return 0.0
    saved = Prompt.from_published_state(state, len(layers), "checkpoint")
    pairs = zip(project(saved, layers), (state[KEYS], state[VALUES]))
    errors = [(solved - raw).norm(dim=(1, 2)) / raw.norm(dim=(1, 2)) for solved, raw in pairs]
    return torch.cat(errors).max().item()
