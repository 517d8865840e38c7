"""The downstream model on means against SUPERB's on all frames."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from baselines.downstream import DownstreamModel

LAYERS, DIM, SLOTS, PROJECTOR = 4, 10, [3, 5, 2], 7
LENGTHS = [1, 9, 30, 30, 4]


def on_all_frames(weights: dict[str, torch.Tensor], utterances: list[torch.Tensor]) -> torch.Tensor:
    """s3prl's order on padded frames: weighted sum, projector, mean over own frames, classifier."""
    padded = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)  # (B, T, L, D)
    share = F.softmax(weights["layer_weights"], dim=-1)
    frames = sum(share[layer] * padded[:, :, layer] for layer in range(LAYERS))
    frames = frames @ weights["projector.weight"].T + weights["projector.bias"]
    pooled = torch.stack([frames[row, : len(u)].mean(dim=0) for row, u in enumerate(utterances)])
    return pooled @ weights["classifier.weight"].T + weights["classifier.bias"]


def test_means_give_the_output_and_gradient_of_all_frames():
    torch.manual_seed(0)
    model = DownstreamModel(LAYERS, DIM, SLOTS, PROJECTOR).double()
    with torch.no_grad():
        model.layer_weights.copy_(torch.randn(LAYERS))
    utterances = [torch.randn(length, LAYERS, DIM).double() for length in LENGTHS]
    labels = torch.tensor([[0, 4, 1], [2, 0, 0], [1, 1, 1], [0, 0, 0], [2, 3, 0]])
    means = torch.stack([utterance.mean(dim=0) for utterance in utterances])

    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    for weight in weights.values():
        weight.requires_grad_(True)
    logits = on_all_frames(weights, utterances)
    torch.testing.assert_close(torch.cat(model(means), dim=1), logits)
    action, thing, place = logits.split(SLOTS, dim=1)
    expected = sum(
        F.cross_entropy(part, labels[:, slot]) for slot, part in enumerate((action, thing, place))
    )
    expected.backward()
    loss = model.loss(means, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 1e-6
        torch.testing.assert_close(weight.grad, weights[name].grad)
    guess = torch.stack([part.argmax(dim=1) for part in (action, thing, place)], dim=1)
    assert torch.equal(model.predict(means, batch=2), guess)


def test_as_many_parameters_are_trained_as_the_paper_says():
    def count(layers: int, dim: int, slots: list[int]) -> int:
        return DownstreamModel(layers, dim, slots, 256).trained_parameters

    assert count(13, 768, [12]) == 768 * 256 + 256 + 256 * 12 + 12 + 13 == 199_961  # 0.2M
    assert count(13, 768, [6, 14, 4]) == 203_045  # 0.2M
    assert count(1, 256, [12]) == 68_876  # 0.07M: one layer has no weight to learn
