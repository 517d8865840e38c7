"""Atomic writes and locks: readers see complete files only, two runs never write one output."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pipeline.errors import UserError

logging.getLogger("filelock").setLevel(logging.WARNING)  # it logs every lock
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def writing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file for writing. It becomes ``path`` if the block ends without an error."""
    options: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with replacing(path) as temporary, open(temporary, mode, **options) as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


@contextlib.contextmanager
def replacing(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``path``. Rename it to ``path`` on success, else remove it.

    ``is_folder``: the temporary path is a new, empty folder. If ``path`` is a symbolic link, the
    link's target is replaced. Raises ``PermissionError`` if ``path`` is a read-only folder.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    old = temporary.with_suffix(".old")
    with naming(path, temporary):
        try:
            if is_folder:
                temporary.mkdir()
            yield temporary
            if path.is_dir():
                if not os.access(path, os.W_OK):  # could be renamed, but not removed later
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                path.rename(old)
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise
    _remove(old)


def replacing_folder(path: Path) -> contextlib.AbstractContextManager[Path]:
    """Replace a folder in the same way (see ``replacing``)."""
    return replacing(path, is_folder=True)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists and can be removed."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _temporary(path: Path) -> Path:
    """Return a path next to ``path`` that only this process uses. If killed processes of this
    machine left such paths, remove them, or move an old folder back if ``path`` is missing.
    """
    prefix = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):
        process, _, kind = leftover.name.removeprefix(prefix).partition(".")
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if kind == "old" and not path.exists():
            leftover.rename(path)
        else:
            _remove(leftover)
    return path.with_name(f"{prefix}{os.getpid()}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH  # EPERM: alive, but another user's
    return True


@contextlib.contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
    """Make an ``OSError`` name ``path``, which the user knows, if the error names no file (as after
    a failed write) or a file in ``instead_of``.
    """
    try:
        yield
    except OSError as error:
        files = [Path(name) for name in (error.filename, error.filename2) if name is not None]
        is_hidden = any(file.is_relative_to(other) for file in files for other in instead_of)
        if error.errno is not None and (is_hidden or not files):
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def holding(output: Path, wait: float = 0) -> Iterator[None]:
    """Lock the file or folder ``output`` against other processes, with a lock file next to it,
    ``.NAME.lock``. At the end, remove the lock file and the folders created only for it.

    ``wait``: seconds to wait for another process; -1: no limit. A killed process holds no lock.
    On a file system without locks, the output is locked while ``.NAME.held`` exists. After a crash
    of the machine, the user must remove this file.
    Raises ``UserError`` if another process holds the lock.
    """
    missing = [folder for folder in output.parents if not folder.exists()]
    path, held = (output.with_name(f".{output.name}.{kind}") for kind in ("lock", "held"))
    lock: BaseFileLock = FileLock(path, thread_local=False, fallback_to_soft=False)
    while not lock.is_locked:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # a process that is ending needs a moment to release the lock
            lock.acquire(timeout=wait or 0.2, poll_interval=0.05)
        except FileNotFoundError:  # an ending process has just removed the folder
            continue
        except Timeout:
            after_crash = f", or remove {held} if its machine crashed" if held.exists() else ""
            raise UserError(
                f"{output}: another process is writing there; wait for it or stop it{after_crash}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS or isinstance(lock, SoftFileLock):
                raise
            path.unlink(missing_ok=True)  # no process can lock it on this file system
            path, lock = held, SoftFileLock(held, thread_local=False)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # already removed, or no longer ours to remove
            path.unlink()  # before the release: a waiting process then creates a new file
        lock.release()
        with contextlib.suppress(OSError):
            for folder in missing:  # the innermost first; a folder that is not empty stays
                folder.rmdir()


def write_json(path: Path, value: Any, indent: int = 4) -> None:
    """Write ``value`` as JSON without a final line end (as published: files compare equal)."""
    with writing(path) as handle:
        json.dump(value, handle, indent=indent, ensure_ascii=False)


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON object. Raises ``UserError`` if the file is missing or broken; the error names
    ``made_by``, the command that writes the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run {made_by} first") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); run {made_by} again") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f"{path}: expected a JSON object, found {kind}; run {made_by} again")
    return value


def text_lines(path: Path, missing: str) -> Iterator[str]:
    """Yield the lines of a text that people may have edited, without line ends (Unix or Windows)
    and without a byte order mark. Raises ``UserError`` with the line number if the text is not
    UTF-8, and with the message ``missing`` if the file does not exist.
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
    """Return the SHA-256 as 64 hexadecimal digits. A process reads an unchanged file only once."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _sha256(path: Path, *_version: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_STARTS = {  # the first bytes of a file, in lower case, without leading white space
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull gets it)",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML text, perhaps a server's error",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x93numpy": "a numpy array",
    b"riff": "an audio file",
}


def kind_of_file(path: Path) -> str | None:
    """Return the kind of a file (by the first bytes) or folder (by file names); None if unknown."""
    if path.is_dir():
        names = ("config.json", "pytorch_model.bin", "model.safetensors")
        is_model = sum((path / name).exists() for name in names) > 1
        return "a folder of a Hugging Face model" if is_model else "a folder"
    with open(path, "rb") as handle:
        head = handle.read(512)
    if not head:
        return "an empty file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind := next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), None):
        return kind
    if head[4:8] == b"ORTM":
        return "an ONNX Runtime model"
    # protobuf: first the version, a number, then a field of another type
    if len(head) > 8 and head[0] == 0x08 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42":
        return "an ONNX model"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28:
        return "a safetensors file"
    return "a JSON text" if start.startswith((b"{", b"[")) and head.isascii() else None
