"""One run at a time."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import holding


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
