"""Fixtures that several modules share."""

from __future__ import annotations

import pytest

from pipeline.workspace import Workspace
from tests.ulm_prompt import spoken


@pytest.fixture(scope="session")
def spoken_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Wav files, units, a tiny LM and prompts. Tests add to it and change nothing in it."""
    return spoken.write_workspace(tmp_path_factory.mktemp("spoken"))
