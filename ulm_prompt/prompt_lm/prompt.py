"""The trained parameters: a prompt (keys, values and a vector for ``<s>``), and a label map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.modules import TransformerDecoderLayer
from torch import Tensor, nn

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import JOIN, with_joint_names

# names in published checkpoints
_PREFIX, _INFIX = "decoder.prefix_embed_prompts.weight", "decoder.infix_embed_prompts.weight"
_SEP = "decoder.sep_embed.weight"
_KEY = "decoder.deep_key_embed_prompts.{}.weight"
_VALUE = "decoder.deep_value_embed_prompts.{}.weight"
_TOKENS = "decoder.embed_tokens.weight"  # only if the LM is in the same file
# additional names in our checkpoints
KEYS, VALUES = "projected.keys", "projected.values"  # only during training
MAP = "label_map.weight"


class Prompt(nn.Module):
    """P key vectors and P value vectors per layer, before the layer's frozen projections. If
    ``projected``, they are after the projections (see the comment above ``project``).

    A prefix, which all tokens attend to; or an ``infix``, only for ``<s>`` and later tokens.
    ``keys`` and ``values``: (L, P, D). ``sep``: (1, D), the embedding of ``<s>`` before scaling and
    position. ``inputs``: (P, D), the published input vectors of the prompt's positions. No
    computation uses them, because every layer replaces the keys and values of these positions. They
    only count in the published number of parameters, P*D*(1+2L) + D.
    """

    def __init__(
        self, layers: int, length: int, width: int, dropout: float = 0.0,
        projected: bool = False, infix: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.projected, self.infix = projected, infix
        self.inputs = nn.Parameter(torch.empty(length, width))
        self.keys = nn.Parameter(torch.empty(layers, length, width))
        self.values = nn.Parameter(torch.empty(layers, length, width))
        self.sep = nn.Parameter(torch.empty(1, width))
        self.dropout = nn.Dropout(dropout)  # one mask per batch; an update may have several batches
        self.length = length  # P
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # as published: N(0, 1)

    @property
    def lengths(self) -> dict[str, int]:
        """The prefix and the infix length, by their names in flags and records."""
        prefix, infix = (0, self.length) if self.infix else (self.length, 0)
        return {"prefix_prompt_length": prefix, "infix_prompt_length": infix}

    def _named(self) -> dict[str, Tensor]:
        """Return the tensors by published name; for length 0, only ``<s>`` and empty inputs."""
        named = {_INFIX if self.infix else _PREFIX: self.inputs}
        for layer in range(len(self.keys) if self.length else 0):
            named[_KEY.format(layer)] = self.keys[layer]
            named[_VALUE.format(layer)] = self.values[layer]
        return {**named, _SEP: self.sep}

    def published_state(self) -> dict[str, Tensor]:
        """Return copies of the tensors under the names of the published checkpoints."""
        state = {**dict.fromkeys((_PREFIX, _INFIX), self.inputs[:0]), **self._named()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_published_state(self, state: dict[str, Tensor], source: str) -> None:
        """Copy the tensors with the published names. Ignores the LM's entries. Raises ``UserError``
        as ``copy_tensors``, and for vectors of another prompt, for example of more layers.
        """
        named = self._named()
        for name, tensor in state.items():
            if "_embed_prompts." in name and name not in named and tensor.numel():
                raise UserError(f"{source}: unexpected {name}; this prompt belongs to another LM")
        copy_tensors(named, state, source)

    @classmethod
    def from_published_state(cls, state: dict[str, Tensor], layers: int, source: str) -> Prompt:
        """Create a prompt with the size and tensors of a checkpoint. From a fine-tuned LM, it has
        only ``<s>``. Raises ``UserError`` like ``load_published_state``.
        """
        prefix, infix = (_table_shape(state, name) for name in (_PREFIX, _INFIX))
        if prefix[0] and infix[0]:  # as published: then both are input vectors only
            raise UserError(f"{source}: expected a prefix or an infix, found both; train with one")
        length, width = infix if infix[0] else prefix
        if not length and not is_fine_tuned(state):
            raise UserError(f"{source}: contains no prompt (no matrix {_PREFIX}); name a prompt")
        prompt = cls(layers, length, width, infix=infix[0] > 0)
        prompt.load_published_state(state, source)
        return prompt


def _table_shape(state: dict[str, Tensor], name: str) -> tuple[int, int]:
    """Return the shape of a matrix, (rows, width), or (0, 0) if there is no such matrix."""
    table = state.get(name)
    return tuple(table.shape) if table is not None and table.ndim == 2 else (0, 0)


def is_fine_tuned(state: dict[str, Tensor]) -> bool:
    """Whether a published checkpoint is from ``--fine_tune``: an LM, with prompts of length 0."""
    no_prefix = _PREFIX in state and state[_PREFIX].shape[:1] == (0,)
    return _TOKENS in state and no_prefix and not _table_shape(state, _INFIX)[0]


def without_prompt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the LM's tensors of a published checkpoint."""
    return {n: t for n, t in state.items() if "_embed_prompts." not in n and n != _SEP}


