"""Finding prompts by name or path, loading several prompts, and the repository's prompt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import runs, unit_models
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.workspace import Workspace
from preprocess.speech2unit.kmeans import load_kmeans, save_kmeans
from tests.ulm_prompt import spoken, tiny
from ulm_prompt.prompt_data.prompt_record import RECORD
from ulm_prompt.using import find_prompts
from ulm_prompt.using.find_prompts import find_prompt, task_and_unit_model
from ulm_prompt.using.predictor import Predictor

REGISTRY = """unit_models:
  NAME:
    feature_type: logmel
    clusters: 60
    kmeans: {path: ROOT/pretrained_models/shipped/km.npz}
    lm: {path: ROOT/pretrained_models/shipped/lm}
"""


def test_which_prompt_a_word_means(spoken_workspace: Workspace, tmp_path: Path) -> None:
    """A task with two prompts is an error. An unfinished run does not count."""
    workspace = Workspace(tmp_path)
    source = spoken_workspace.checkpoints("IC", spoken.UNIT_MODEL, "d")
    first, second, running = (
        shutil.copytree(source, workspace.checkpoints("IC", spoken.UNIT_MODEL, date))
        for date in ("a", "b", "c")
    )
    record = read_json(running / "prompt.json", "")
    write_json(running / "prompt.json", {**record, "trained_parameters": 0})
    with pytest.raises(UserError, match="2 prompts: .*_a, .*_b; choose one") as error:
        find_prompt("IC", workspace)
    assert "checkpoints_c" not in str(error.value).split("choose")[0]
    best = second / "checkpoint_best.pt"
    assert {find_prompt(str(word), workspace) for word in (second, best)} == {best}
    assert find_prompt("IC", workspace, model_date="b") == best
    with pytest.raises(UserError, match="no trained prompt at .*_c; .*_c is not finished"):
        find_prompt("IC", workspace, model_date="c")
    shutil.rmtree(second)
    assert find_prompt("IC", workspace) == first / "checkpoint_best.pt"
    published = tmp_path / "KS_my_units100_checkpoints_2022" / "x.pt"
    assert task_and_unit_model(published) == ("KS", "my_units100")
    with pytest.raises(UserError, match="unknown task; expected a folder name"):
        task_and_unit_model(tmp_path / "elsewhere" / "x.pt")


def test_prompts_that_do_not_go_together(spoken_workspace: Workspace, tmp_path: Path) -> None:
    source = spoken_workspace.checkpoints("IC", spoken.UNIT_MODEL, "d")
    folder = shutil.copytree(source, tmp_path / "other")
    record = read_json(folder / "prompt.json", "")
    for change, prompts, expected in (
        ({"lm_fingerprint": "0" * 16}, ["IC", folder], "trained on 0000000000000000; use that LM"),
        ({"lm_fingerprint": "0" * 16}, [folder], "trained on 0000000000000000; use that LM"),
        ({"fine_tune": True}, [folder], "found a fine-tuned LM"),
    ):
        write_json(folder / "prompt.json", {**record, **change})
        with pytest.raises(UserError, match=expected):
            Predictor.load(prompts, spoken_workspace.root)


@pytest.fixture
def repository(
    spoken_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Write a folder like the repository: an exported prompt next to its k-means and LM."""
    root = tmp_path / "repository"
    folder, models = root / "pretrained_models", spoken_workspace.pretrained
    shutil.copytree(models / "logmel100_lm", folder / "shipped" / "lm")
    shutil.copy(models / "logmel100_km.npz", folder / "shipped" / "km.npz")
    spoken.export(spoken_workspace, shipped := folder / "shipped" / "commands")
    table = tmp_path / "registry.yaml"
    table.write_text(REGISTRY.replace("NAME", spoken.UNIT_MODEL).replace("ROOT", str(root)))
    monkeypatch.setattr(unit_models, "REGISTRY", table)
    monkeypatch.setattr(find_prompts, "SHIPPED", shipped)
    unit_models._released.cache_clear()
    yield root
    unit_models._released.cache_clear()


@pytest.fixture
def clip(spoken_workspace: Workspace) -> Path:
    return spoken.clip(spoken_workspace, "fluent_commands")


def test_the_prompt_answers_and_prints_its_labels(
    repository: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The workspace is empty."""
    empty = Workspace(tmp_path / "elsewhere")
    words = clip, "--format", "table", "--device", "cpu", "--dtype", "float32"
    assert spoken.predict(empty, *words) == 0
    out, errors = capsys.readouterr()
    monkeypatch.setattr(runs, "_quiet", False)  # restored after the test
    assert spoken.predict(empty, *words, "--quiet") == 0
    assert capsys.readouterr() == (out, "")
    assert out.splitlines()[1].split()[1] == "IC"
    first, second = errors.splitlines()[:2]
    assert second == "computes on CPU, as asked, in torch.float32 (as asked)"
    assert first.startswith("prompt commands, labels: ")
    labels = read_json(find_prompts.SHIPPED / RECORD, "")["labels"]
    assert all(entry["name"] in first for entry in labels.values())
    assert not empty.root.exists()
    by_default = Predictor.load(dtype="float32")([clip])
    assert by_default == Predictor.load([find_prompts.SHIPPED], tmp_path, dtype="float32")([clip])


def test_other_models_of_the_user_are_ignored(repository: Path, clip: Path) -> None:
    """The prompt ignores a k-means and an LM that the stages have trained in the repository."""
    before = Predictor.load(dtype="float32")([clip])
    models = repository / "pretrained_models"
    save_kmeans(models / "logmel100_km.npz", load_kmeans(models / "shipped" / "km.npz") + 1)
    tiny.write_lm(models / "logmel100_lm", seed=5)
    data = Workspace(repository).downstream_data("fluent_commands") / spoken.UNIT_MODEL
    data.mkdir(parents=True)
    (data / "config.yaml").write_text("fairseqrc:\n  km_path: pretrained_models/other.npz\n")
    assert Predictor.load(dtype="float32")([clip]) == before


def test_missing_files_are_reported(
    repository: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the speech model is missing, then the prompt."""
    shipped = find_prompts.SHIPPED
    record = read_json(shipped / RECORD, "")
    units = {**record["units"], "feature_type": "moonshine", "kmeans": None}
    write_json(shipped / RECORD, {**record, "unit_model": "moonshine100", "units": units})
    models = repository / "pretrained_models"
    shutil.copy(models / "shipped" / "km.npz", models / "moonshine100_km.npz")
    registry = Path(unit_models.__file__).parents[1] / "pretrained_models" / "registry.yaml"
    monkeypatch.setattr(unit_models, "REGISTRY", registry)
    monkeypatch.setattr(unit_models, "REPOSITORY", repository)
    unit_models._released.cache_clear()
    for _ in range(2):
        with pytest.raises(UserError, match="pretrained_models/download.py moonshine100") as end:
            spoken.predict(Workspace(tmp_path), clip)
        assert "\n" not in str(end.value)
        shutil.rmtree(shipped, ignore_errors=True)
