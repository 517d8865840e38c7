"""What is installed: pinned, hashed, licensed, and imported."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_repository import pins

REQUIREMENTS = sorted(path.name for path in REPOSITORY.glob("requirements*.txt"))
LOCKS = sorted((REPOSITORY / "locks").glob("*.txt"))
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}")
LINE = re.compile(r"\| `([\w.-]+)` \| (.*) \| (.*) \|")
# run, not imported: the Makefile's -n auto, make lint; builders of packages without a wheel
COMMANDS = {"mypy", "pytest-xdist", "ruff", "setuptools", "wheel"}


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


def test_all_that_pins_bring_is_locked_as_installed() -> None:
    versions = locked()
    waiting = [package for name in REQUIREMENTS for package in pins(name)]
    seen: set[str] = set()
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        assert package in versions, package
        if package == "torch":  # a user's own build is kept, with what it brings
            continue
        found = importlib.metadata.distribution(package)
        assert found.version in versions[package], package
        if package == "fairseq-fixed":  # its list is stale: see requirements-fairseq.txt
            continue
        wanted = (re.split(r" ?;", each) for each in found.requires or [])
        for name, *condition in wanted:
            if not condition or not re.search("extra|platform|python|implementation", condition[0]):
                waiting.append(re.match(r"[\w.-]+", name)[0].lower().replace("_", "-"))


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


def imported(folder: Path) -> set[str]:
    """The top names of all modules that the files import."""
    found = set()
    for path in folder.rglob("*.py"):
        if not {".venv", "samples"} & set(path.relative_to(folder).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
                elif (
                    isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip"
                ):
                    found.add(node.args[0].value.split(".")[0])
    return found


# what `import fairseq` and its trainer, imported as we do, take from outside at once
FAIRSEQS = """
import sys
class Watch:
    def find_spec(name, path=None, target=None):
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame and "/fairseq" in frame.f_code.co_filename:
            print("imports", name.split(".")[0])
sys.meta_path.insert(0, Watch)
import fairseq_cli.train, ulm_prompt.prompt_lm
import fairseq.logging.progress_bar
"""


def test_nothing_is_pinned_that_nothing_imports() -> None:
    """By this repository, or by fairseq as it is imported here."""
    result = subprocess.run(
        [sys.executable, "-c", FAIRSEQS], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    names = set(re.findall("imports (.*)", result.stdout)) | imported(REPOSITORY)
    provided = {
        package.lower().replace("_", "-")
        for module, packages in importlib.metadata.packages_distributions().items()
        for package in packages
        if module in names
    }
    for name in REQUIREMENTS:
        assert not pins(name).keys() - provided - COMMANDS, name


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
