"""The actions on tiny corpora: their output, and their errors for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from preprocess import runner
from preprocess.actions.downstreams import load_downstreams, shard_of
from preprocess.actions.manifest import read_manifest
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.speech2unit.kmeans import load_kmeans, save_kmeans
from tests.conftest import stage
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.tasks import all_actions, preprocessor, runner_flags


@pytest.fixture
def intents(tmp_path) -> Path:
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands")
    return tmp_path


def test_speech_commands_end_to_end(tmp_path):
    corpora.speech_commands(tmp_path / "corpora" / "speech_commands")
    task = preprocessor("speech_commands", tmp_path)
    all_actions(task)
    for split in SPLITS:
        _, entries = read_manifest(task.manifest / f"{split}.tsv")
        rows = list(read_rows(task.units / split))
        assert [(row.file, row.labels) for row in rows] == [(e.file, e.labels) for e in entries]
        lines = (task.quantized / split).read_text().splitlines()
        quantized = dict(line.rsplit("|", 1) for line in lines)
        assert list(quantized) == list(dict.fromkeys(row.file for row in rows))
        assert all(len(quantized[row.file].split(" ")) == 98 for row in rows)  # 1 s
        for row in rows:
            units = row.units.split(" ")
            assert all(a != b for a, b in zip(units, units[1:], strict=False))
    labels = json.loads((task.units / "labels.json").read_text())
    assert labels["2"] == {"slot": "keyword", "name": "up"}
    assert labels["11"] == {"slot": "keyword", "name": "_silence_"}
    assert (task.units / "config.yaml").exists() and (task.units / "provenance.json").exists()
    preprocessor("speech_commands", tmp_path, "taskrc.seed=2").generate_manifest()
    with pytest.raises(UserError, match="the manifest has changed"):
        task.postprocess()


def test_fluent_commands_numbers_labels_by_first_appearance(intents):
    task = preprocessor("fluent_commands", intents, "taskrc.merge=false")
    all_actions(task)
    assert [row.labels for row in read_rows(task.units / "train")] == ["0 2 4", "1 3 5", "0 3 4"]
    assert [row.labels for row in read_rows(task.units / "test")] == ["0 2 5", "1 3 4"]
    labels = json.loads((task.units / "labels.json").read_text())
    assert [(v["slot"], v["name"]) for v in labels.values()] == [
        *(("action", "start"), ("action", "stop")),
        *(("object", "lamp"), ("object", "heat")),
        *(("location", "none"), ("location", "kitchen")),
    ]
    lengths = [len(row.units.split(" ")) for row in read_rows(task.units / "train")]
    assert lengths == [48, 58, 68]  # runs kept: 1 + (T - 400) // 160


def test_a_corpus_that_cannot_be_used(tmp_path):
    """A label that is missing in train, a missing column, a missing corpus."""
    splits = corpora.FLUENT | {"valid": [("start", "piano", "none")]}
    root = corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands", splits)

    def check(message: str, *settings: str) -> None:
        with pytest.raises(UserError, match=message):
            preprocessor("fluent_commands", tmp_path, *settings).generate_manifest()

    check("object 'piano' never occurs in the train split")
    (root / "data" / "test_data.csv").write_text("path,action\n")
    check("no column 'object', 'location'")
    check("nowhere: corpus folder of fluent_commands not found", "datarc.root_path=nowhere")
    check("no such user", "datarc.root_path=~nosuchuser/x")
    assert not (tmp_path / "preprocess").exists()


def test_the_command_line(intents):
    """Works from any folder, and prints the next command."""
    flags = ("--downstream", "fluent_commands", "--workspace", intents)
    printed = stage("preprocess/runner.py", "--action", "generate_manifest", *flags)
    assert "train: 3 utterances, 3 distinct" in printed
    assert printed.splitlines()[-1].startswith("next: --action learn_kmeans")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_shards", 3, "--shard", 3], "expected 0 to 2"),
        (["--shard", 1], "give both"),
        (["--num_shards", 3], "give both"),
        (["--downstream", "whale_song"], "unknown; .*, or add preprocess/whale_song/config.yaml"),
        (["--set", "datarc.root_path=nowhere"], "root_path=nowhere: the folder of one corpus"),
        (["--set", "taskrc.merg=true"], "expected one of unit_model, merge, seed"),
        (["--set", "fairseqrc.km_clusters=many"], "fairseqrc.km_clusters"),
        *((["--set", setting], f"{setting}: expected at least")
          for setting in ("taskrc.seed=-1", f"taskrc.seed={2**40}", "fairseqrc.km_clusters=0",
                          "fairseqrc.km_frames=-5", f"fairseqrc.km_frames={10**12}",
                          "fairseqrc.km_starts=0", "fairseqrc.batch_seconds=nan",
                          "fairseqrc.batch_seconds=inf")),
    ],
)  # fmt: skip
def test_bad_command_lines(tmp_path, words, message):
    flags = runner_flags("--workspace", tmp_path, *words)
    with pytest.raises(UserError, match=message):
        shard_of(flags, Ranks())
        load_downstreams(flags, False)
    assert not list(tmp_path.iterdir())


def test_without_a_name_the_runner_does_every_existing_corpus(tmp_path, monkeypatch, capsys):
    """Nobody has every corpus. One line names the missing corpora."""
    everything = ["audio_snips", "librispeech", "table", "voxforge"]
    monkeypatch.setattr("preprocess.actions.downstreams.downstreams", lambda: everything)

    def loaded(after_manifest: bool) -> list[str]:
        flags = runner_flags("--workspace", tmp_path, "--unit_model", "logmel100")
        return [task.downstream for task in load_downstreams(flags, after_manifest)]

    names = ", ".join(everything)
    with pytest.raises(UserError, match=f"no corpus of {names}; get one "):
        loaded(False)
    corpora.librispeech(tmp_path / "corpora" / "librispeech")
    assert loaded(False) == ["librispeech"]
    left_out = "left out, without a corpus: audio_snips, table, voxforge\n"
    assert capsys.readouterr().out == left_out
    with pytest.raises(UserError, match=f"no manifest of {names}; run --action gen"):
        loaded(True)
    preprocessor("librispeech", tmp_path).generate_manifest()
    assert loaded(True) == ["librispeech"]


def test_a_unit_model_of_the_user(intents):
    """An entry in the user's table gives features, layer and k-means to its name."""
    folder = intents / "pretrained_models"
    folder.mkdir()
    model = ssl_checkpoints.hubert(folder / "mine.pt")
    (folder / "my_unit_models.yaml").write_text(
        "checkpoints: {mine: {path: pretrained_models/mine.pt}}\n"
        "unit_models: {mine8: {feature_type: hubert, checkpoint: mine, layer: 2, clusters: 8}}\n"
    )
    task = preprocessor("fluent_commands", intents, "taskrc.unit_model=mine8", "taskrc.merge=false")
    all_actions(task)
    centres = load_kmeans(folder / "mine8_km.npz")
    assert centres.shape == (8, 48)
    for row in read_rows(task.units / "train"):
        samples, _ = soundfile.read(task.root / row.file, dtype="float32")
        with torch.inference_mode():
            wave = torch.from_numpy(samples)[None]
            frames = model.extract_features(wave, output_layer=2)[0][0].double().numpy()
        distances = ((frames[:, None] - centres[None]) ** 2).sum(axis=2)
        assert row.units == " ".join(map(str, distances.argmin(axis=1)))
    with pytest.raises(UserError, match="my_unit_models.yaml"):
        preprocessor("fluent_commands", intents, "taskrc.unit_model=x")
    (folder / "mine.pt").unlink()
    shutil.rmtree(task.quantized)
    (folder / "mine8_km.npz").unlink()
    remedy = "correct its path: in my_unit_models.yaml, put the file there, or set fairseqrc.ckpt"
    for action in (lambda: learn_kmeans([task]), lambda: Quantizing(task)):
        with pytest.raises(UserError, match=rf"mine\.pt: .* not found; {remedy}"):
            action()


