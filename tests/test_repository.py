"""The repository itself: pins, documents, and what must not be in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

PIN = re.compile(r"([A-Za-z0-9_.-]+)==(\S+)")


def pins(name: str) -> dict[str, str]:
    lines = (REPOSITORY / name).read_text().splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    found = [PIN.fullmatch(line) for line in wanted if line]
    assert all(found), f"{name}: every requirement is pinned"
    return {match[1].lower().replace("_", "-"): match[2] for match in found}


def test_conda_takes_the_pins_from_requirements() -> None:
    """One list of pins: environment.yaml adds none of its own beside python's."""
    environment = yaml.safe_load((REPOSITORY / "environment.yaml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]}
    assert "python=3.12" in conda
    own = {line.split("=")[0] for line in conda}
    assert not own & pins("requirements.txt").keys(), "a package is pinned in one place"


def test_the_environment_that_runs_this_has_the_pinned_versions() -> None:
    """Skips torch: a user's own build is kept."""
    from importlib.metadata import version

    for name in ("requirements.txt", "requirements-fairseq.txt"):
        for package, pin in pins(name).items():
            if package != "torch":
                assert version(package) == pin, package


STAGES = ("make_data", "gen_labelspace", "verbalizer", "cal_acc")
LIGHT = dict.fromkeys([f"ulm_prompt.{stage}" for stage in STAGES] + ["pipeline.unit_models"],
                      ("torch", "fairseq", "sklearn"))  # fmt: skip
OTHER_TASKS = ("sklearn", "sacrebleu", "torch._dynamo", "fairseq.models.wav2vec")
TRAINING = "ulm_prompt.training.prompt_run, ulm_prompt.prompt_lm.task"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [*LIGHT.items(), ("ulm_prompt.using.predictor", OTHER_TASKS), (TRAINING, OTHER_TASKS)],
)
def test_start_up_imports_what_it_needs(module: str, heavy: tuple[str, ...]) -> None:
    """torch takes a second to import, all of fairseq another."""
    code = (
        f"import sys; sys.argv = ['x']; import {module}; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=REPOSITORY, text=True).strip() == "[]"


DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_files_that_exist(path: Path) -> None:
    text = path.read_text()
    scripts = set(re.findall(r"python ((?:\w+/)*\w+\.py)", text))
    for name in scripts:
        assert (REPOSITORY / name).exists(), name
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (path.parent / link).exists(), link
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
                for line in text.splitlines() if line.startswith("#")}  # fmt: skip
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
    assert path.name != "stages.md" or len(scripts) >= 9
