"""What a user sees after a failure."""

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


def error_line(main, capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """Run ``main`` and return the one line that it prints."""
    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def fail(code: int, *names: object) -> None:
    raise OSError(code, "it failed", *map(str, names))


def failing_write(folder: Path) -> None:
    """The error of a failed write names no file."""
    with writing(folder / "verbal.json"):
        fail(errno.ENOSPC)


def failing_copy(folder: Path) -> None:
    """The error of shutil names the source and then the target, a temporary file."""
    with replacing_folder(folder / "bin") as temporary:
        raise OSError(errno.ENOSPC, "it failed", "dict.txt", 0, str(temporary / "dict.txt"))


def missing_source(folder: Path) -> None:
    with replacing(folder / "new") as temporary:
        shutil.copyfile(folder / "old", temporary)


WRITABLE = "make it readable and writable for you"
AGAIN = ", then run the same command again\n"


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (lambda _: fail(errno.ENOSPC, "a"), f"a: it failed; make room{AGAIN}"),
        (lambda _: fail(errno.EDQUOT, "a"), f"a: it failed; make room{AGAIN}"),
        (lambda _: fail(errno.EROFS, "a"), f"a: it failed; {WRITABLE}{AGAIN}"),
        (lambda _: fail(errno.EACCES, "a"), f"a: it failed; {WRITABLE}{AGAIN}"),
        (lambda _: fail(errno.ENOENT, "a"), f"a: it failed; put it there{AGAIN}"),
        (lambda _: fail(errno.EIO, "a"), "a: it failed\n"),
        (failing_write, f"{{}}/verbal.json: it failed; make room{AGAIN}"),
        (failing_copy, f"{{}}/bin: it failed; make room{AGAIN}"),
        (missing_source, "{}/old: No such file or directory; put it there" + AGAIN),
    ],
)
def test_each_line_says_what_to_do_and_names_the_users_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], main, line: str
) -> None:
    assert error_line(lambda: main(tmp_path), capsys) == f"error: {line.format(tmp_path)}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("full", "start"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 MiB.\nGPU 0 has 1"), ": CUDA out"),
        (MemoryError(), ": no details known; "),
        (MemoryError("Unable to allocate 7 TiB for an array"), ": Unable to allocate"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ": DefaultCPUAlloc"),
        (RuntimeError("std::bad_alloc"), ": std::bad_alloc; "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    ],
    ids=str,
)
def test_out_of_memory_is_one_line_and_a_bug_is_not(
    full: Exception, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_with(error: Exception) -> None:
        raise error

    line = error_line(lambda: fail_with(full), capsys)
    assert line.startswith(f"error: out of memory{start}" if start else "error: Cannot allocate")
    assert line.endswith(f"; choose smaller batches or a lower precision{AGAIN}")
    with pytest.raises(RuntimeError, match="a bug"):
        run(lambda: fail_with(RuntimeError("a bug")))


def run_code(code: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``code`` as a process. ``shell``: redirections in shell syntax."""
    words = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | environment
    return subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, check=False)


def print_many(size: int) -> str:
    return f"from pipeline.errors import run; run(lambda: print('x' * {size}))"


@pytest.mark.skipif(not DEV_FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 100_000])
def test_full_standard_output(size: int) -> None:
    """The error comes from a print, or only from the last flush."""
    result = run_code(print_many(size), f"> {DEV_FULL}")
    assert result.returncode == 1
    assert result.stderr.decode() == f"error: No space left on device; make room{AGAIN}"


PRINTS = r"""
import json, sys
from pipeline.errors import UserError, run
def main():
    print(json.dumps({"n\u00e9 \u2026 \U0001f600": 1}, ensure_ascii=False))
    print("caf\udce9", file=sys.stderr)
    raise UserError("\u2026")
run(main)
"""


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
    """Printed JSON stays valid."""
    result = run_code(PRINTS, **environment)
    assert json.loads(result.stdout.decode(encoding)) == {"n\u00e9 \u2026 \U0001f600": 1}
    last, error = result.stderr.splitlines()
    assert last in (b"caf\xe9", rb"caf\udce9") and error.startswith(b"error: ")
    assert result.returncode == 2


def test_closed_streams() -> None:
    result = run_code(PRINTS, ">&-")
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.startswith(b"error: standard output is closed; send it to a file")
    result = run_code(PRINTS, "2>&-")
    assert result.returncode == 2 and result.stderr == b"" and b"{" in result.stdout
    result = run_code(print_many(99_999), "| head -c1")
    assert (result.stdout, result.stderr) == (b"x", b"")


def test_ctrl_c_while_a_script_imports() -> None:
    """Imports take seconds; ``run`` begins after them."""
    code = "import pipeline, sys, signal; sys.argv = ['x']; signal.raise_signal(signal.SIGINT)"
    script = str(REPOSITORY / "reproduce.py")
    result = run_code(f"__file__ = {script!r}; {code}")
    assert (result.returncode, result.stderr) == (130, b"error: interrupted\n")
    assert b"Traceback" in run_code(f"__file__ = '/elsewhere.py'; {code}").stderr, "not ours"
    bug = run_code(f"__file__ = {script!r}; import pipeline; 1 / 0")
    assert bug.returncode == 1 and bug.stderr.endswith(b"ZeroDivisionError: division by zero\n")


def test_windows_is_refused(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    line = error_line(lambda: print("never"), capsys, code=2)
    expected = "use Linux, macOS, or Linux on Windows (WSL)"
    assert line == f"error: Windows is not supported; {expected}\n"


def test_suggestions_for_a_mistyped_name() -> None:
    known = ["hubert100", "cpc100", "KS"]
    assert near("hubert_100", known) == " (did you mean hubert100?)"
    assert near("ks", known) == " (did you mean KS?)" and near("mfcc", known) == ""
