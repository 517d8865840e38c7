"""Outputs are never half-written, whatever fails; only one run writes an output at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import holding, replacing_folder, writing
from tests.reliability.runs import bow_to_modes


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_fork(work: Callable[[], object]) -> int:
    """Call ``work`` in a fork. Returns 0 for success, 2 for a ``UserError``, -9 if it is killed."""
    process = os.fork()
    if not process:
        try:
            work()
            os._exit(0)
        except UserError:
            os._exit(2)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def hold(output: Path, then: Callable[[], None] = lambda: None) -> None:
    with holding(output):
        then()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that contains one file."""
    (tmp_path / "KS-data-bin").mkdir()
    (tmp_path / "KS-data-bin" / "train.bin").write_text("old")
    return tmp_path / "KS-data-bin"


def replace(folder: Path, name: str, then: Callable[[], None] = lambda: None) -> None:
    with replacing_folder(folder) as fresh:
        (fresh / name).touch()
        then()


def is_as_before(folder: Path) -> bool:
    return list(folder.parent.rglob("*")) == [folder, folder / "train.bin"]


def test_an_error_keeps_the_old_output_and_no_other_file(tmp_path: Path, folder: Path) -> None:
    def stop() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace(folder, "new.bin", stop)
    with pytest.raises(RuntimeError), writing(folder / "train.bin") as handle:
        handle.write("half of the new")
        raise RuntimeError
    assert is_as_before(folder) and (folder / "train.bin").read_text() == "old"
    replace(folder, "new.bin")
    assert list(tmp_path.rglob("*")) == [folder, folder / "new.bin"]


def test_a_read_only_folder_is_not_replaced(folder: Path) -> None:
    """A rename needs rights in the parent folder only. The old folder could not be removed."""

    def work() -> None:
        bow_to_modes()
        folder.chmod(0o555)
        with pytest.raises(PermissionError, match=str(folder)):
            replace(folder, "new.bin")

    assert in_fork(work) == 0
    assert is_as_before(folder)


def test_the_next_run_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    file, folder = tmp_path / "verbal.json", tmp_path / "KS-data-bin"
    file.write_text("old")

    def half_a_file() -> None:
        with writing(file) as handle:
            handle.write("half")
            handle.flush()
            die()

    for work in (half_a_file, lambda: replace(folder, "train.bin", die), half_a_file):
        assert in_fork(work) == -signal.SIGKILL
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 3
    alive = tmp_path / f".verbal.json.{os.uname().nodename}.{os.getppid()}.tmp"
    alive.touch()
    with writing(file) as handle:
        handle.write("new")
    replace(folder, "train.bin")
    assert set(tmp_path.iterdir()) == {file, folder, alive}
    assert file.read_text() == "new"


def test_a_folder_renamed_by_a_killed_run_is_restored(folder: Path, monkeypatch) -> None:
    """The first run is killed between its two renames, and the next run fails."""
    rename = Path.rename

    def rename_and_die(self: Path, target: Path) -> None:
        rename(self, target)
        if self == folder:
            die()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_and_die)
        assert in_fork(lambda: replace(folder, "new.bin")) == -signal.SIGKILL
    assert not folder.exists()
    with pytest.raises(RuntimeError), replacing_folder(folder):
        raise RuntimeError
    assert is_as_before(folder)


@pytest.mark.parametrize("exists", [True, False])
def test_outputs_are_written_through_links(tmp_path: Path, exists: bool) -> None:
    """Two runs: leftovers of the first run must not stop the second run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    folder, file = links = tmp_path / "KS-data-bin", tmp_path / "verbal.json"
    for link in links:
        link.symlink_to(Path("disk") / link.name)
    if exists:
        (disk / folder.name).mkdir()
        (disk / folder.name / "old.bin").touch()
        (disk / file.name).write_text("old")
    for name in ("first", "second"):
        replace(folder, name)
        with writing(file) as new:
            new.write(name)
    assert all(link.is_symlink() for link in links)
    assert file.read_text() == "second"
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert set(tmp_path.iterdir()) == {disk, *links}
    assert {path.name for path in disk.iterdir()} == {link.name for link in links}


def test_a_second_run_is_refused_while_the_first_is_writing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with holding(data):
        assert in_fork(lambda: hold(data)) == 2
        assert in_fork(lambda: hold(tmp_path / "other")) == 0
    assert in_fork(lambda: hold(data)) == 0


def test_no_lock_file_is_left_and_a_killed_run_holds_no_lock(tmp_path: Path) -> None:
    hold(tmp_path / "very" / "deep" / "data")
    assert list(tmp_path.iterdir()) == []
    hold(tmp_path / "deep" / "data", (tmp_path / "deep" / "other").touch)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["other"]
    data, lock = tmp_path / "data", tmp_path / ".data.lock"
    assert in_fork(lambda: hold(data, die)) == -signal.SIGKILL and lock.exists()
    # a run may open the lock file before the holder removes it, when a third run holds a new file
    with open(lock, "a"), holding(data):
        assert in_fork(lambda: hold(data)) == 2
    assert not lock.exists()
    with holding(data):
        assert lock.exists() and in_fork(lambda: hold(data)) == 2


def test_a_waiting_run_gets_the_lock(tmp_path: Path) -> None:
    begun, done = os.pipe()
    process = os.fork()
    if not process:
        with holding(tmp_path / "data"):
            os.write(done, b"holds")
            os.close(done)
            (tmp_path / "written").touch()
        os._exit(0)
    os.read(begun, 5)
    with holding(tmp_path / "data", wait=-1):
        assert (tmp_path / "written").exists()
    assert os.waitpid(process, 0)[1] == 0


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, code: int) -> None:
    """Lustre without ``-o flock``, some NFS: the output is locked while a file exists. The next run
    gets the lock of a killed run.
    """

    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    data = tmp_path / "data"
    with holding(data):
        assert [path.name for path in tmp_path.iterdir()] == [".data.held"]
        assert in_fork(lambda: hold(data)) == 2
        with pytest.raises(UserError, match=r"or remove .*\.data\.held if its machine crashed"):
            hold(data)
    assert not list(tmp_path.iterdir())
    assert in_fork(lambda: hold(data, die)) == -signal.SIGKILL
    assert (tmp_path / ".data.held").exists()
    hold(data)
    assert not list(tmp_path.iterdir())
