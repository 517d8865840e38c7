"""Errors for people: one line, exit code 2 for bad input, 1 for a failure, no traceback for a
user's mistake.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. Its text names the file or flag, what was expected, what was
    found, what to do.
    """


def run(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` and turn its outcome into an exit code.

    ``UserError`` exits with 2; an operating-system failure (disk full, no permission, no such file)
    with 1; both print one line. Anything else is a bug of ours and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        _leave(2, str(error))
    except BrokenPipeError:  # `stage | head`: the reader has gone, nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(1, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        _leave(130, "interrupted; run the same command again to go on")


def _leave(code: int, message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
