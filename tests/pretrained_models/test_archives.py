"""A unit LM out of its released archive."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pretrained_models.pretrained import unpack_lm

LM = {"checkpoint_best.pt": b"weights" * 5000, "dict.txt": b"0 1\n1 1\n"}


def tgz(path: Path | io.BytesIO, files: dict[str, bytes | tuple[bytes, str]], folder: str = ""):
    """Write ``path`` and return it. ``files``: content, or a member's type and link target."""
    target = {"name": path} if isinstance(path, Path) else {"fileobj": path}
    with tarfile.open(**target, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            if isinstance(content, tuple):
                (member.type, member.linkname), content = content, b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(archive: Path, folder: Path) -> str:
    """The LM in ``folder`` stays, and nothing else appears."""
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_text("old")
    before = tree(archive.parent)
    with pytest.raises(UserError) as error:
        unpack_lm(archive, folder)
    assert tree(archive.parent) == before
    assert "\n" not in str(error.value) and str(archive) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("folder", ["", "hubert100_lm/", "./", "./hubert100_lm/"])
def test_the_released_layouts(tmp_path: Path, folder: str) -> None:
    archive = tgz(tmp_path / "lm.tgz", {"README": b"hello", **LM}, folder)
    old = tmp_path / "hubert100_lm"
    old.mkdir()
    (old / "half").touch()
    unpack_lm(archive, old)
    assert tree(old) == LM
    assert {path.name for path in tmp_path.iterdir()} == {"lm.tgz", "hubert100_lm"}


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    others = {
        "../../evil": b"x",
        "/tmp/evil": b"x",
        "other/dict.txt": (tarfile.SYMTYPE, "../../evil"),
        "dict.txt": (tarfile.SYMTYPE, "/etc/passwd"),
        "checkpoint_best.pt": (tarfile.FIFOTYPE, ""),
    }
    released = {f"../{name}": content for name, content in LM.items()}
    unpack_lm(tgz(tmp_path / "lm.tgz", others | released), tmp_path / "a" / "b" / "lm")
    assert set(tree(tmp_path)) == {"lm.tgz", *(f"a/b/lm/{name}" for name in LM)}


@pytest.mark.parametrize("name", LM)
def test_both_files_must_be_in_it(tmp_path: Path, name: str) -> None:
    (absent,) = LM.keys() - {name}
    for files in ({}, {absent: (tarfile.SYMTYPE, "/etc/passwd")}):
        archive = tgz(tmp_path / "lm.tgz", {name: LM[name], **files})
        assert f"no {absent}" in refused(archive, tmp_path / "lm")


def test_cut_short_or_damaged(tmp_path: Path) -> None:
    """gzip's checksum is behind the tar's end, where tarfile never looks."""
    archive = tgz(tmp_path / "lm.tgz", LM)
    whole = archive.read_bytes()
    for length in range(0, len(whole), 23):
        archive.write_bytes(whole[:length])
        refused(archive, tmp_path / "lm")
    archive.write_bytes(whole[:-8] + bytes(8))
    assert "damaged" in refused(archive, tmp_path / "lm")
