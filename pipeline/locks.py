"""One run at a time on one output."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError


@contextlib.contextmanager
def holding(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, alone or (``shared``) with others that share it.

    The operating system lets go of it when the process ends, however that happens. Raises
    ``UserError`` when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path.parent}: another process is writing there; wait for it or stop it first"
            ) from None
        yield
