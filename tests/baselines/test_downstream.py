"""From audio to layer means to a trained downstream model, which equals SUPERB's on all frames."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from baselines import layer_means, train_downstream
from baselines.classifiers.answers import load_settings
from baselines.classifiers.downstream import (
    CONFIG,
    DownstreamModel,
    Settings,
    Split,
    accuracy,
    train,
)
from baselines.classifiers.means import LayerMeans, means_folder, read_means
from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.rows import SPLITS
from pipeline.torch_files import load_torch
from pipeline.workspace import Workspace
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import read_audio
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.tasks import preprocessor
from ulm_prompt.scoring.scores import score

INTENTS = [("start", "lamp", "none"), ("stop", "heat", "kitchen"), ("start", "heat", "none")]
COUNTS = {"train": 24, "valid": 6, "test": 7}
NAME = "fluent_commands"


def task_of(workspace: Path, *settings: str) -> Preprocessor:
    """Return the preprocessor of fluent_commands, with many small blocks."""
    return preprocessor(NAME, workspace, "fairseqrc.batch_seconds=0.3", *settings)


@pytest.fixture
def workspace(tmp_path) -> Path:
    """Write a corpus whose intents sound different, and the manifests."""
    splits = {split: (8 * INTENTS)[:count] for split, count in COUNTS.items()}
    root = corpora.fluent_commands(tmp_path / "corpora" / NAME, splits)
    for split, count in COUNTS.items():
        for number in range(count):
            samples = corpora.tone(0.1 + 0.05 * (number % 7), 90 + 300 * (number % 3) + number)
            corpora.write(root / f"wavs/speakers/{split}/{number}.wav", samples)
    task_of(tmp_path).generate_manifest()
    return tmp_path


def compute(workspace: Path) -> None:
    LayerMeans(task_of(workspace)).run(Ranks(), skip_bad=False)


def run_script(script, monkeypatch, workspace: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--workspace", str(workspace), *arguments])
    script.main()


@pytest.mark.parametrize(("feature_type", "layers"), [("logmel", 1), ("cpc", 4), ("hubert", 4)])
def test_means_are_those_of_each_layers_frames(workspace, feature_type, layers):
    settings, unit_model = [], "logmel100"
    if feature_type != "logmel":
        unit_model = "own8"
        getattr(ssl_checkpoints, feature_type)(workspace / "own.pt")
        settings = [f"fairseqrc.feature_type={feature_type}", "fairseqrc.layer=2",
                    "fairseqrc.ckpt_path=own.pt"]  # fmt: skip
    task = task_of(workspace, f"taskrc.unit_model={unit_model}", *settings)
    LayerMeans(task).run(Ranks(), skip_bad=False)
    reader, _ = task.feature_reader(all_layers=True)
    for split, count in COUNTS.items():
        means = read_means(Workspace(workspace), NAME, unit_model, split).means
        root, entries = read_manifest(task.manifest / f"{split}.tsv")
        assert means.shape == (count, layers, reader.dim)
        for entry, row in zip(distinct(entries), means, strict=True):
            (frames,) = reader(
                [torch.from_numpy(read_audio(root / entry.path, entry.start, entry.frames).samples)]
            )
            expected = torch.stack([frames[:, layer].mean(dim=0) for layer in range(layers)])
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
        assert means.std() > 0.01


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
    """Shards compute the means. The tests of quantising check that a killed run resumes."""
    means = means_folder(Workspace(workspace), NAME, "logmel100")
    compute(workspace)
    expected = {split: (means / f"{split}.npy").read_bytes() for split in SPLITS}
    flags = (
        "--downstream",
        NAME,
        "--unit_model",
        "logmel100",
        "--set",
        "fairseqrc.batch_seconds=0.3",
    )
    run_script(layer_means, monkeypatch, workspace, *flags)
    assert "already exists" in capsys.readouterr().out
    for split in SPLITS:
        (means / f"{split}.npy").unlink()
    for shard in ("--num_shards=2 --shard=1", "--num_shards=2 --shard=0", "--merge_shards"):
        run_script(layer_means, monkeypatch, workspace, *flags, *shard.split())
    printed = capsys.readouterr().out
    assert "train: 24 files" in printed and "next: baselines/train_downstream.py" in printed
    assert {split: (means / f"{split}.npy").read_bytes() for split in SPLITS} == expected
    flags = ("--date", "d", "--set", "max_update=60", "validate_every=20", "lr=1e-2")
    run_script(train_downstream, monkeypatch, workspace, *flags)
    folder = workspace / "checkpoints" / "IC_logmel100_downstream_d"
    record = read_json(folder / "downstream.json", "")
    assert record["trained_parameters"] == 80 * 256 + 256 + 256 * 6 + 6
    assert record["config"]["seed"] == 100501 and record["made_by"]["versions"]
    assert record["valid"]["accuracy"] == max(record["valid_curve"].values()) == 100
    assert record["valid_curve"][str(record["updates"])] == 100
    path = Workspace(workspace).samples("IC", "logmel100", "downstream_d", "d")
    result = score(path)
    assert (
        result["accuracy"] == result["accuracy_within_labels"] == record["test"]["accuracy"] == 100
    )
    assert (result["utterances"], result["invalid"]) == (7, 0)
    assert read_json(path, "")["1"] == {
        "file_name": "wavs/speakers/test/1.wav", "src": "", "label": "1 3 5", "predict": "1 3 5",
    }  # fmt: skip

    state = load_torch(folder / "checkpoint_best.pt")
    assert sum(value.numel() for value in state.values()) == record["trained_parameters"] + 1
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
    """The valid labels contradict train, so accuracy on valid falls during training."""
    torch.manual_seed(0)
    means = torch.randn(30, 1, 8)
    labels = (means[:, 0, :1] > 0).long()
    index = torch.arange(30)
    settings = load_settings(Settings, CONFIG, ["max_update=40", "validate_every=1", "lr=1e-3"])
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
    fails("lr=0.*: expected a positive number", "--set", "lr=0")
    path = means_folder(Workspace(workspace), NAME, "logmel100") / "valid.npy"
    kept = path.read_bytes()
    np.save(path, np.zeros((3, 1, 80), np.float32))
    fails(r"valid.npy: expected float32 \(6, layers, D\), found float32 \(3, 1, 80\)")
    path.write_bytes(kept)
    manifest = workspace / "preprocess" / NAME / "data" / "manifest"
    labels = read_json(manifest / "labels.json", "")
    write_json(manifest / "labels.json", dict(list(labels.items())[:-1]))
    fails("expected one label of each of action, object, location")
    with open(manifest / "valid.tsv", "a", encoding="utf-8") as handle:
        handle.write((manifest / "valid.tsv").read_text().splitlines()[1] + "\n")
    write_json(manifest / "labels.json", labels)
    fails("valid.npy: stale")


def test_means_give_the_output_and_gradient_of_all_frames():
    """s3prl's order: weighted sum, projector, mean over time, classifier."""
    layers, dim, slots = 4, 10, [3, 5, 2]
    torch.manual_seed(0)
    model = DownstreamModel(layers, dim, slots, 7).double()
    with torch.no_grad():
        model.layer_weights.copy_(torch.randn(layers))
    utterances = [torch.randn(length, layers, dim).double() for length in (1, 9, 30, 30, 4)]
    labels = torch.tensor([[0, 4, 1], [2, 0, 0], [1, 1, 1], [0, 0, 0], [2, 3, 0]])
    means = torch.stack([utterance.mean(dim=0) for utterance in utterances])

    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    for weight in weights.values():
        weight.requires_grad_(True)
    share = F.softmax(weights["layer_weights"], dim=-1)
    pooled = []
    for frames in utterances:  # (T, L, D)
        mixed = sum(share[layer] * frames[:, layer] for layer in range(layers))
        projected = mixed @ weights["projector.weight"].T + weights["projector.bias"]
        pooled.append(projected.mean(dim=0))
    logits = torch.stack(pooled) @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(torch.cat(model(means), dim=1), logits)
    parts = logits.split(slots, dim=1)
    expected = sum(F.cross_entropy(part, labels[:, slot]) for slot, part in enumerate(parts))
    expected.backward()
    loss = model.loss(means, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 1e-6
        torch.testing.assert_close(weight.grad, weights[name].grad)
    guess = torch.stack([part.argmax(dim=1) for part in parts], dim=1)
    assert torch.equal(model.predict(means, batch=2), guess)
    papers = DownstreamModel(13, 768, [12], 256), DownstreamModel(13, 768, [6, 14, 4], 256)
    assert [model.trained_parameters for model in papers] == [199_961, 203_045]  # paper: 0.2M
