"""Learning a k-means: for tasks together, once, and not where one comes with the unit model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from preprocess.actions.quantize import learn_kmeans
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor


@pytest.fixture
def intents(tmp_path: Path) -> Path:
    corpora.fluent_commands(tmp_path / "corpora" / "fluent_commands")
    return tmp_path


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
    assert "is there already: kept" in capsys.readouterr().out
    with pytest.raises(UserError, match="has 8 clusters, asked for are 9"):
        learn_kmeans([preprocessor("fluent_commands", intents, "fairseqrc.km_clusters=9")])


def test_a_speech_model_s_kmeans_is_not_learned_unasked(intents):
    task = preprocessor("fluent_commands", intents, "taskrc.unit_model=hubert50")
    task.generate_manifest()
    with pytest.raises(UserError, match="hubert50_km.bin: not here, but hubert50 comes with it"):
        learn_kmeans([task])
