"""The repository itself: pins, imports and the links of its documents."""

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
    requirements = [line.split("#")[0].strip() for line in lines]
    matches = [PIN.fullmatch(requirement) for requirement in requirements if requirement]
    assert all(matches), f"{name}: expected package==version in every line"
    return {match[1].lower().replace("_", "-"): match[2] for match in matches}


def test_conda_takes_the_pins_from_requirements() -> None:
    """All pins are in one list: environment.yaml pins only Python."""
    environment = yaml.safe_load((REPOSITORY / "environment.yaml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]}
    assert "python=3.12" in conda
    conda_packages = {line.split("=")[0] for line in conda}
    assert not conda_packages & pins("requirements.txt").keys(), "a package is pinned twice"


def test_the_running_environment_has_the_pinned_versions() -> None:
    """Skips torch, because set-up keeps a torch that the user already has."""
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
def test_start_up_imports_only_what_it_needs(module: str, heavy: tuple[str, ...]) -> None:
    """Importing torch takes a second, and all of fairseq another second."""
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
