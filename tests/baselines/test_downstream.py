"""Audio to layer means to a trained downstream model, which is SUPERB's on all frames."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from baselines import layer_means, train_downstream
from baselines.classifiers.downstream import DownstreamModel, Split, accuracy, load_settings, train
from baselines.classifiers.means import LayerMeans, means_folder, read_means
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.ranks import Ranks
from pipeline.rows import SPLITS
from pipeline.torch_files import load_torch
from pipeline.workspace import Workspace
from preprocess.actions.audio_run import Shard
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import read_audio
from tests.conftest import stage
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.tasks import preprocessor
from ulm_prompt.scoring.scores import score

INTENTS = [("start", "lamp", "none"), ("stop", "heat", "kitchen"), ("start", "heat", "none")]
COUNTS = {"train": 24, "valid": 6, "test": 7}
NAME = "fluent_commands"
LAYERS, DIM, SLOTS, PROJECTOR = 4, 10, [3, 5, 2], 7
LENGTHS = [1, 9, 30, 30, 4]


def task_of(workspace: Path, unit_model: str = "logmel100") -> Preprocessor:
    """fluent_commands in this process, in many small blocks."""
    settings = ("fairseqrc.batch_seconds=0.3", f"taskrc.unit_model={unit_model}")
    return preprocessor(NAME, workspace, *settings)


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A corpus whose intents sound different, and its manifests."""
    splits = {
        split: [INTENTS[number % len(INTENTS)] for number in range(count)]
        for split, count in COUNTS.items()
    }
    root = corpora.fluent_commands(tmp_path / "corpora" / NAME, splits)
    rng = random.Random(0)
    for split, rows in splits.items():
        for number, labels in enumerate(rows):
            samples = corpora.tone(rng.uniform(0.1, 0.5), 90 + 300 * INTENTS.index(labels) + number)
            corpora.write(root / f"wavs/speakers/{split}/{number}.wav", samples)
    task_of(tmp_path).generate_manifest()
    return tmp_path


def compute(workspace: Path) -> dict[str, bytes]:
    LayerMeans(task_of(workspace)).run(Ranks(), skip_bad=False)
    return written(workspace)


def written(workspace: Path) -> dict[str, bytes]:
    folder = means_folder(Workspace(workspace), NAME, "logmel100")
    return {split: (folder / f"{split}.npy").read_bytes() for split in SPLITS}