# Training after the LM's key and value projections. A layer's prompt keys are K = W_k p + b_k. W_k
# is square and, up to rounding, invertible. Adam can therefore train K, and p is solved for when
# the prompt is saved. In K, a step moves all attention logits by similar amounts. In p, small
# singular values of W_k make the same change take many times more steps.


def project(
    keys: Iterable[Tensor], values: Iterable[Tensor], layers: Iterable[TransformerDecoderLayer]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the keys and values, (..., P, D) per layer, after the projections of ``layers``."""
    attentions = [layer.self_attn for layer in layers]
    projected_keys = [attention.k_proj(key) for attention, key in zip(attentions, keys)]
    return projected_keys, [a.v_proj(value) for a, value in zip(attentions, values)]


@torch.no_grad()
def copy_tensors(named: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Copy the tensors of ``state`` into the tensors ``named``. Raises ``UserError`` that names
    ``source`` if a tensor is missing or has another shape.
    """
    for name, tensor in named.items():
        shape = tuple(state[name].shape) if name in state else "none"
        if shape != (expected := tuple(tensor.shape)):
            problem = f"expected {name} of shape {expected}, found {shape}"
            raise UserError(f"{source}: {problem}; this prompt belongs to another LM or task")
        tensor.copy_(state[name])


@torch.no_grad()
def in_input_space(prompt: Prompt, layers: Iterable[TransformerDecoderLayer]) -> Prompt:
    """Return the ``projected`` prompt with vectors before the projections, as published."""
    solved = Prompt(*prompt.keys.shape, infix=prompt.infix)
    solved.inputs.copy_(prompt.inputs)
    solved.sep.copy_(prompt.sep)
    for index, layer in enumerate(layers):
        solved.keys[index] = _solve(layer.self_attn.k_proj, prompt.keys[index])
        solved.values[index] = _solve(layer.self_attn.v_proj, prompt.values[index])
    return solved


def _solve(projection: nn.Linear, projected: Tensor) -> Tensor:
    """Return p, (P, D), such that ``projection(p)`` equals ``projected``. Solved in float64."""
    target = (projected - projection.bias).double().cpu().T  # (D, P)
    solution = torch.linalg.lstsq(projection.weight.double().cpu(), target, driver="gelsd").solution
    return solution.T.to(projected)


class LabelMap(nn.Module):
    """The learnable verbalizer (SpeechPrompt v2, arXiv 2303.00733): a linear map from the LM's
    logits to label scores.

    ``weight``: (labels, V). A label's score is the product of the label's row and the logits. The
    row starts as the fixed verbalizer: 1 at the label's unit. In text, in teacher forcing and in
    answers, the unit remains the name of the label. A label without its own unit is named by
    several, ``12+47``. It gets one of E symbols after the LM's V symbols. Its row starts as the
    mean of the units, and the LM reads the symbol as the mean of their embeddings.
    """

    def __init__(self, names: Sequence[str], dictionary: Dictionary, count: int) -> None:
        """``names``: the labels' names in verbal.json. ``count``: labels per utterance."""
        super().__init__()
        self.count, self.eos = count, dictionary.eos()
        all_symbols = with_joint_names(dictionary, names)
        means = torch.zeros(len(names), len(dictionary))  # (labels, V)
        for row, name in zip(means, names):
            for unit in (units := name.split(JOIN)):
                row[dictionary.index(unit)] = 1 / len(units)
        is_joint = torch.tensor([JOIN in name for name in names])
        symbols = torch.tensor([all_symbols.index(name) for name in names])
        self.register_buffer("symbols", symbols, persistent=False)
        self.register_buffer("joint_means", means[is_joint], persistent=False)  # (E, V)
        self.weight = nn.Parameter(means)

    def forward(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Map logits, (B, Q, V) -> (B, Q, V + E). ``positions``: (Q,), counted from 0 at ``<s>``,
        which keeps the LM's logits. The next ``count`` positions allow only labels, and later ones
        only ``</s>``.
        """
        scores = logits @ self.weight.float().T  # (B, Q, labels)
        logits = F.pad(logits, (0, len(self.joint_means)), value=-torch.inf)
        impossible = torch.full_like(logits, -torch.inf)
        labels = impossible.index_copy(2, self.symbols, scores)
        end = impossible.clone()
        end[..., self.eos] = 0.0
        positions = positions[:, None]
        return torch.where(positions == 0, logits, torch.where(positions > self.count, end, labels))

    def embed(self, tokens: Tensor, table: nn.Embedding) -> Tensor:
        """Embed (B, T) -> (B, T, D) with the LM's ``table``. A joint name is the mean of rows."""
        weight = table.weight  # (V, D)
        if len(self.joint_means):
            weight = torch.cat([weight, self.joint_means.to(weight) @ weight])
        return F.embedding(tokens, weight, table.padding_idx)
