"""Nothing half-written, whatever happens in between; one run at a time."""

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


def in_fork(output: Path) -> int:
    """Try to hold ``output`` in another process: 0 when it could, 2 when it was refused."""
    process = os.fork()
    if not process:
        try:
            with holding(output):
                os._exit(0)
        except UserError:
            os._exit(2)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_the_second_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with holding(tmp_path / "data"):
        assert in_fork(tmp_path / "data") == 2
        assert in_fork(tmp_path / "other") == 0
    assert in_fork(tmp_path / "data") == 0


def test_no_lock_is_left_and_one_of_a_killed_run_holds_nobody(tmp_path: Path) -> None:
    with holding(tmp_path / "very" / "deep" / "data"):
        pass
    assert list(tmp_path.iterdir()) == []
    with holding(tmp_path / "deep" / "data"):
        (tmp_path / "deep" / "other").touch()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["other"]
    (tmp_path / ".data.lock").touch()
    with holding(tmp_path / "data"):
        assert in_fork(tmp_path / "data") == 2


def test_a_lock_that_its_holder_took_away_holds_nobody(tmp_path: Path) -> None:
    """Opened before the holder was done, locked after: a third run may hold the new one by then."""
    path = tmp_path / ".data.lock"
    with open(path, "a"), holding(tmp_path / "data"):
        pass
    assert not path.exists()
    with holding(tmp_path / "data"):
        assert path.exists() and in_fork(tmp_path / "data") == 2


def test_one_that_waits_gets_it(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("exists", [True, False])
def test_outputs_are_written_through_links(tmp_path: Path, exists: bool) -> None:
    """Twice: what the first run leaves must not stop the second."""
    disk = tmp_path / "disk"
    disk.mkdir()
    links = {name: tmp_path / name for name in ("KS-data-bin", "verbal.json")}
    for name, link in links.items():
        link.symlink_to(Path("disk") / name)
    if exists:
        (disk / "KS-data-bin").mkdir()
        (disk / "KS-data-bin" / "old.bin").touch()
        (disk / "verbal.json").write_text("old")
    for name in ("first", "second"):
        with replacing_folder(links["KS-data-bin"]) as folder, writing(links["verbal.json"]) as new:
            (folder / name).touch()
            new.write(name)
    assert all(link.is_symlink() for link in links.values())
    assert links["verbal.json"].read_text() == "second"
    assert [path.name for path in links["KS-data-bin"].iterdir()] == ["second"]
    assert set(tmp_path.iterdir()) == {disk, *links.values()}
    assert {path.name for path in disk.iterdir()} == set(links)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, code: int) -> None:
    """Lustre without ``-o flock``, some NFS: a file holds by its existence, and no run stays
    locked out by a killed one.
    """

    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def killed() -> None:
        with holding(tmp_path / "data"):
            die()

    monkeypatch.setattr(fcntl, "flock", flock)
    with holding(tmp_path / "data"):
        assert [path.name for path in tmp_path.iterdir()] == [".data.held"]
        assert in_fork(tmp_path / "data") == 2
        with (
            pytest.raises(UserError, match=r"or remove .*\.data\.held if its machine crashed"),
            holding(tmp_path / "data"),
        ):
            pass
    assert not list(tmp_path.iterdir())
    die_in(killed)
    assert (tmp_path / ".data.held").exists()
    with holding(tmp_path / "data"):
        pass
    assert not list(tmp_path.iterdir())
