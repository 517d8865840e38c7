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
    """Something the user can mend. Its text is one line: the file or flag, what was expected, what
    was found, and what to do.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """``text`` with line breaks, terminal controls and bytes that are not UTF-8 as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def run(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` and turn its outcome into an exit code.

    ``UserError``, and a name that is not UTF-8 where it must be written, exit with 2; an error of
    the operating system (disk full, no permission, no such file) and a GPU's full memory with 1;
    each prints one line. Anything else is a bug of ours and keeps its traceback.
    """
    try:
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
        near = error.object[max(0, error.start - 60) : error.end + 60]
        _leave(2, f"{near}: a name that is not UTF-8 text; rename it")
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        _leave(1, f"{path}{error.strerror or error}{remedy}")
    except RuntimeError as error:  # torch's own class: this module must not import torch
        if type(error).__name__ != "OutOfMemoryError":
            raise
        first = str(error).split("\n")[0][:200]
        _leave(1, f"{first}; take smaller batches, or a lower precision, and run it again")
    except KeyboardInterrupt:
        _leave(130, "interrupted; run the same command again to resume")


def _print_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(code: int, message: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _print_no_more()
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
