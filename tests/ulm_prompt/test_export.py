"""A prompt as a folder to share: an export keeps every bit, and loads in other workspaces too."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.rows import read_rows
from pipeline.torch_files import load_safetensors, save_safetensors
from pipeline.workspace import Workspace
from preprocess.speech2unit.kmeans import load_kmeans, save_kmeans
from tests.ulm_prompt import spoken, tiny
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.spoken import export
from ulm_prompt.prompt_data.prompt_record import BEST, RECORD, TENSORS, read_record, write_record
from ulm_prompt.prompt_lm.checkpoint import load
from ulm_prompt.prompt_lm.prompt import Prompt
from ulm_prompt.scoring.sample_file import origin_path
from ulm_prompt.using.predictor import Predictor
from ulm_prompt.using.share import record_of


@pytest.fixture(scope="module")
def exported(
    spoken_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Export KS from a published checkpoint and IC from our checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    for task in spoken.DOWNSTREAMS:
        export(spoken_workspace, folder / task, "--license", "CC-BY-4.0", task=task)
    return {task: folder / task for task in spoken.DOWNSTREAMS}


@pytest.mark.parametrize("task", ["KS", "IC"])
def test_the_contents_of_an_export(
    spoken_workspace: Workspace, exported: dict[str, Path], task: str
) -> None:
    record = read_record(exported[task])
    folder = spoken_workspace.checkpoints(task, spoken.UNIT_MODEL, "d")
    facts = (record.task, record.unit_model, record.prefix_prompt_length, record.license)
    assert facts == (task, spoken.UNIT_MODEL, spoken.LENGTHS[task], "CC-BY-4.0")
    assert record.trained_parameters == spoken.LENGTHS[task] * 32 * 7 + 32  # P*D*(1+2L) + D
    _, unit_lm = load(folder, spoken_workspace.lm(spoken.UNIT_MODEL))
    assert record.lm_fingerprint == unit_lm.fingerprint
    assert (record.recipe, record.valid, record.labels["0"]) == {
        "KS": (None, {}, {"slot": "keyword", "name": "yes"}),
        "IC": ("fast", {"accuracy": 61.5}, {"slot": "action", "name": "start"}),
    }[task]
    published = torch.load(folder / "checkpoint_best.pt", weights_only=True)["model"]
    for name, tensor in load_safetensors(exported[task] / TENSORS).items():
        assert torch.equal(tensor, published[name])
    text = (exported[task] / RECORD).read_text()
    assert str(spoken_workspace.root) not in text and os.sep + "tmp" not in text
    readme = (exported[task] / "README.md").read_text()
    assert record.lm_fingerprint in readme and f"`{record.labels['0']['name']}`" in readme


def test_an_export_answers_like_the_checkpoint(
    spoken_workspace: Workspace, predictor: Predictor, exported: dict[str, Path], tmp_path: Path
) -> None:
    """This also holds in a workspace that only contains the LM and the k-means."""
    files = sorted((spoken_workspace.root / "corpora").rglob("*.wav"))[::4]
    shutil.copytree(spoken_workspace.root / "pretrained_models", tmp_path / "pretrained_models")
    for root in (spoken_workspace.root, tmp_path):
        shared = Predictor.load(list(exported.values()), root, dtype="float32")
        assert shared(files, top=3) == predictor(files, top=3)


def test_test_accuracy_is_of_this_checkpoint_decoded_greedily(
    spoken_workspace: Workspace, tmp_path: Path
) -> None:
    """Newer sample files are skipped if they have another checkpoint, test split or search, were
    changed by hand, or have no record of what they were made from.
    """
    workspace = Workspace(tmp_path / "copy")  # other tests write samples to spoken_workspace
    ignore = shutil.ignore_patterns("corpora", "samples")
    shutil.copytree(spoken_workspace.root, workspace.root, ignore=ignore)
    checkpoint = workspace.checkpoints("IC", spoken.UNIT_MODEL, "d") / "checkpoint_best.pt"
    data = read_record(checkpoint.parent).run.data
    options = {"beam": 1, "sampling": False, "max_units": 16_384, "max_labels": 200}
    options |= {"batch_size": 9}  # changes no answer
    best = {"prompt": sha256(checkpoint), "options": options, "data": data}
    runs = {
        "best": (1, best),
        "a_checkpoint": (2, {**best, "prompt": "0" * 64}),
        "a_draw": (3, {**best, "options": {**options, "sampling": True}}),
        "a_cut": (0, {**best, "options": {**options, "max_units": 10}}),
        "a_short": (0, {**best, "options": {**options, "max_labels": 3}}),
        "a_set": (0, {**best, "options": {**options, "within_labels": "set"}}),
        "a_test": (3, {**best, "data": {"test": "0" * 64}}),
        "an_edit": (4, {**best, "files": {}}),
        "an_unknown": (4, None),
    }
    entry = {right: {"label": "1 2", "predict": f"{2 - right} 2"} for right in (True, False)}
    for date, (right, origin) in runs.items():
        path = workspace.samples("IC", spoken.UNIT_MODEL, "d", date)
        for name in (path, path.with_stem(path.stem + "_within_labels")):
            write_json(name, {str(number): entry[number < right] for number in range(4)})
        if origin:
            write_json(origin_path(path), origin)
    assert "no licence" in export(workspace, tmp_path / "one")
    assert read_record(tmp_path / "one").test["accuracy"] == 25.0
    origin_path(workspace.samples("IC", spoken.UNIT_MODEL, "d", "best")).unlink()
    assert "no test accuracy" in export(workspace, tmp_path / "none")
    assert read_record(tmp_path / "none").test == {}


def test_labels_keep_their_names_of_training(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """Rows that were made again may use other label numbers."""
    path = spoken_workspace.checkpoints("IC", spoken.UNIT_MODEL, "d") / "prompt.json"
    before = read_json(path, "")
    labels = {number: {"slot": "s", "name": f"n{number}"} for number in before["verbal"]}
    write_json(path, {**before, "labels": labels})
    export(spoken_workspace, tmp_path / "out")
    write_json(path, before)
    assert read_record(tmp_path / "out").labels == labels


def test_a_prompt_of_another_verbal_map(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """Its export has the label sequences of its own text, and its report has its own names."""
    workspace = Workspace(tmp_path / "copy")
    ignore = shutil.ignore_patterns("corpora", "samples")
    shutil.copytree(spoken_workspace.root, workspace.root, ignore=ignore)
    flags = ("--prompt_task", "IC", "--verbalizer", "v", "--method", "random", "--seed", 3)
    call("verbalizer", workspace.root, *flags)
    folder = spoken.write_prompt(workspace, "IC", "v", 1, verbalizer="v").parent
    paths = [folder / "checkpoint_best.pt", folder.with_name(folder.name[:-1] + "d") / BEST]
    named, default = (record_of(path, "IC", spoken.UNIT_MODEL, workspace) for path in paths)
    assert named.verbal != default.verbal
    assert named.label_sequences == default.label_sequences is not None
    write_record(folder, dataclasses.replace(read_record(folder), labels=named.labels))
    decode = ("--sample_date", "v", "--verbalizer", "v")
    call("sample", workspace.root, *spoken.of_run("IC", "v"), *decode)
    printed = call("cal_acc", workspace.root, "--sample_date", "v", "--report", "--json")
    (report,) = json.loads(printed).values()
    rows = read_rows(workspace.rows("fluent_commands", spoken.UNIT_MODEL, "test"))
    expected = {", ".join(named.labels[n]["name"] for n in row.labels.split()) for row in rows}
    assert {score["name"] for score in report["classes"]} == expected


def test_sample_py_decodes_with_an_export(
    spoken_workspace: Workspace, exported: dict[str, Path]
) -> None:
    folder = spoken_workspace.checkpoints("IC", spoken.UNIT_MODEL, "d")
    files = []
    for date, path in (
        ("own", folder / "checkpoint_best.pt"),
        ("shared", exported["IC"] / TENSORS),
    ):
        flags = ("--checkpoint", path, "--sample_date", date)
        call("sample", spoken_workspace.root, *spoken.of_run("IC"), *flags)
        files.append(spoken_workspace.samples("IC", spoken.UNIT_MODEL, "d", date))
        assert read_json(origin_path(files[-1]), "")["prompt"] == sha256(path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_kmeans_and_labels_of_local_units_are_required(
    spoken_workspace: Workspace, tmp_path: Path
) -> None:
    """Without this check, the record would silently lack facts. Units from elsewhere need none."""
    root = tmp_path / "w"
    shutil.copytree(spoken_workspace.root, root, ignore=shutil.ignore_patterns("corpora"))
    kmeans = root / "pretrained_models" / "logmel100_km.npz"
    labels = root / "preprocess/speech_commands/data/logmel100/labels.json"
    centres = kmeans.read_bytes()
    for change, expected in (
        (lambda: save_kmeans(kmeans, load_kmeans(kmeans) + 1), "differs from the k-means that"),
        (kmeans.unlink, "not found, expected the k-means that .* was made with"),
        (lambda: (kmeans.write_bytes(centres), labels.unlink()), "labels.json: not found; run"),
    ):
        change()
        with pytest.raises(UserError, match=expected):
            Predictor.load(["KS"], root)
        with pytest.raises(UserError, match=expected):
            export(Workspace(root), root / "shared", task="KS")
        assert not (root / "shared").exists()


def another_dict(root: Path) -> None:
    path = Workspace(root).lm(spoken.UNIT_MODEL) / "dict.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def another_kmeans(root: Path) -> None:
    path = root / "pretrained_models" / "logmel100_km.npz"
    save_kmeans(path, load_kmeans(path)[::-1].copy())


def changed(root: Path, **values: object) -> None:
    record = read_json(root / "shared" / RECORD, "")
    record["units"] |= values.pop("units", {})
    write_json(root / "shared" / RECORD, {**record, **values})


def other_tensors(root: Path, width: int = 32, value: float = 0.0) -> None:
    state = Prompt(3, 3, width).published_state()
    state["decoder.sep_embed.weight"][0, 0] = value
    save_safetensors(state, root / "shared" / TENSORS)


def a_pickle(root: Path) -> None:
    torch.save(tiny.prompted().prompt.published_state(), root / "shared" / TENSORS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: tiny.write_lm(Workspace(root).lm(spoken.UNIT_MODEL), tiny.lm(seed=5)),
         "its LM has fingerprint .* was trained on {lm_fingerprint}"),
        (another_dict, "was trained with {dict_fingerprint}"),
        (another_kmeans, "expected logmel100 with kmeans {kmeans}, found "),
        (partial(changed, unit_model="whales100"), "taskrc.unit_model=whales100: not in"),
        (partial(changed, units={"dtype": "bfloat16"}), "dtype=bfloat16: logmel computes in"),
        (partial(changed, prefix_prompt_length=4), "length 3, but prompt.json beside it says 4"),
        (partial(other_tensors, width=16), "this prompt belongs to another LM"),
        (partial(other_tensors, value=float("nan")), "not finite"),
        (a_pickle, "not a safetensors file"),
        (lambda root: (root / "shared" / RECORD).unlink(), "prompt.json: not found"),
    ],
)  # fmt: skip
def test_what_does_not_match_a_shared_prompt(
    spoken_workspace: Workspace, exported: dict[str, Path], tmp_path: Path,
    change: Callable[[Path], None], expected: str,
) -> None:  # fmt: skip
    """The workspace only contains the models."""
    shutil.copytree(spoken_workspace.pretrained, tmp_path / "pretrained_models")
    shutil.copytree(exported["IC"], elsewhere := tmp_path / "shared")
    record = read_record(elsewhere)
    change(tmp_path)
    expected = expected.format(**vars(record), kmeans=record.units.kmeans)
    with pytest.raises(UserError, match=expected) as error:
        Predictor.load([elsewhere], tmp_path)
    assert "\n" not in str(error.value)


def test_files_of_the_user_are_not_overwritten(
    spoken_workspace: Workspace, exported: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for words, expected in (
        ([tmp_path], "contains notes.txt; name a new folder"),
        ([tmp_path / "notes.txt"], "found a file; name a folder"),
        ([tmp_path / "out", "--checkpoint", "checkpoint_7.pt"], "correct --model_date"),
        ([tmp_path / "out", "--license", "two\nlines"], "license: expected one line"),
    ):
        with pytest.raises(UserError, match=expected):
            export(spoken_workspace, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    before = (exported["IC"] / TENSORS).read_bytes()
    export(spoken_workspace, exported["IC"], "--license", "MIT")
    assert read_record(exported["IC"]).license == "MIT"
    assert (exported["IC"] / TENSORS).read_bytes() == before
