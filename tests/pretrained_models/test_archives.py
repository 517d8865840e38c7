"""A unit LM out of its released archive."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pretrained_models.fetching.pretrained import unpack_lm

LM = {"checkpoint_best.pt": b"weights" * 5000, "dict.txt": b"0 1\n1 1\n"}


def tgz(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def lm(folder: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    return [plain(folder + name, content) for name, content in LM.items()]


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


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
    extra = [special("hubert100_lm", tarfile.DIRTYPE), plain(f"{folder}README", b"hello")]
    archive = tgz(tmp_path / "lm.tgz", [*extra, *lm(folder)])
    old = tmp_path / "hubert100_lm"
    old.mkdir()
    (old / "half").touch()
    unpack_lm(archive, old)
    assert tree(old) == dict(sorted(LM.items()))
    assert {path.name for path in tmp_path.iterdir()} == {"lm.tgz", "hubert100_lm"}


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    others = [
        plain("../../evil", b"x"),
        plain("/tmp/evil", b"x"),
        special("other/dict.txt", tarfile.SYMTYPE, "../../evil"),
        special("dict.txt", tarfile.SYMTYPE, "/etc/passwd"),
        special("checkpoint_best.pt", tarfile.FIFOTYPE),
    ]
    unpack_lm(tgz(tmp_path / "lm.tgz", [*others, *lm("../")]), inside / "lm")
    assert tree(inside / "lm") == dict(sorted(LM.items()))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "lm.tgz"}
    assert [path.name for path in inside.iterdir()] == ["lm"]


@pytest.mark.parametrize("name", LM)
def test_both_files_must_be_in_it(tmp_path: Path, name: str) -> None:
    archive = tgz(tmp_path / "lm.tgz", [plain(name, LM[name])])
    (absent,) = LM.keys() - {name}
    assert f"no {absent}" in refused(archive, tmp_path / "lm")
    link = special(absent, tarfile.SYMTYPE, "/etc/passwd")
    assert f"no {absent}" in refused(tgz(archive, [plain(name, LM[name]), link]), tmp_path / "lm")


def test_cut_short_anywhere(tmp_path: Path) -> None:
    whole = tgz(tmp_path / "whole.tgz", lm("hubert100_lm/")).read_bytes()
    archive = tmp_path / "lm.tgz"
    for length in range(0, len(whole), 23):
        archive.write_bytes(whole[:length])
        refused(archive, tmp_path / "lm")


def test_a_damaged_bit_does_not_pass(tmp_path: Path) -> None:
    """gzip's checksum is behind the tar's end, where tarfile never looks."""
    raw = gzip.decompress(tgz(tmp_path / "whole.tgz", lm()).read_bytes())
    archive = tmp_path / "lm.tgz"
    archive.write_bytes(gzip.compress(raw)[:-8] + bytes(8))
    assert "damaged" in refused(archive, tmp_path / "lm")
