"""predict.py without --prompt: the prompt that comes with the repository, wherever one works."""

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
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.test_predict import run
from ulm_prompt.prompt_data.prompt_record import RECORD
from ulm_prompt.using import find_prompts
from ulm_prompt.using.predictor import Predictor

REGISTRY = """unit_models:
  logmel100:
    feature_type: logmel
    clusters: 60
    kmeans: {path: REPOSITORY/pretrained_models/shipped/km.npz}
    lm: {path: REPOSITORY/pretrained_models/shipped/lm}
"""


@pytest.fixture
def repository(
    spoken_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder as a repository has it: an exported prompt beside its k-means and LM."""
    root = tmp_path / "repository"
    folder = root / "pretrained_models" / "shipped"
    shipped = folder / "commands"
    models = spoken_workspace.root / "pretrained_models"
    shutil.copytree(models / "logmel100_lm", folder / "lm")
    shutil.copy(models / "logmel100_km.npz", folder / "km.npz")
    selection = ("--prompt_task", "IC", "--unit_model", spoken.UNIT_MODEL, "--model_date", "d")
    call("export", spoken_workspace.root, *selection, "--out", shipped)
    table = tmp_path / "registry.yaml"
    table.write_text(REGISTRY.replace("REPOSITORY", str(root)))
    monkeypatch.setattr(unit_models, "REGISTRY", table)
    monkeypatch.setattr(find_prompts, "SHIPPED", shipped)
    unit_models._released.cache_clear()
    yield root
    unit_models._released.cache_clear()


def clip_of(workspace: Workspace) -> Path:
    return next((workspace.root / "corpora" / "fluent_commands").rglob("*.wav"))


def test_it_answers_and_says_what_it_knows(
    repository: Path,
    spoken_workspace: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a workspace that holds nothing."""
    clip = clip_of(spoken_workspace)
    words = clip, "--format", "table", "--device", "cpu", "--dtype", "float32"
    run(Workspace(tmp_path / "elsewhere"), *words)
    out, errors = capsys.readouterr()
    monkeypatch.setattr(runs, "_quiet", False)  # as before, afterwards
    run(Workspace(tmp_path / "elsewhere"), *words, "--quiet")
    assert capsys.readouterr() == (out, "")
    assert out.splitlines()[1].split()[1] == "IC"
    first, second = errors.splitlines()[:2]
    assert second == "computes on CPU, as asked, in torch.float32 (as asked)"
    assert first.startswith("prompt commands, which knows ")
    known = read_json(find_prompts.SHIPPED / RECORD, "")["labels"]
    assert all(entry["name"] in first for entry in known.values())
    assert not (tmp_path / "elsewhere").exists()
    (by_default,) = Predictor.load(dtype="float32")([clip])
    (by_name,) = Predictor.load([find_prompts.SHIPPED], tmp_path, dtype="float32")([clip])
    assert by_default == by_name


def test_another_kmeans_of_ones_own_is_left_alone(
    repository: Path, spoken_workspace: Workspace
) -> None:
    """The stages may have learned one in the repository, and an LM; the prompt keeps its own."""
    clip = clip_of(spoken_workspace)
    (before,) = Predictor.load(dtype="float32")([clip])
    models = repository / "pretrained_models"
    save_kmeans(models / "logmel100_km.npz", load_kmeans(models / "shipped" / "km.npz") + 1)
    tiny.write_lm(models / "logmel100_lm", seed=5)
    data = Workspace(repository).downstream_data("fluent_commands") / spoken.UNIT_MODEL
    data.mkdir(parents=True)
    (data / "config.yaml").write_text("fairseqrc:\n  km_path: pretrained_models/other.npz\n")
    assert Predictor.load(dtype="float32")([clip]) == [before]


def test_what_is_missing_is_said(
    repository: Path,
    spoken_workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = clip_of(spoken_workspace)
    unit_models._released.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(unit_models, "REGISTRY", Path(unit_models.__file__).parents[1]
                      / "pretrained_models" / "registry.yaml")  # fmt: skip
        patch.setattr(unit_models, "REPOSITORY", repository)
        record = read_json(find_prompts.SHIPPED / RECORD, "")
        record["unit_model"] = "moonshine100"
        record["units"] |= {"feature_type": "moonshine", "kmeans": None}
        write_json(find_prompts.SHIPPED / RECORD, record)
        models = repository / "pretrained_models"
        shutil.copy(models / "shipped" / "km.npz", models / "moonshine100_km.npz")
        with pytest.raises(UserError, match="python pretrained_models/download.py moonshine100"):
            run(Workspace(tmp_path), clip)
    unit_models._released.cache_clear()
    shutil.rmtree(find_prompts.SHIPPED)
    with pytest.raises(UserError, match="python pretrained_models/download.py moonshine100") as end:
        run(Workspace(tmp_path), clip)
    assert "\n" not in str(end.value)
