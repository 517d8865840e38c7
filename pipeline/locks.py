"""One run at a time on one output."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import UserError


@contextlib.contextmanager
def holding(output: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the file or folder ``output``, alone or (``shared``) with others that share it, by a
    lock file beside it, ``.NAME.lock``. The one that holds it alone takes that away again, and the
    folders that were made for it alone.

    The operating system lets go of it when the process ends, however that happens. Raises
    ``UserError`` when another process holds it, unless it is to ``wait``.
    """
    absent = [folder for folder in output.parents if not folder.exists()]
    path = output.with_name(f".{output.name}.lock")
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        handle = _locked(path, how)
    except BlockingIOError:
        raise UserError(
            f"{output}: another process is writing there; wait for it or stop it first"
        ) from None
    with handle:
        try:
            yield
        finally:
            if not shared:
                with contextlib.suppress(OSError):  # gone, or not ours to remove any more
                    path.unlink()
                    for folder in absent:  # the innermost first; one with something in it stays
                        folder.rmdir()


def _locked(path: Path, how: int) -> IO[str]:
    """The lock file, open and locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            # NFS gives a shared lock only on what is open for reading, too
            handle = stack.enter_context(open(path, "a+", encoding="utf-8"))
            fcntl.flock(handle, how)
            if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                stack.pop_all()  # it stays open
                return handle
        # its holder took it away when it was done, its folder perhaps too: it locks nothing
