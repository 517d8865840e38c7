"""Pins, hashes and licences. ``pip --require-hashes`` checks that every package is locked."""

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
    """Return the versions of each locked package. Two Pythons may need two versions."""
    versions: dict[str, set[str]] = {}
    for path in LOCKS:
        for name, version in re.findall(r"^([\w.-]+)==([^ ;+]+)", path.read_text(), re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    return versions


def documented() -> dict[str, str]:
    """Return the licence of each package in docs/dev/dependencies.md."""
    text = (REPOSITORY / "docs/dev/dependencies.md").read_text(encoding="utf-8")
    return {name: licence for name, licence, _ in LINE.findall(text)}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_file_contains_only_versions_and_hashes(path: Path) -> None:
    """It contains no address and no path of the machine that made it."""
    head, *lines = path.read_text().splitlines()
    assert head.startswith("# Made by `make lock`")
    entries = "\n".join(line.removesuffix(" \\") for line in lines)
    for entry in re.split(r"\n(?! )", entries):
        first, *hashes = entry.split("\n")
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.+]+( ; [\w <>=!.'()]+)?", first), first
        assert hashes and all(map(HASH.fullmatch, hashes)), first
        assert len(set(hashes)) == len(hashes), first


def test_pins_are_locked() -> None:
    """If this fails, a pin has changed: run `make lock`."""
    versions = locked()
    for name in REQUIREMENTS:
        for package, version in pins(name).items():
            assert versions.get(package) == {version}, package


def licence(package: str) -> str:
    """Return the licence that the installed package states."""
    metadata = importlib.metadata.metadata(package)
    if metadata.get("License-Expression"):
        return metadata["License-Expression"]
    classifiers = [text.split(" :: ") for text in metadata.get_all("Classifier") or []]
    names = [c[-1] for c in classifiers if c[0] == "License" and c[-1] != "OSI Approved"]
    return ", ".join(names) or (metadata.get("License") or "not stated").strip().split("\n")[0]


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
    ("script", "version"), [("echo 3.14", "3.14"), ("exit 1", "not found")], ids=["3.14", "none"]
)
def test_set_up_refuses_an_unusable_python(tmp_path: Path, script: str, version: str) -> None:
    """It stops before it changes .venv."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    command = ["bash", str(REPOSITORY / "setup.sh")]
    environment = os.environ | {"PYTHON": str(python), "UV": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = f"error: expected Python 3.11, 3.12 or 3.13, found {python} ({version}); install one"
    assert result.returncode == 2 and result.stderr.startswith(expected), result.stderr
