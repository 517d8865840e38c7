"""The trainable part: prefix keys and values for every layer, and the ``<s>`` vector."""

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


_PREFIX = "decoder."
_INPUT = _PREFIX + "prefix_embed_prompts.weight"
_INFIX = _PREFIX + "infix_embed_prompts.weight"
_SEP = _PREFIX + "sep_embed.weight"
_KEY = _PREFIX + "deep_key_embed_prompts.{}.weight"
_VALUE = _PREFIX + "deep_value_embed_prompts.{}.weight"
_TOKENS = _PREFIX + "embed_tokens.weight"  # of an LM beside the prompt


class Prompt(nn.Module):
    """P prefix vectors per layer on the key and on the value side, before the layer's frozen
    projections (while it trains ``projected``, behind them: see projection.py).

    ``keys`` and ``values``: (L, P, D). ``sep``: (1, D), stands for ``<s>`` before scaling and
    position. ``inputs``: (P, D), as published: the prefix's input vectors. Every layer replaces the
    keys and values of the prefix positions, so nothing ever attends to what becomes of them; they
    take part in the published parameter count, P*D*(1+2L) + D, and in no computation.
    """

    def __init__(
        self, layers: int, length: int, width: int, dropout: float = 0.0, projected: bool = False
    ) -> None:
        super().__init__()
        self.projected = projected
        self.inputs = nn.Parameter(torch.empty(length, width))
        self.keys = nn.Parameter(torch.empty(layers, length, width))
        self.values = nn.Parameter(torch.empty(layers, length, width))
        self.sep = nn.Parameter(torch.empty(1, width))
        self.dropout = nn.Dropout(dropout)  # one mask a step, shared by the batch
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # as published: N(0, 1)

    @property
    def length(self) -> int:
        """P."""
        return self.inputs.shape[0]

    def published_state(self) -> dict[str, Tensor]:
        """The tensors under the names of the published checkpoints."""
        state = {_INPUT: self.inputs, _INFIX: self.inputs.new_empty(0, self.inputs.shape[1])}
        for layer in range(self.keys.shape[0]):
            state[_KEY.format(layer)] = self.keys[layer]
            state[_VALUE.format(layer)] = self.values[layer]
        state[_SEP] = self.sep
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_published_state(self, state: dict[str, Tensor], source: str) -> None:
        """Take the tensors from a checkpoint with the published names; other entries (the LM's) are
        left alone.

        Raises ``UserError`` naming ``source`` and the tensor that is missing or has another shape.
        """
        _check(state, len(self.keys), *self.inputs.shape, source)
        self.inputs.copy_(state[_INPUT])
        self.sep.copy_(state[_SEP])
        for layer in range(len(self.keys) if self.length else 0):
            self.keys[layer] = state[_KEY.format(layer)]
            self.values[layer] = state[_VALUE.format(layer)]

    @classmethod
    def from_published_state(cls, state: dict[str, Tensor], layers: int, source: str) -> Prompt:
        """A prompt of the size that the checkpoint holds; beside a fine-tuned LM, ``<s>`` alone.

        Raises ``UserError``, as ``load_published_state`` does, also for an infix prompt.
        """
        infix = state.get(_INFIX)
        if infix is not None and infix.ndim == 2 and len(infix):
            raise UserError(
                f"{source}: an infix prompt of length {len(infix)} (--infix_prompt_length); only "
                "prefix prompts can be decoded, train one with --prefix_prompt_length"
            )
        inputs = state.get(_INPUT)
        if inputs is None or inputs.ndim != 2 or not (inputs.numel() or is_fine_tuned(state)):
            raise UserError(f"{source}: no prompt in it ({_INPUT} is missing)")
        length, width = inputs.shape
        _check(state, layers, length, width, source)  # before memory is taken for it
        prompt = cls(layers, length, width)
        prompt.load_published_state(state, source)
        return prompt


def is_fine_tuned(state: dict[str, Tensor]) -> bool:
    """Whether a published checkpoint is one of ``--fine_tune``: an LM, and prompts of length 0."""
    inputs = state.get(_INPUT)
    return _TOKENS in state and inputs is not None and inputs.ndim == 2 and not len(inputs)


def without_prompt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LM's part of a published checkpoint."""
    names = (name for name in state if "_embed_prompts." not in name and name != _SEP)
    return {name: state[name] for name in names}


def _check(state: dict[str, Tensor], layers: int, length: int, width: int, source: str) -> None:
    shapes = {_INPUT: (length, width), _SEP: (1, width)}
    for layer in range(layers if length else 0):
        shapes[_KEY.format(layer)] = shapes[_VALUE.format(layer)] = (length, width)
    extra = [name for name in state if "_embed_prompts." in name and name not in shapes]
    for name in extra:
        if state[name].numel():
            raise UserError(f"{source}: {name} does not belong to an LM of {layers} layers")
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{source}: {name} is missing; is this a prompt for another LM?")
        if state[name].shape != shape:
            raise UserError(
                f"{source}: {name} is {tuple(state[name].shape)}, the LM needs {shape}; "
                "this prompt belongs to another LM"
            )


# How a prompt starts.


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


# Training the prompt behind the LM's key and value projections instead of before them. A layer's
# prefix keys are K = W_k p + b_k. W_k is square, so K determines p: Adam can as well walk in K,
# where a step moves every attention logit alike, and p is solved for when the prompt is saved.
# The trained numbers are as many and the saved prompt is an ordinary one. In p-space small
# singular values of W_k make the same walk many times longer.


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


# The learnable verbalizer: a linear map from the LM's output to label scores (SpeechPrompt v2).
# With a fixed verbalizer a label *is* a unit, and its score is that unit's logit. Here every
# label has a trained weight for each symbol of the LM. The units that the labels are renamed to
# stay their names: in the text, in teacher forcing, and in the answers.


WEIGHT = "label_map.weight"  # in a checkpoint


class LabelMap(nn.Module):
    """``weight``, (labels, V): a label's score is its row times the LM's logits. It starts as the
    fixed verbalizer: one at the label's own unit.
    """

    def __init__(self, units: Sequence[int], vocabulary: int, count: int, eos: int) -> None:
        """``units``: the symbol that names each label. ``count``: labels of an utterance."""
        super().__init__()
        self.count, self.eos = count, eos
        self.register_buffer("units", torch.tensor(units), persistent=False)
        self.weight = nn.Parameter(torch.eye(vocabulary)[self.units])

    def forward(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits over symbols at ``places``, (Q,), of ``<s> labels </s>``: (B, Q, V) -> (B, Q, V).

        ``<s>`` keeps the LM's own. At a label's place only labels are possible, and after the last
        one only ``</s>``, so that there is nothing to learn there.
        """
        scores = logits @ self.weight.float().T  # (B, Q, labels)
        impossible = torch.full_like(logits, -torch.inf)
        labels = impossible.index_copy(2, self.units, scores)
        end = impossible.clone()
        end[..., self.eos] = 0.0
        places = places[:, None]
        return torch.where(places == 0, logits, torch.where(places > self.count, end, labels))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the prompt."""
        return {WEIGHT: self.weight.detach().clone()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], source: str) -> None:
        """Take the weight from a checkpoint. Raises ``UserError`` naming ``source`` when it is
        missing or has another shape.
        """
        found = tuple(state[WEIGHT].shape) if WEIGHT in state else "none"
        if found != tuple(self.weight.shape):
            raise UserError(
                f"{source}: expected {WEIGHT} of shape {tuple(self.weight.shape)}, found {found}; "
                "it belongs to another task or LM"
            )
        self.weight.copy_(state[WEIGHT])
