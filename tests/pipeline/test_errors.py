"""What a failure of the operating system looks like to a person."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import run
from pipeline.files import replacing, replacing_folder, writing
from tests.conftest import REPOSITORY

DEV_FULL = Path("/dev/full")


def told(main, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leaving:
        run(main)
    assert leaving.value.code == 1
    return capsys.readouterr().err


def fail(code: int, *names: str) -> None:
    raise OSError(code, "it failed", *names)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "; make room, then"),
        (errno.EDQUOT, "; make room, then"),
        (errno.EROFS, "; make it readable and writable"),
        (errno.EACCES, "; make it readable and writable"),
        (errno.ENOENT, "; it is needed: put it there"),
        (errno.EIO, "\n"),
    ],
)
def test_each_says_what_to_do(code: int, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = told(lambda: fail(code, "verbal.json"), capsys)
    assert line.startswith("error: verbal.json: it failed") and remedy in line
    assert line.count("\n") == 1


def test_a_write_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system says of a write only that it failed."""

    def main() -> None:
        with writing(tmp_path / "verbal.json"):
            fail(errno.ENOSPC)

    assert f"error: {tmp_path}/verbal.json: it failed; make room" in told(main, capsys)
    assert not list(tmp_path.iterdir())


def test_a_copy_names_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """shutil names both, the source first; the target is a temporary."""

    def main() -> None:
        with replacing_folder(tmp_path / "bin") as folder:
            fail(errno.ENOSPC, "dict.txt", 0, str(folder / "dict.txt"))

    assert f"error: {tmp_path}/bin: it failed" in told(main, capsys)


def test_a_missing_source_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        with replacing(tmp_path / "new") as temporary:
            shutil.copyfile(tmp_path / "old", temporary)

    assert f"error: {tmp_path}/old: No such file or directory; it is needed" in told(main, capsys)


@pytest.mark.skipif(not DEV_FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 100_000])
def test_full_standard_output(size: int) -> None:
    """Met in a print, or only when the last of it is flushed."""
    code = f"from pipeline.errors import run; run(lambda: print('x' * {size}))"
    with open(DEV_FULL, "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        "error: No space left on device; make room, then run the same command again\n"
    )


def test_out_of_memory_is_one_line_and_a_bug_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_with(error: Exception) -> None:
        raise error

    full = torch.OutOfMemoryError("CUDA out of memory. Tried 20 MiB.\nGPU 0 has 1 GiB in all")
    line = told(lambda: fail_with(full), capsys)
    assert line.startswith("error: CUDA out of memory.") and line.count("\n") == 1
    assert "take smaller batches" in line
    with pytest.raises(RuntimeError, match="a bug"):
        run(lambda: fail_with(RuntimeError("a bug")))
