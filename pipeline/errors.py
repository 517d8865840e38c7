"""Errors as one line without a traceback. Exit code 2: bad input; exit code 1: a failure."""

from __future__ import annotations

import codecs
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

_AGAIN = "then run the same command again"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f"make room, {_AGAIN}"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), f"make it readable and writable for you, {_AGAIN}"
    ),
    errno.ENOENT: f"put it there, {_AGAIN}",
    errno.ENOMEM: f"choose smaller batches or a lower precision, {_AGAIN}",
}


class UserError(Exception):
    """An error that the user can fix. One line: where, what was expected and found, what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """Return ``text`` with escapes for line breaks, terminal controls and non-UTF-8 bytes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def near(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean NAME?)`` if a known name resembles ``word``, else an empty string."""
    from difflib import get_close_matches  # imported here: only a mistake needs it

    names = {name.casefold(): name for name in known}
    matches = get_close_matches(word.casefold(), names, 1)
    return f" (did you mean {names[matches[0]]}?)" if matches else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that the memory of the CPU or GPU is full."""
    if isinstance(error, MemoryError):
        return True
    # torch and ONNX Runtime have no error class for a full CPU memory
    phrases = ("llocate memory", "bad_alloc", "bad allocation", "out of memory")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def run(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` and turn its outcome into an exit code.

    Exit code 2: a ``UserError``, or a name that must be written but is not UTF-8. Exit code 1: an
    error of the operating system (disk full, no permission, missing file) or a full memory. Both
    print one line. Any other error is a bug of ours and keeps the traceback. A character that is
    not in the terminal's encoding is printed as ``\\uXXXX``, which is also valid JSON.
    """
    try:
        _prepare_streams()
        main()
        sys.stdout.flush()  # when the interpreter exits, a full disk would go unnoticed
    except UserError as error:
        _exit_with(2, str(error))
    except BrokenPipeError:  # `stage | head`: the reader has ended
        _discard_output()
        sys.exit(1)
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:  # Python keeps bytes that are not UTF-8 as surrogates
            raise
        around = error.object[max(0, error.start - 60) : error.end + 60]
        _exit_with(2, f"{around}: a name that is not UTF-8 text; rename it")
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        _exit_with(1, f"{path}{error.strerror or error}{remedy}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).split("\n")[0][:200] or "no details known"
        _exit_with(1, f"out of memory: {reason}; {_REMEDIES[errno.ENOMEM]}")
    except KeyboardInterrupt:
        _exit_with(130, "interrupted; run the same command again to resume")


def _prepare_streams() -> None:
    """Make every name printable. Raises ``UserError`` if nothing can be printed."""
    if sys.platform == "win32":
        raise UserError("Windows is not supported; use Linux, macOS, or Linux on Windows (WSL)")
    if sys.stderr is None:  # closed by `2>&-`
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # else the next file gets descriptor 1
        raise UserError("standard output is closed; send it to a file, or to /dev/null")
    codecs.register_error("printable", _printable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="printable")


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what to print instead: the raw bytes of a non-UTF-8 name, else JSON escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError as failure:
        return json.dumps(failure.object[failure.start : failure.end])[1:-1], failure.end


def _while_importing(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print one line for Ctrl-C before ``run``. Exit at once: half-done imports may fail later."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


_script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
if Path(__file__).parents[1] in Path(_script).absolute().parents:
    sys.excepthook = _while_importing  # only in scripts of this repository


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_with(code: int, message: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
