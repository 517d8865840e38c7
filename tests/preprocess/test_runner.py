"""The actions on tiny corpora: what they leave, and what they say when the input is bad."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from pipeline.devices import Ranks
from pipeline.errors import UserError
from pipeline.rows import SPLITS, read_rows
from pipeline.workspace import REPOSITORY
from preprocess import runner
from preprocess.actions.downstreams import load_downstreams
from preprocess.actions.manifest import read_manifest
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.kmeans import load_kmeans
from preprocess.speech_commands.preprocessor import TRAIN_FOLDER, which_split
from tests.preprocess import corpora, ssl_checkpoints
from tests.preprocess.tasks import preprocessor

PUBLISHED = REPOSITORY.parent / "shared" / "data" / "units" / "hubert100" / "speech_commands"


def all_actions(task: Preprocessor) -> None:
    task.generate_manifest()
    learn_kmeans([task])
    Quantizing(task).run(Ranks(), skip_bad=False)
    task.postprocess()


@pytest.fixture
def keywords(tmp_path) -> Path:
    corpora.speech_commands(tmp_path / "corpora" / "speech_commands")
    return tmp_path


@pytest.fixture
def intents(tmp_path) -> Path:
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands")
    return tmp_path


def run_stage(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "preprocess" / "runner.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_speech_commands_end_to_end(keywords):
    task = preprocessor("speech_commands", keywords)
    all_actions(task)
    for split in SPLITS:
        _, entries = read_manifest(task.manifest / f"{split}.tsv")
        rows = list(read_rows(task.units / split))
        assert [(row.file, row.labels) for row in rows] == [(e.file, e.labels) for e in entries]
        quantized = dict(
            line.rsplit("|", 1) for line in (task.quantized / split).read_text().splitlines()
        )
        assert list(quantized) == list(dict.fromkeys(row.file for row in rows))
        assert all(len(quantized[row.file].split(" ")) == 98 for row in rows)  # 1 s
        for row in rows:
            units = row.units.split(" ")
            assert all(a != b for a, b in zip(units, units[1:], strict=False))
    labels = json.loads((task.units / "labels.json").read_text())
    assert labels["2"] == {"slot": "keyword", "name": "up"}
    assert labels["11"] == {"slot": "keyword", "name": "_silence_"}
    assert (task.units / "config.yaml").exists() and (task.units / "provenance.json").exists()


def test_speech_commands_each_file_once(keywords):
    task = preprocessor("speech_commands", keywords, "datarc.train=each_once")
    task.generate_manifest()
    _, entries = read_manifest(task.manifest / "train.tsv")
    assert Counter(entry.labels for entry in entries) == dict.fromkeys(map(str, range(12)), 2)
    silences = [entry for entry in entries if entry.labels == "11"]
    for entry in silences:
        assert entry.path.endswith("_background_noise_/rain.wav")
        assert entry.file == f"temp/_background_noise_/rain-{entry.start}.wav"
        assert entry.frames == 16_000 and 0 <= entry.start <= 32_000


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


def test_label_never_seen_in_train(tmp_path):
    splits = corpora.FLUENT | {"valid": [("start", "piano", "none")]}
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands", splits)
    with pytest.raises(UserError, match="object 'piano' never occurs in the train split"):
        preprocessor("fluent_commands", tmp_path).generate_manifest()
    assert not (tmp_path / "preprocess").exists()


def test_missing_csv_and_missing_column(intents):
    folder = intents / "corpora" / "fluent_commands" / "data"
    (folder / "test_data.csv").unlink()
    with pytest.raises(UserError, match=r"test_data\.csv: not found"):
        preprocessor("fluent_commands", intents).generate_manifest()
    (folder / "test_data.csv").write_text("path,action\n")
    with pytest.raises(UserError, match="no column 'object', 'location'"):
        preprocessor("fluent_commands", intents).generate_manifest()


def test_stale_units_are_refused(keywords):
    task = preprocessor("speech_commands", keywords)
    all_actions(task)
    preprocessor("speech_commands", keywords, "taskrc.seed=2").generate_manifest()
    with pytest.raises(UserError, match="the manifest has changed"):
        task.postprocess()


def test_foreign_kmeans_is_refused(intents):
    from preprocess.speech2unit.kmeans import save_kmeans

    task = preprocessor("fluent_commands", intents)
    task.generate_manifest()
    save_kmeans(task.km_path, corpora.tone(0.01, 100)[:12].reshape(4, 3))
    with pytest.raises(UserError, match="centres have 3 numbers, a feature frame has 80"):
        Quantizing(task).run(Ranks(), skip_bad=False)


@pytest.mark.parametrize("missing", ["yes", "_background_noise_"])
def test_missing_class_is_named(keywords, missing):
    folder = keywords / "corpora" / "speech_commands" / TRAIN_FOLDER / missing
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=missing):
        preprocessor("speech_commands", keywords).generate_manifest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--downstream", "whale_song"],
            "unknown; there is ",
        ),
        (["--set", "datarc.root_path=nowhere"], "root_path=nowhere: one corpus' folder"),
        (
            ["--set", "taskrc.merg=true"],
            "expected one of unit_model, merge, seed",
        ),
        (["--set", "fairseqrc.km_clusters=many"], "fairseqrc.km_clusters"),
    ],
)
def test_bad_command_lines(tmp_path, arguments, message):
    action = ["--action", "generate_manifest", "--workspace", str(tmp_path)]
    result = run_stage(*action, *arguments)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_runs_from_any_folder_and_says_what_comes_next(intents):
    result = run_stage(
        *("--downstream", "fluent_commands", "--action", "generate_manifest"),
        *("--workspace", str(intents)),
        cwd=intents / "corpora",
    )
    assert result.returncode == 0, result.stderr
    assert "train: 3 utterances, 3 distinct" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: --action learn_kmeans")


def test_a_unit_model_of_ones_own(intents):
    """Named once in the table, it is found by its name: features, layer, k-means."""
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
    said = pytest.raises(UserError, preprocessor, "fluent_commands", intents, "taskrc.unit_model=x")
    assert "my_unit_models.yaml" in str(said.value)
    (folder / "mine.pt").unlink()
    shutil.rmtree(task.quantized)
    with pytest.raises(UserError, match=r"mine\.pt: the speech model's checkpoint not found"):
        Quantizing(task).run(Ranks(), skip_bad=False)


@pytest.mark.parametrize(
    "override",
    ["taskrc.seed=-1", "fairseqrc.km_clusters=0", "fairseqrc.km_frames=-5", "fairseqrc.km_starts=0",
     "fairseqrc.batch_seconds=nan", "fairseqrc.batch_seconds=inf", f"taskrc.seed={2**40}",
     f"fairseqrc.km_frames={10**12}"],
)  # fmt: skip
def test_numbers_that_cannot_be(tmp_path, override):
    key, _, value = override.partition("=")
    with pytest.raises(UserError, match=f"{key}={value}: expected at least"):
        preprocessor("speech_commands", tmp_path, override)


def test_a_default_unit_model_that_is_not_here_gives_way_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the default: a unit model that was asked for is not replaced."""
    monkeypatch.setattr("pipeline.unit_models.REPOSITORY", tmp_path / "nothing")
    asked = ["--action", "quantized", "--downstream", "table", "--workspace", str(tmp_path)]

    def loaded(*more: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["runner.py", *asked, *more])
        (task,) = load_downstreams(runner.parse_arguments(), after_manifest=True)
        return task.config.taskrc.unit_model, capsys.readouterr().out

    name, printed = loaded()
    assert name == "mfcc100" and "download.py moonshine100" in printed
    assert loaded("--unit_model", "moonshine100") == ("moonshine100", "")
    assert loaded("--set", "taskrc.unit_model=moonshine50") == ("moonshine50", "")
    (tmp_path / "pretrained_models").mkdir()
    (tmp_path / "pretrained_models" / "moonshine_tiny_en.ort").touch()
    assert loaded() == ("moonshine100", "")


