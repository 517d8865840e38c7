"""The audio that a command line names, as a stream: files, folders, and lists on standard input."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import UserError

STDIN = "-"


def check_sources(words: Sequence[str]) -> list[str]:
    """The files and folders named, ``-`` for a list on standard input, which is also what nothing
    means when something is piped in.

    Raises ``UserError`` for a name that is not there, or nothing at all.
    """
    words = list(words)
    if not words:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("no audio: name files or folders, or pipe in a list of them")
        words = [STDIN]
    if words.count(STDIN) > 1:
        raise UserError("-: standard input can be read once")
    for word in words:
        if word != STDIN and not Path(word).exists():
            raise UserError(f"{word}: no such file or folder")
        if word != STDIN and Path(word).is_dir() and next(files_in(Path(word)), None) is None:
            raise UserError(f"{word}: no files in this folder, but for hidden ones")
    return words


def count_files(words: Sequence[str]) -> int | None:
    """How many files there will be; None while a list is still to be read."""
    if STDIN in words:
        return None
    return sum(sum(1 for _ in _files(word)) for word in words)


def stream(words: Sequence[str]) -> Iterator[Path]:
    """Every file, in the order of ``words``; a folder's by name. Nothing is kept."""
    for word in words:
        yield from _files(word)


def _files(word: str) -> Iterator[Path]:
    if word == STDIN:
        # not sys.stdin: leaving while a thread waits in it ends with a "fatal error"
        with open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
            yield from (Path(line.rstrip("\r\n")) for line in lines if line.strip())
    elif Path(word).is_dir():
        yield from files_in(Path(word))
    else:
        yield Path(word)


def files_in(folder: Path) -> Iterator[Path]:
    """The files under ``folder``, by name, hidden ones left out. Reading tells which are audio: a
    name does not.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(root) / name


def as_they_arrive(paths: Iterable[Path], most: int) -> Iterator[list[Path]]:
    """Batches of what is there, at most ``most``: the first path is not kept waiting for others.

    A thread reads ahead by two batches. An error of ``paths`` is raised here.
    """
    arrived: queue.Queue[Path | BaseException | None] = queue.Queue(2 * most)

    def read() -> None:
        try:
            for path in paths:
                arrived.put(path)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch = [arrived.get()]
        while len(batch) < most and isinstance(batch[-1], Path) and not arrived.empty():
            batch.append(arrived.get())
        last = batch[-1]
        good = batch if isinstance(last, Path) else batch[:-1]
        if good:
            yield good
        if last is None:
            return
        if isinstance(last, BaseException):
            raise last
