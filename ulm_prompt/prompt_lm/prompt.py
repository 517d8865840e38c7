"""What trains: keys and values for every layer, the ``<s>`` vector and, if asked for, a map."""

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
_INPUTS = "decoder.prefix_embed_prompts.weight", "decoder.infix_embed_prompts.weight"
_SEP = "decoder.sep_embed.weight"
_KEY = "decoder.deep_key_embed_prompts.{}.weight"
_VALUE = "decoder.deep_value_embed_prompts.{}.weight"
_TOKENS = "decoder.embed_tokens.weight"  # of an LM beside the prompt
# names that ours have beside them
KEYS, VALUES = "projected.keys", "projected.values"  # in a running state
MAP = "label_map.weight"


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
        self, layers: int, length: int, width: int, dropout: float = 0.0,
        projected: bool = False, infix: bool = False,
    ) -> None:  # fmt: skip
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

    def _named(self) -> dict[str, Tensor]:
        """The vectors, by their names in published checkpoints; of no length, ``<s>`` alone."""
        named = {_INPUTS[self.infix]: self.inputs}
        for layer in range(len(self.keys) if self.length else 0):
            named[_KEY.format(layer)] = self.keys[layer]
            named[_VALUE.format(layer)] = self.values[layer]
        return {**named, _SEP: self.sep}

    def published_state(self) -> dict[str, Tensor]:
        """The tensors under the names of the published checkpoints."""
        state = {**dict.fromkeys(_INPUTS, self.inputs[:0]), **self._named()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_published_state(self, state: dict[str, Tensor], source: str) -> None:
        """Copy the tensors with the published names; other entries (the LM's) are ignored. Raises
        ``UserError`` naming ``source`` and the tensor that is missing or has another shape.
        """
        named = self._named()
        for name, tensor in state.items():
            if "_embed_prompts." in name and name not in named and tensor.numel():
                raise UserError(f"{source}: {name} does not belong to this prompt and LM")
        for name, part in named.items():
            found = tuple(state[name].shape) if name in state else "missing"
            if found != (needed := tuple(part.shape)):
                problem = f"{name} is {found}, the LM needs {needed}"
                raise UserError(f"{source}: {problem}; this prompt belongs to another LM")
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


# Training behind the LM's key and value projections. A layer's prompt keys are K = W_k p + b_k. W_k
# is square, so K determines p: Adam can as well walk in K, where a step moves every attention logit
# alike, and p is solved for when the prompt is saved. In the space of p, small singular values of
# W_k make the same walk many times longer.


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


class LabelMap(nn.Module):
    """The learnable verbalizer (SpeechPrompt v2, arXiv 2303.00733): a linear map from the LM's
    output to label scores.

    ``weight``, (labels, V): a label's score is its row times the LM's logits. It starts as the
    fixed verbalizer: one at the label's own unit. That unit stays the label's name: in the text, in
    teacher forcing, and in the answers. A label without a unit of its own has the name of several,
    ``12+47``: a symbol behind the LM's, E in all. It starts as the mean of its units, and the LM
    reads it as the mean of their embeddings.
    """

    def __init__(self, names: Sequence[str], dictionary: Dictionary, count: int) -> None:
        """``names``: what verbal.json calls each label. ``count``: labels of an utterance."""
        super().__init__()
        self.count, self.eos = count, dictionary.eos()
        symbols = with_joint_names(dictionary, names)
        means = torch.zeros(len(names), len(dictionary))
        for row, name in zip(means, names):
            for unit in (parts := name.split(JOIN)):
                row[dictionary.index(unit)] = 1 / len(parts)
        joint = torch.tensor([JOIN in name for name in names])
        numbers = torch.tensor([symbols.index(name) for name in names])
        self.register_buffer("symbols", numbers, persistent=False)
        self.register_buffer("joint_means", means[joint], persistent=False)  # (E, V)
        self.weight = nn.Parameter(means)

    def forward(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Logits of the symbols ``numbers``, (Q,), of ``<s> labels </s>``: (B, Q, V) -> (B, Q, V +
        E). ``<s>`` keeps the LM's own. Then only labels are possible, and after the last ``</s>``.
        """
        scores = logits @ self.weight.float().T  # (B, Q, labels)
        logits = F.pad(logits, (0, len(self.joint_means)), value=-torch.inf)
        impossible = torch.full_like(logits, -torch.inf)
        labels = impossible.index_copy(2, self.symbols, scores)
        end = impossible.clone()
        end[..., self.eos] = 0.0
        numbers = numbers[:, None]
        return torch.where(numbers == 0, logits, torch.where(numbers > self.count, end, labels))

    def embed(self, tokens: Tensor, table: nn.Embedding) -> Tensor:
        """(B, T) -> (B, T, D), of the LM's ``table`` or, behind its V rows, their means."""
        weight = table.weight  # (V, D)
        if len(self.joint_means):
            weight = torch.cat([weight, self.joint_means.to(weight) @ weight])
        return F.embedding(tokens, weight, table.padding_idx)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], source: str) -> None:
        """Copy the weight from ``source``. Raises ``UserError`` for a missing or misshapen one."""
        found = tuple(state[MAP].shape) if MAP in state else "missing"
        if found != (needed := tuple(self.weight.shape)):
            problem = f"{MAP} is {found}, here it is {needed}"
            raise UserError(f"{source}: {problem}; it belongs to another task or LM")
        self.weight.copy_(state[MAP])
