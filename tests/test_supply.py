"""Installed packages: pinned, hashed and licensed. ``pip --require-hashes`` checks that all are
locked.
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
    """Return package -> locked versions. A package may have one version per Python version."""
    versions: dict[str, set[str]] = {}
    for path in LOCKS:
        for name, version in re.findall(r"^([\w.-]+)==([^ ;+]+)", path.read_text(), re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    return versions


def documented() -> dict[str, str]:
    """Return package -> licence, as docs/dev/dependencies.md says."""
    text = (REPOSITORY / "docs/dev/dependencies.md").read_text(encoding="utf-8")
    return {name: licence for name, licence, _ in LINE.findall(text)}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_versions_and_hashes_alone(path: Path) -> None:
    """A lock contains no address and no local path."""
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
    """Return the licence in the metadata of an installed package."""
    facts = importlib.metadata.metadata(package)
    if facts.get("License-Expression"):
        return facts["License-Expression"]
    classifiers = [line.split(" :: ") for line in facts.get_all("Classifier") or []]
    names = [parts[-1] for parts in classifiers if parts[0] == "License"]
    named = ", ".join(name for name in names if name != "OSI Approved")
    return named or (facts.get("License") or "not stated").strip().split("\n")[0]


def test_every_locked_package_has_a_line_with_its_licence() -> None:
    lines = documented()
    assert list(lines.keys() ^ locked().keys()) == []
    for package, stated in lines.items():
        try:
            installed = licence(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a package for another platform
        assert stated.startswith(installed) or package == "torch", package


@pytest.mark.parametrize(
    ("body", "found"), [("echo 3.14", "3.14"), ("exit 1", "not found")], ids=["3.14", "none"]
)
def test_set_up_names_a_python_that_it_cannot_use(tmp_path: Path, body: str, found: str) -> None:
    """setup.sh fails before it changes .venv."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    command = ["bash", str(REPOSITORY / "setup.sh")]
    environment = os.environ | {"PYTHON": str(python), "UV": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = f"error: expected Python 3.11, 3.12 or 3.13, found {python} ({found}); install one"
    assert result.returncode == 2 and result.stderr.startswith(expected), result.stderr
