"""Errors for people: one line, exit code 2 for bad input, 1 for a failure, no traceback for a
user's mistake.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


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
    operating-system failure (disk full, no permission, no such file) with 1; each prints one line.
    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        _leave(2, str(error))
    except BrokenPipeError:  # `stage | head`: the reader has gone, nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:  # how Python holds the bytes of such a name
            raise
        near = error.object[max(0, error.start - 60) : error.end + 60]
        _leave(2, f"{near}: a name that is not UTF-8 text; rename it")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(1, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        _leave(130, "interrupted; run the same command again to go on")


def _leave(code: int, message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
