"""A file that is still coming, and what is known of its whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UserError
from pipeline.files import write_json


class Partial:
    """The beginning of a file, ``.NAME.part``, and beside it what the server said of the whole."""

    def __init__(self, final: Path, url: str, handle: BinaryIO) -> None:
        self.final = final
        self.path = Path(handle.name)
        self.url = url
        self.handle = handle
        self.resumed = False
        self._notes = self.path.with_name(f"{self.path.name}.json")
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            self.validator, self.total = notes["validator"], notes["total"]
            known = notes["url"] == url
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            self.discard()

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: Path, url: str) -> Iterator[Partial]:
        """The partial file of ``path``, held against other processes."""
        part = path.with_name(f".{path.name.removeprefix('.')}.part")
        with open(part, "ab", buffering=0) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(handle.fileno()), part.stat()):
                    raise FileNotFoundError  # the other process has just finished and renamed it
            except (BlockingIOError, FileNotFoundError):
                raise UserError(f"{path}: another process is downloading it; wait for it") from None
            try:
                yield cls(path, url, handle)
            finally:
                if part.exists() and not part.stat().st_size:  # nothing came: leave no trace
                    part.with_name(f"{part.name}.json").unlink(missing_ok=True)
                    part.unlink()

    @property
    def name(self) -> str:
        return self.final.name.removeprefix(".")

    @property
    def length(self) -> int:
        return os.fstat(self.handle.fileno()).st_size

    def discard(self) -> None:
        """Forget what came so far."""
        self.start(None, None)

    def start(self, validator: str | None, total: int | None) -> None:
        """Begin the file anew; ``validator`` is the server's mark of this version of it."""
        self.handle.truncate(0)
        self.resumed = False
        self.validator, self.total = validator, total
        write_json(self._notes, {"url": self.url, "validator": validator, "total": total})

    def publish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self.handle.fileno())
        self._notes.unlink(missing_ok=True)  # after the other, a kill between would leave them
        self.path.replace(self.final)
