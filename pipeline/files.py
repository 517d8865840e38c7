"""Writing files so that a reader only ever sees a complete one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError


def _temporary(path: Path) -> Path:
    """A name beside ``path`` for this process alone. What a killed one of this machine left there
    is removed, or put back where it was moved away.
    """
    begin = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(begin)}*"):
        process, _, kind = left.name.removeprefix(begin).partition(".")
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if kind == "old" and not path.exists():
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    return path.with_name(f"{begin}{os.getpid()}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextlib.contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
    """Let an ``OSError`` say ``path``, which the user knows, where it names nothing (a write says
    not where it failed) or something in one of ``instead_of``.
    """
    try:
        yield
    except OSError as error:
        named = [Path(name) for name in (error.filename, error.filename2) if name is not None]
        hidden = any(name.is_relative_to(other) for name in named for other in instead_of)
        if error.errno is not None and (hidden or not named):
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place on success, remove it on any
    error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with naming(path, temporary):
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


@contextlib.contextmanager
def writing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open ``path`` for writing; it appears, whole, when the block ends without an error."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with replacing(path) as temporary, open(temporary, mode, **text) as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


def write_json(path: Path, value: Any, indent: int = 4) -> None:
    """Write ``value`` as JSON, atomically; no line end after it (as published: files compare
    equal).
    """
    with writing(path) as handle:
        json.dump(value, handle, indent=indent, ensure_ascii=False)


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON file that holds an object; ``made_by`` is the command that makes it, told when it
    is missing or broken.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run {made_by} first") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        raise UserError(f"{path}: not valid JSON ({error}); run {made_by} again") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: expected a JSON object, found {type(value).__name__}; run {made_by} again"
        )
    return value


def text_lines(path: Path, missing: str) -> Iterator[str]:
    """Stream the lines of a text that people may have edited, without their ends: those of Unix or
    Windows, a byte order mark before the first or not.

    Raises ``UserError``, naming the line, for anything but UTF-8, and with ``missing`` for a file
    that is not there.
    """
    try:
        handle = open(path, encoding="utf-8-sig", newline="\n")
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    number = 0
    with handle:
        try:
            for line in handle:
                number += 1
                yield line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number + 1}: not UTF-8 text") from None


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits. A process reads an unchanged file once."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _sha256(path: Path, *_version: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; swap it into place on success, remove it on any
    error. Raises ``PermissionError`` where the folder that lies there takes nothing.
    """
    _check_writable(path)
    temporary = _temporary(path)
    old = temporary.with_suffix(".old")
    with naming(path, temporary):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _check_writable(path)  # it could be moved aside all the same, but not removed
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _check_writable(folder: Path) -> None:
    if folder.exists() and not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


# One run at a time on one output.


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
