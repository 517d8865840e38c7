"""What a failure of the operating system looks like to a person."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import near, run
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


@pytest.mark.parametrize(
    ("full", "start"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 20 MiB.\nGPU 0 has 1 GiB in all"),
            "out of memory: CUDA out of memory. Tried 20 MiB.; ",
        ),
        (MemoryError(), "out of memory: no more is known; "),
        (MemoryError("Unable to allocate 7 TiB for an array"), "out of memory: Unable to allocate"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory: DefaultC",
        ),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc; "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory; "),
    ],
    ids=str,
)
def test_out_of_memory_is_one_line_and_a_bug_is_not(
    full: Exception, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_with(error: Exception) -> None:
        raise error

    line = told(lambda: fail_with(full), capsys)
    assert line.startswith(f"error: {start}") and line.count("\n") == 1
    assert "take smaller batches" in line
    with pytest.raises(RuntimeError, match="a bug"):
        run(lambda: fail_with(RuntimeError("a bug")))


PRINTS = r"""
import json, sys
from pipeline.errors import UserError, run
def main():
    print(json.dumps({"n\u00e9 \u2026 \U0001f600": 1}, ensure_ascii=False))
    print("caf\udce9", file=sys.stderr)
    raise UserError("\u2026")
run(main)
"""


def printed(code: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``code`` as a process, with redirections in a shell's words."""
    words = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | environment
    return subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "utf-8"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1"),
        ({"PYTHONIOENCODING": "ascii"}, "ascii"),
        ({"LC_ALL": "C"}, "utf-8"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii"),
    ],
    ids=str,
)
def test_any_encoding_prints_any_name(environment: dict[str, str], encoding: str) -> None:
    """JSON stays JSON."""
    result = printed(PRINTS, **environment)
    assert json.loads(result.stdout.decode(encoding)) == {"n\u00e9 \u2026 \U0001f600": 1}
    last, error = result.stderr.splitlines()
    assert last in (b"caf\xe9", rb"caf\udce9") and error.startswith(b"error: ")
    assert result.returncode == 2


def test_closed_streams() -> None:
    result = printed(PRINTS, ">&-")
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.startswith(b"error: standard output is closed; send it to a file")
    result = printed(PRINTS, "2>&-")
    assert result.returncode == 2 and result.stderr == b"" and b"{" in result.stdout
    result = printed(
        "from pipeline.errors import run; run(lambda: print('x' * 99999))", "| head -c1"
    )
    assert (result.stdout, result.stderr) == (b"x", b"")


def test_ctrl_c_while_a_script_imports() -> None:
    """Imports take seconds, and ``run`` has not begun."""
    code = "import pipeline, sys, signal; sys.argv = ['x']; signal.raise_signal(signal.SIGINT)"
    script = str(REPOSITORY / "reproduce.py")
    result = printed(f"__file__ = {script!r}; {code}")
    assert (result.returncode, result.stderr) == (130, b"error: interrupted\n")
    assert b"Traceback" in printed(f"__file__ = '/elsewhere.py'; {code}").stderr, "not ours"
    bug = printed(f"__file__ = {script!r}; import pipeline; 1 / 0")
    assert bug.returncode == 1 and bug.stderr.endswith(b"ZeroDivisionError: division by zero\n")


def test_another_system_is_named(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit):
        run(lambda: print("never"))
    assert capsys.readouterr() == (
        "",
        "error: Windows is not supported; use Linux, macOS, or Linux on Windows (WSL)\n",
    )


def test_almost_a_name() -> None:
    known = ["hubert100", "cpc100", "KS"]
    assert near("hubert_100", known) == " (did you mean hubert100?)"
    assert near("ks", known) == " (did you mean KS?)" and near("mfcc", known) == ""
