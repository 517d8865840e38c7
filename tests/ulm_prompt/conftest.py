"""Fixtures for several test modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.workspace import Workspace
from tests.ulm_prompt import spoken, tiny
from tests.ulm_prompt.in_process import prepare
from ulm_prompt.using.predictor import Predictor


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tasks' rows and a tiny LM, after the data stages. Tests add runs with other dates."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, *tiny.LABELS)
    return root


@pytest.fixture(scope="session")
def spoken_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Wav files, units, a tiny LM and prompts. Tests add to it and change nothing in it."""
    return spoken.write_workspace(tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="session")
def predictor(spoken_workspace: Workspace) -> Predictor:
    """Both prompts of ``spoken_workspace``."""
    return Predictor.load(["KS", "IC"], spoken_workspace.root, dtype="float32")