def run_script(script, monkeypatch, workspace: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--workspace", str(workspace), *arguments])
    script.main()


MODELS = """
checkpoints:
  own: {path: pretrained_models/own.pt}
unit_models:
  own8: {feature_type: %s, checkpoint: own, layer: 2, clusters: 8}
"""


@pytest.mark.parametrize(("feature_type", "layers"), [("logmel", 1), ("cpc", 4), ("hubert", 4)])
def test_means_are_those_of_each_layers_frames(workspace, feature_type, layers):
    models = workspace / "pretrained_models"
    models.mkdir()
    unit_model = "logmel100"
    if feature_type != "logmel":
        unit_model = "own8"
        (models / "my_unit_models.yaml").write_text(MODELS % feature_type)
        getattr(ssl_checkpoints, feature_type)(models / "own.pt")
    task = task_of(workspace, unit_model)
    LayerMeans(task).run(Ranks(), skip_bad=False)
    reader, _ = task.feature_reader(all_layers=True)
    for split, count in COUNTS.items():
        found = read_means(Workspace(workspace), NAME, unit_model, split)
        root, entries = read_manifest(task.manifest / f"{split}.tsv")
        assert found.means.shape == (count, layers, reader.dim)
        for entry, row in zip(distinct(entries), found.means, strict=True):
            (frames,) = reader(
                [torch.from_numpy(read_audio(root / entry.path, entry.start, entry.frames).samples)]
            )
            expected = torch.stack([frames[:, layer].mean(dim=0) for layer in range(layers)])
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
        assert found.means.std() > 0.01


def test_shards_give_the_same_bytes(workspace, monkeypatch, capsys):
    """That a killed run resumes is tested with the units, which share the code."""
    expected = compute(workspace)
    compute(workspace)
    assert "already exists" in capsys.readouterr().out
    for split in SPLITS:
        (task_of(workspace).units / "layer_means" / f"{split}.npy").unlink()
    for shard in (1, 0):
        LayerMeans(task_of(workspace)).run_shard(Shard(shard, 2))
    run_script(layer_means, monkeypatch, workspace, "--downstream", NAME, "--merge_shards",
               "--unit_model", "logmel100", "--set", "fairseqrc.batch_seconds=0.3")  # fmt: skip
    assert written(workspace) == expected


def test_rows_of_bad_audio_are_left_out(workspace):
    compute(workspace)
    before = read_means(Workspace(workspace), NAME, "logmel100", "train")
    (workspace / "corpora" / NAME / "wavs/speakers/train/1.wav").write_bytes(b"")
    with pytest.raises(UserError, match="train/1.wav"):
        LayerMeans(task_of(workspace)).run(Ranks(), skip_bad=False)
    LayerMeans(task_of(workspace)).run(Ranks(), skip_bad=True)
    after = read_means(Workspace(workspace), NAME, "logmel100", "train")
    assert after.entries == before.entries[:1] + before.entries[2:]
    kept = [0, *range(2, 24)]
    torch.testing.assert_close(after.means[after.index], before.means[before.index][kept])


def test_scripts_from_audio_to_accuracy(workspace, monkeypatch, capsys):
    printed = stage("baselines/layer_means.py", "--downstream", NAME, "--workspace", workspace,
                    "--unit_model", "logmel100")  # fmt: skip
    assert "train: 24 files" in printed and "next: baselines/train_downstream.py" in printed
    flags = ("--date", "d", "--set", "max_update=60", "validate_every=20", "lr=1e-2")
    run_script(train_downstream, monkeypatch, workspace, *flags)
    folder = workspace / "checkpoints" / "IC_logmel100_downstream_d"
    card = read_json(folder / "downstream.json", "")
    assert card["trained_parameters"] == 80 * 256 + 256 + 256 * 6 + 6
    assert card["config"]["seed"] == 100501 and card["made_by"]["versions"]
    assert card["valid"]["accuracy"] == max(card["valid_curve"].values()) == 100
    assert card["valid_curve"][str(card["updates"])] == 100
    path = Workspace(workspace).samples("IC", "logmel100", "downstream_d", "d")
    result = score(path)
    assert result["accuracy"] == result["accuracy_within_labels"] == card["test"]["accuracy"] == 100
    assert (result["utterances"], result["invalid"]) == (7, 0)
    assert read_json(path, "")["1"] == {
        "file_name": "wavs/speakers/test/1.wav", "src": "", "label": "1 3 5", "predict": "1 3 5",
    }  # fmt: skip

    state = load_torch(folder / "checkpoint_best.pt")
    assert sum(value.numel() for value in state.values()) == card["trained_parameters"] + 1
    before = path.read_bytes(), state
    run_script(train_downstream, monkeypatch, workspace, *flags)
    assert "already" in capsys.readouterr().out
    with pytest.raises(UserError, match="other config; choose a new --date"):
        run_script(train_downstream, monkeypatch, workspace, *flags, "seed=2")
    (folder / "downstream.json").unlink()
    run_script(train_downstream, monkeypatch, workspace, *flags)  # the same seed, the same model
    again = load_torch(folder / "checkpoint_best.pt")
    assert path.read_bytes() == before[0]
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_the_best_on_valid_is_kept():
    """Valid labels that contradict train: the longer it learns, the worse."""
    torch.manual_seed(0)
    means = torch.randn(30, 1, 8)
    labels = (means[:, 0, :1] > 0).long()
    index = torch.arange(30)
    settings = load_settings(["max_update=40", "validate_every=1", "lr=1e-3"])
    valid = Split(means, index, 1 - labels)
    model, curve = train(Split(means, index, labels), valid, [2], settings)
    assert curve[40] < max(curve.values())
    assert accuracy(model, valid) == pytest.approx(max(curve.values()))


def test_what_cannot_be_trained_is_refused(workspace, monkeypatch):
    def fails(message: str, *more: str) -> None:
        with pytest.raises(UserError, match=message):
            run_script(train_downstream, monkeypatch, workspace, "--date", "d", *more)

    fails("no layer means for IC with any unit model", "--prompt_task", "IC")
    compute(workspace)
    fails("lr.*above 0", "--set", "lr=0")
    fails("max_update=0: expected at least 1", "--set", "max_update=0")
    path = means_folder(Workspace(workspace), NAME, "logmel100") / "valid.npy"
    kept = path.read_bytes()
    np.save(path, np.zeros((3, 1, 80), np.float32))
    fails(r"valid.npy: expected float32 \(6, layers, D\), found float32 \(3, 1, 80\)")
    path.write_bytes(kept)
    manifest = workspace / "preprocess" / NAME / "data" / "manifest"
    labels = read_json(manifest / "labels.json", "")
    write_json(manifest / "labels.json", dict(list(labels.items())[:-1]))
    fails("expected one label of each of action, object, location")
    write_json(manifest / "labels.json", labels)
    with open(manifest / "valid.tsv", "a", encoding="utf-8") as handle:
        handle.write((manifest / "valid.tsv").read_text().splitlines()[1] + "\n")
    fails("valid.npy: stale")


def on_all_frames(weights: dict[str, torch.Tensor], utterances: list[torch.Tensor]) -> torch.Tensor:
    """s3prl's order: weighted sum, projector, mean over time, classifier."""
    share = F.softmax(weights["layer_weights"], dim=-1)
    pooled = []
    for frames in utterances:  # (T, L, D)
        mixed = sum(share[layer] * frames[:, layer] for layer in range(LAYERS))
        projected = mixed @ weights["projector.weight"].T + weights["projector.bias"]
        pooled.append(projected.mean(dim=0))
    return torch.stack(pooled) @ weights["classifier.weight"].T + weights["classifier.bias"]


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
