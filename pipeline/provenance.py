"""What made an output: versions, git revision, command line."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys

from pipeline.workspace import REPOSITORY

PACKAGES = ("torch", "fairseq-fixed", "numpy", "scikit-learn", "soundfile")


def provenance() -> dict[str, object]:
    """The record saved with each run. The git revision is "unknown" outside a clone."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"command": sys.argv, "git_revision": _git_revision(), "versions": versions}


def _git_revision() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()
