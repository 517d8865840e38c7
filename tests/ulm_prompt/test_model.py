"""The prompted LM against the published arrangement, computed the slow way on the stock layers."""

from __future__ import annotations

import pytest
import torch
from fairseq.models.transformer_lm import TransformerLanguageModel

from tests.ulm_prompt import tiny
from ulm_prompt.prompt_data.tasks import load_task
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.prompt_lm.prompt import Prompt, project


class PublishedAttention(torch.nn.Module):
    """A stock attention whose keys and values from ``start`` on are replaced before they are
    projected.
    """

    def __init__(
        self, attention: torch.nn.Module, keys: torch.Tensor, values: torch.Tensor, start: int
    ) -> None:
        super().__init__()
        self.attention, self.keys, self.values, self.start = attention, keys, values, start

    def _get_input_buffer(self, incremental_state: None) -> dict:
        return {}

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **others: object
    ):
        def replaced(tensor: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
            vectors = prompt.unsqueeze(1).expand(-1, tensor.shape[1], -1)
            end = self.start + len(prompt)
            return torch.cat([tensor[: self.start], vectors, tensor[end:]])

        return self.attention(
            query=query, key=replaced(key, self.keys), value=replaced(value, self.values), **others
        )


@torch.no_grad()
def published_logits(
    lm: TransformerLanguageModel, prompt: Prompt, tokens: torch.Tensor, inputs: torch.Tensor
) -> torch.Tensor:
    """(B, T) -> (B, T, V): P positions with input vectors, keys and values replaced per layer,
    before the row, or, as an infix, before its ``<s>``.
    """
    if not prompt.infix:
        return _inserted(lm, prompt, tokens, inputs, 0)
    starts = [row.index(0) if 0 in row else len(row) for row in tokens.tolist()]
    rows = zip(tokens.split(1), starts)
    return torch.cat([_inserted(lm, prompt, row, inputs, start) for row, start in rows])


def _inserted(
    lm: TransformerLanguageModel,
    prompt: Prompt,
    tokens: torch.Tensor,
    inputs: torch.Tensor,
    start: int,
) -> torch.Tensor:
    decoder = lm.decoder
    x = decoder.embed_tokens(tokens)
    x[tokens == 0] = prompt.sep
    x = decoder.embed_scale * x + decoder.embed_positions(tokens)
    inputs = inputs.expand(len(tokens), -1, -1)
    x = torch.cat([x[:, :start], inputs, x[:, start:]], dim=1).transpose(0, 1)  # (P + T, B, D)
    mask = x.new_full((len(x), len(x)), -torch.inf).triu(1)
    for index, layer in enumerate(decoder.layers):
        stock = layer.self_attn
        keys, values = prompt.keys[index], prompt.values[index]
        layer.self_attn = PublishedAttention(stock, keys, values, start)
        try:
            x = layer(x, self_attn_mask=mask)[0]
        finally:
            layer.self_attn = stock
    logits = decoder.output_layer(decoder.layer_norm(x)).transpose(0, 1)
    return torch.cat([logits[:, :start], logits[:, start + prompt.length :]], dim=1)


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``</s> units <s> labels`` of different lengths, and positions of units, which do not see
    an infix, and from ``<s>`` on.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((4, 17), 1)
    read_at = torch.empty(4, 4, dtype=torch.long)
    for row, length in enumerate((17, 9, 12, 6)):
        tokens[row, :length] = torch.randint(4, 104, (length,), generator=generator)
        tokens[row, 0], tokens[row, length - 2] = 2, 0
        read_at[row] = torch.tensor([2, 3, length - 2, length - 1])
    return tokens, read_at


def at(logits: torch.Tensor, read_at: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[places] for row, places in zip(logits, read_at)])


@pytest.fixture(params=[False, True], ids=["prefix", "infix"])
def model(request: pytest.FixtureRequest) -> PromptLanguageModel:
    return tiny.prompted(infix=request.param)


def test_logits_equal_the_published_arrangement(model: PromptLanguageModel) -> None:
    """Whatever the input vectors are: nothing attends to them."""
    tokens, read_at = a_batch()
    with torch.no_grad():
        found = model(tokens, read_at)
    for inputs in (model.prompt.inputs, 100 * torch.randn_like(model.prompt.inputs)):
        expected = published_logits(model.lm, model.prompt, tokens, inputs)
        torch.testing.assert_close(found, at(expected, read_at), rtol=0, atol=1e-5)


def test_gradients_equal_the_published_arrangement(model: PromptLanguageModel) -> None:
    """The input vectors take part in no computation, and the LM is frozen."""
    tokens, read_at = a_batch()
    prompt = model.prompt
    parts = prompt.keys, prompt.values, prompt.sep
    logits = published_logits.__wrapped__(model.lm, prompt, tokens, prompt.inputs)
    theirs = torch.autograd.grad(at(logits, read_at).square().sum(), parts)
    with torch.no_grad():
        prompt.inputs.fill_(torch.nan)
    model(tokens, read_at).square().sum().backward()
    for part, expected in zip(parts, theirs):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(part.grad, expected, rtol=1e-4, atol=1e-4)
    assert prompt.inputs.grad is None
    assert all(parameter.grad is None for parameter in model.lm.parameters())


def test_positions_beyond_the_stock_table() -> None:
    """Without a prompt it is the stock LM, also for rows longer than fairseq's 1,024 positions."""
    tokens = torch.randint(4, 104, (1, 1500), generator=torch.Generator().manual_seed(0))
    for (rows, read_at), layers in ((a_batch(), 3), ((tokens, torch.tensor([[1400, 1499]])), 1)):
        with torch.no_grad():
            found = PromptLanguageModel(tiny.lm(layers=layers), None)(rows, read_at)
            expected = at(tiny.lm(layers=layers)(rows)[0], read_at)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_published_parameter_counts() -> None:
    """P*D*(1+2L) + D at the released LMs' shape (paper, table 1): IC, KS, CPC's prompts, texts."""
    text = load_task("ASR").prefix_prompt_length
    assert text == load_task("SF").prefix_prompt_length
    for length, expected in ((6, 154_624), (3, 77_824), (2, 52_224), (text, 4_506_624)):
        prompt = Prompt(layers=12, length=length, width=1024)
        assert sum(parameter.numel() for parameter in prompt.parameters()) == expected


def test_projected_prompt_is_the_same_prompt(model: PromptLanguageModel) -> None:
    """Trained behind the projections and saved before them: the same logits, to float32."""
    torch.manual_seed(7)
    prompt = Prompt(3, 5, 32, projected=True, infix=model.prompt.infix)
    model = PromptLanguageModel(model.lm, prompt).eval()
    tokens, read_at = a_batch()
    saved = Prompt.from_published_state(model.state_dict(), 3, "test")
    assert saved.infix == prompt.infix
    with torch.no_grad():
        expected = model(tokens, read_at)
        found = PromptLanguageModel(model.lm, saved)(tokens, read_at)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    for found, trained in zip(
        project(saved, model.lm.decoder.layers), (prompt.keys, prompt.values)
    ):
        assert (found - trained).norm() < 1e-3 * trained.norm()
