"""Errors for people: one line, exit code 2 for bad input, 1 for a failure, no traceback for a
user's mistake.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

_FULL = "make room, then run the same command again"
_FORBIDDEN = "make it readable and writable for you, then run the same command again"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    errno.ENOENT: "it is needed: put it there, then run the same command again",
}


class UserError(Exception):
    """Something the user can mend. Its text names the file or flag, what was expected, what was
    found, what to do; it is one line, whatever the names in it hold.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """``text`` with line breaks, terminal controls and bytes that are no UTF-8 as escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def run(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` and turn its outcome into an exit code.

    ``UserError``, and a name that is not UTF-8 where it must be written, exit with 2; an
    operating-system failure (disk full, no permission, no such file) and a GPU's full memory with
    1; each prints one line.
    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()  # at the interpreter's end an error would have no words
    except UserError as error:
        _leave(2, str(error))
    except BrokenPipeError:  # `stage | head`: the reader has gone, nobody is left to tell
        _print_no_more()
        sys.exit(1)
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:  # how Python holds the bytes of such a name
            raise
        near = error.object[max(0, error.start - 60) : error.end + 60]
        _leave(2, f"{near}: a name that is not UTF-8 text; rename it")
    except OSError as error:
        where = error.filename or ("standard output" if _cannot_print(error) else None)
        remedy = _REMEDIES.get(error.errno)
        what = f"{where}: " if where else "", error.strerror or error, f"; {remedy}" * bool(remedy)
        _leave(1, "".join(map(str, what)))
    except RuntimeError as error:  # torch's, whose class is only there where torch is
        if type(error).__name__ != "OutOfMemoryError":
            raise
        first = str(error).split("\n")[0][:200]
        _leave(1, f"{first}; take smaller batches, or a lower precision, and run it again")
    except KeyboardInterrupt:
        _leave(130, "interrupted; run the same command again to go on")


def _cannot_print(error: OSError) -> bool:
    """Whether standard output can be what a nameless error speaks of."""
    try:
        if error.errno is not None:
            print(flush=True)  # something new: a flush that has failed need not fail again
    except OSError:
        return True
    return False


def _print_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(code: int, message: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _print_no_more()
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