def test_both_tasks_share_a_kmeans(intents):
    corpora.speech_commands(intents / "corpora" / "speech_commands")
    tasks = [preprocessor(name, intents) for name in ("speech_commands", "fluent_commands")]
    for task in tasks:
        task.generate_manifest()
    learn_kmeans(tasks)
    assert tasks[0].km_path == tasks[1].km_path and tasks[0].km_path.exists()
    tasks[1].config.fairseqrc.km_clusters = 9
    with pytest.raises(UserError, match="differ in unit_model or fairseqrc"):
        learn_kmeans(tasks)


def test_a_kmeans_that_is_there_stays(intents, capsys):
    """Units and LMs belong to it; another number of clusters is told apart."""
    task = preprocessor("fluent_commands", intents)
    task.generate_manifest()
    learn_kmeans([task])
    before = task.km_path.read_bytes()
    learn_kmeans([preprocessor("fluent_commands", intents, "taskrc.seed=7")])
    assert task.km_path.read_bytes() == before
    assert "already exists: kept" in capsys.readouterr().out
    with pytest.raises(UserError, match="has 8 clusters, asked for are 9"):
        learn_kmeans([preprocessor("fluent_commands", intents, "fairseqrc.km_clusters=9")])


def test_a_speech_model_s_kmeans_is_not_learned_unasked(intents):
    task = preprocessor("fluent_commands", intents, "taskrc.unit_model=hubert50")
    task.generate_manifest()
    with pytest.raises(UserError, match="hubert50_km.bin: not here, but hubert50 comes with it"):
        learn_kmeans([task])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a6d586b7_nohash_4.wav", "valid"),  # both in the dataset's validation list
        ("dbb40d24_nohash_3.wav", "valid"),
        ("37fc5d97_nohash_1.wav", None),  # both in the test set
        ("27c30960_nohash_0.wav", None),
        ("024d32b9_nohash_1.wav", "train"),
        ("2357fa8a_nohash_1.wav", "train"),
    ],
)
def test_known_names(name, split):
    assert which_split(name) == split


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published units in ../shared/data")
def test_published_validation_rows_are_validation_files():
    files = {row.file for row in read_rows(PUBLISHED / "valid")}
    spoken = [file for file in files if not file.startswith("temp/")]
    assert len(files) == 3370 and len(spoken) > 2500
    assert {which_split(Path(file).name) for file in spoken} == {"valid"}
