"""Nothing half-written, whatever happens in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.files import replacing_folder, writing
from tests.reliability.runs import bow_to_modes


def die_in(work: Callable[[], None]) -> None:
    """Run ``work`` in a fork, where it is killed."""
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "verbal.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), writing(path) as handle:
        handle.write("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_nothing_is_not_replaced(tmp_path: Path) -> None:
    """It could be: a rename asks the folder above alone. What was moved aside would stay."""
    path = tmp_path / "KS-data-bin"
    path.mkdir()
    (path / "train.bin").write_text("old")

    def replaced(while_it_is_made: bool) -> bool:
        path.chmod(0o755 if while_it_is_made else 0o555)
        try:
            with replacing_folder(path):
                path.chmod(0o555)
        except PermissionError as error:
            return error.filename != str(path)
        return True

    process = os.fork()
    if not process:
        bow_to_modes()
        os._exit(replaced(False) or replaced(True))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (path / "train.bin").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "KS-data-bin"
    for name in ("old.bin", "new.bin"):
        with replacing_folder(path) as folder:
            (folder / name).touch()
    assert [entry.name for entry in path.iterdir()] == ["new.bin"]


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    file, folder = tmp_path / "verbal.json", tmp_path / "KS-data-bin"
    file.write_text("old")

    def half_a_file() -> None:
        with writing(file) as handle:
            handle.write("half")
            handle.flush()
            die()

    def half_a_folder() -> None:
        with replacing_folder(folder) as fresh:
            (fresh / "train.bin").touch()
            die()

    for work in (half_a_file, half_a_folder, half_a_file):
        die_in(work)
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 3
    alive = tmp_path / f".verbal.json.{os.uname().nodename}.{os.getppid()}.tmp"
    alive.touch()
    with writing(file) as handle:
        handle.write("new")
    with replacing_folder(folder):
        pass
    assert set(tmp_path.iterdir()) == {file, folder, alive}
    assert file.read_text() == "new"


def test_a_folder_moved_away_by_a_killed_run_comes_back(tmp_path: Path, monkeypatch) -> None:
    """Killed between its two renames, when the new one is refused."""
    path = tmp_path / "KS-data-bin"
    path.mkdir()
    (path / "train.bin").write_text("old")
    rename = Path.rename

    def killed(self: Path, target: Path) -> None:
        rename(self, target)
        if self == path:
            die()

    def replace() -> None:
        monkeypatch.setattr(Path, "rename", killed)
        with replacing_folder(path):
            pass

    die_in(replace)
    assert not path.exists()
    with pytest.raises(RuntimeError), replacing_folder(path):
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["KS-data-bin"]
    assert (path / "train.bin").read_text() == "old"
