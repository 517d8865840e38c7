"""What is installed: pinned, hashed and licensed. That all is locked, pip sees to with
``--require-hashes``.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_repository import pins

REQUIREMENTS = sorted(path.name for path in REPOSITORY.glob("requirements*.txt"))
LOCKS = sorted((REPOSITORY / "locks").glob("*.txt"))
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}")
LINE = re.compile(r"\| `([\w.-]+)` \| (.*) \| (.*) \|")


def locked() -> dict[str, set[str]]:
    """Every version of each locked package; one may have another for another Python."""
    found: dict[str, set[str]] = {}
    for path in LOCKS:
        for name, version in re.findall(r"^([\w.-]+)==([^ ;+]+)", path.read_text(), re.MULTILINE):
            found.setdefault(name, set()).add(version)
    return found


def documented() -> dict[str, str]:
    """The licence of each package in docs/dev/dependencies.md."""
    text = (REPOSITORY / "docs/dev/dependencies.md").read_text(encoding="utf-8")
    return {name: licence for name, licence, _ in LINE.findall(text)}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_versions_and_hashes_alone(path: Path) -> None:
    """No address, no path of the machine that made it."""
    head, *lines = path.read_text().splitlines()
    assert head.startswith("# Made by `make lock`")
    entries = "\n".join(line.removesuffix(" \\") for line in lines)
    for entry in re.split(r"\n(?! )", entries):
        first, *hashes = entry.split("\n")
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.+]+( ; [\w <>=!.'()]+)?", first), first
        assert hashes and all(map(HASH.fullmatch, hashes)), first
        assert len(set(hashes)) == len(hashes), first


def test_pins_are_locked() -> None:
    """Run `make lock` after a pin has changed."""
    versions = locked()
    for name in REQUIREMENTS:
        for package, version in pins(name).items():
            assert versions.get(package) == {version}, package


def licence(package: str) -> str:
    """What the installed package says of itself."""
    facts = importlib.metadata.metadata(package)
    if facts.get("License-Expression"):
        return facts["License-Expression"]
    classes = [each.split(" :: ") for each in facts.get_all("Classifier") or []]
    named = [each[-1] for each in classes if each[0] == "License" and each[-1] != "OSI Approved"]
    return ", ".join(named) or (facts.get("License") or "not stated").strip().split("\n")[0]


def test_every_locked_package_has_a_line_with_its_licence() -> None:
    lines = documented()
    assert list(lines.keys() ^ locked().keys()) == []
    for package, stated in lines.items():
        try:
            found = licence(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        assert stated.startswith(found) or package == "torch", package


@pytest.mark.parametrize(
    ("says", "found"), [("echo 3.14", "3.14"), ("exit 1", "not found")], ids=["3.14", "none"]
)
def test_set_up_names_a_python_that_it_cannot_use(tmp_path: Path, says: str, found: str) -> None:
    """Before it touches .venv."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{says}\n")
    python.chmod(0o755)
    command = ["bash", str(REPOSITORY / "setup.sh")]
    environment = os.environ | {"PYTHON": str(python), "UV": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = f"error: expected Python 3.11, 3.12 or 3.13, found {python} ({found}); install one"
    assert result.returncode == 2 and result.stderr.startswith(expected), result.stderr
