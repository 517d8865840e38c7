"""Nothing half-written, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.files import replacing_folder, writing


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "verbal.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), writing(path) as handle:
        handle.write("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "KS-data-bin"
    with replacing_folder(path) as folder:
        (folder / "train.bin").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(path) as folder:
        (folder / "train.bin").write_text("half of the new")
        raise RuntimeError
    assert (path / "train.bin").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "KS-data-bin"
    for name in ("old.bin", "new.bin"):
        with replacing_folder(path) as folder:
            (folder / name).touch()
    assert [entry.name for entry in path.iterdir()] == ["new.bin"]
