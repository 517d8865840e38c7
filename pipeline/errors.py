"""Errors for people: one line, exit code 2 for bad input, 1 for a failure, no traceback."""

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
    errno.ENOENT: f"it is needed: put it there, {_AGAIN}",
    errno.ENOMEM: "take smaller batches, or a lower precision, and run it again",
}


class UserError(Exception):
    """Something the user can mend, in a line: what, what was expected, found, and is to do."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """``text`` with line breaks, terminal controls and bytes that are not UTF-8 as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def near(word: str, known: Iterable[str]) -> str:
    """``(did you mean NAME?)`` where a known name is almost ``word``, else nothing."""
    from difflib import get_close_matches  # only a mistake needs it

    names = {name.casefold(): name for name in known}
    match = get_close_matches(word.casefold(), names, 1)
    return f" (did you mean {names[match[0]]}?)" if match else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a CPU's or a GPU's memory is full."""
    # torch and ONNX Runtime have no class of their own for a full CPU memory
    words = ("llocate memory", "bad_alloc", "bad allocation", "out of memory")
    is_said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or is_said


def run(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` and turn its outcome into an exit code.

    ``UserError``, and a name that is not UTF-8 where it must be written, exit with 2; an error of
    the operating system (disk full, no permission, no such file) and a full memory with 1;
    each prints one line. Anything else is a bug of ours and keeps its traceback. What the
    terminal's encoding lacks is printed as ``\\uXXXX``, which JSON reads too.
    """
    try:
        _prepare_streams()
        main()
        sys.stdout.flush()  # a full disk would go unnoticed at the interpreter's end
    except UserError as error:
        _leave(2, str(error))
    except BrokenPipeError:  # `stage | head`: the reader has ended
        _print_no_more()
        sys.exit(1)
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:  # Python's form of such a name's bytes
            raise
        around = error.object[max(0, error.start - 60) : error.end + 60]
        _leave(2, f"{around}: a name that is not UTF-8 text; rename it")
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        _leave(1, f"{path}{error.strerror or error}{remedy}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).split("\n")[0][:200] or "no more is known"
        _leave(1, f"out of memory: {reason}; {_REMEDIES[errno.ENOMEM]}")
    except KeyboardInterrupt:
        _leave(130, "interrupted; run the same command again to resume")


def _prepare_streams() -> None:
    """Let every name be printed. Raises ``UserError`` where nothing can be."""
    if sys.platform == "win32":
        raise UserError("Windows is not supported; use Linux, macOS, or Linux on Windows (WSL)")
    if sys.stderr is None:  # closed by `2>&-`
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # else a file of ours would be it
        raise UserError("standard output is closed; send it to a file, or to /dev/null")
    codecs.register_error("printable", _printable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="printable")


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is printed instead: a name's own bytes where it is not UTF-8, else JSON's escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError as its:
        return json.dumps(its.object[its.start : its.end])[1:-1], its.end


def _while_importing(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C before ``run``: one line too. Nothing has begun, and imports may not end well."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


_script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
if Path(__file__).parents[1] in Path(_script).absolute().parents:
    sys.excepthook = _while_importing  # for our scripts alone


def _print_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(code: int, message: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _print_no_more()
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