def test_a_missing_default_unit_model_is_replaced(tmp_path, monkeypatch, capsys):
    """The runner prints it. Only the default is replaced, never a unit model that a flag or the
    config names.
    """
    monkeypatch.setattr("pipeline.unit_models.REPOSITORY", tmp_path / "nothing")
    words = ["--action", "quantized", "--downstream", "table", "--workspace", str(tmp_path)]

    def loaded(*more: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["runner.py", *words, *more])
        (task,) = load_downstreams(runner.parse_arguments(), after_manifest=True)
        return task.config.taskrc.unit_model, capsys.readouterr().out

    name, printed = loaded()
    assert name == "mfcc100" and "download.py moonshine100" in printed
    assert loaded("--unit_model", "moonshine100") == ("moonshine100", "")
    assert loaded("--set", "taskrc.unit_model=moonshine50") == ("moonshine50", "")
    (tmp_path / "mine.yaml").write_text(
        "taskrc: {unit_model: moonshine100}\ndatarc: {root_path: x}\n"
    )
    assert loaded("--config", str(tmp_path / "mine.yaml")) == ("moonshine100", "")
    (tmp_path / "pretrained_models").mkdir()
    (tmp_path / "pretrained_models" / "moonshine_tiny_en.ort").touch()
    assert loaded() == ("moonshine100", "")


def test_tasks_share_a_kmeans_that_is_kept(intents, capsys):
    """Units and LMs depend on the k-means. Another number of clusters is an error."""
    corpora.librispeech(intents / "corpora" / "librispeech")
    tasks = [preprocessor(name, intents) for name in ("librispeech", "fluent_commands")]
    for task in tasks:
        task.generate_manifest()
    learn_kmeans(tasks)
    before = tasks[0].km_path.read_bytes()
    assert tasks[0].km_path == tasks[1].km_path
    learn_kmeans([preprocessor("fluent_commands", intents, "taskrc.seed=7")])
    assert tasks[0].km_path.read_bytes() == before
    assert "already exists: kept" in capsys.readouterr().out
    nine = preprocessor("fluent_commands", intents, "fairseqrc.km_clusters=9")
    with pytest.raises(UserError, match="differ in unit_model or fairseqrc"):
        learn_kmeans([tasks[0], nine])
    with pytest.raises(UserError, match="expected 9 clusters, found 8"):
        learn_kmeans([nine])
    save_kmeans(tasks[0].km_path, corpora.tone(0.01, 100)[:12].reshape(4, 3))
    with pytest.raises(UserError, match="centres have 3 numbers, a feature frame has 80"):
        Quantizing(tasks[0]).run(Ranks(), skip_bad=False)
    with pytest.raises(UserError, match="hubert50_km.bin: not found; hubert50 has a released"):
        learn_kmeans([preprocessor("fluent_commands", intents, "taskrc.unit_model=hubert50")])
