"""Whole files: a reader only ever sees a complete one, and two runs never write the same output."""

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
    """Open ``path`` for writing; it appears, whole, when the block ends without an error."""
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with replacing(path) as temporary, open(temporary, mode, **text) as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


@contextlib.contextmanager
def replacing(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (``is_folder``: of a new, empty folder); rename it to
    ``path`` on success, remove it on any error. Where ``path`` is a symbolic link, what it leads to
    is replaced. Raises ``PermissionError`` if ``path`` is a folder that cannot be written.
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
                if not os.access(path, os.W_OK):  # it could be moved aside, but not removed
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                path.rename(old)
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise
    _remove(old)


def replacing_folder(path: Path) -> contextlib.AbstractContextManager[Path]:
    """The same for a folder."""
    return replacing(path, is_folder=True)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists and can be removed."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _temporary(path: Path) -> Path:
    """A name beside ``path`` for this process alone. Leftovers of killed processes of this machine
    are removed, or moved back where they came from.
    """
    begin = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(begin)}*"):
        process, _, kind = left.name.removeprefix(begin).partition(".")
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if kind == "old" and not path.exists():
            left.rename(path)
        else:
            _remove(left)
    return path.with_name(f"{begin}{os.getpid()}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH  # it may be somebody else's
    return True


@contextlib.contextmanager
def naming(path: Path, *instead_of: Path) -> Iterator[None]:
    """Make an ``OSError`` name ``path``, which the user knows, if it names no file (as that of a
    write does) or one in ``instead_of``.
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
def holding(output: Path, wait: float = 0) -> Iterator[None]:
    """Hold the file or folder ``output`` against other processes, by a lock file beside it,
    ``.NAME.lock``, which is removed at the end, with the folders that were made for it alone.

    ``wait``: seconds to wait for another process; -1: as long as it takes. A killed process holds
    nothing. On a file system without locks, ``.NAME.held`` says by its existence that the output is
    held; one that a crashed machine left must be removed by hand.
    Raises ``UserError`` when another process holds the output.
    """
    absent = [folder for folder in output.parents if not folder.exists()]
    path, held = (output.with_name(f".{output.name}.{kind}") for kind in ("lock", "held"))
    lock: BaseFileLock = FileLock(path, thread_local=False, fallback_to_soft=False)
    while not lock.is_locked:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # a process that ends just now needs a moment to let go
            lock.acquire(timeout=wait or 0.2, poll_interval=0.05)
        except FileNotFoundError:  # one that ended just now removed the folder
            continue
        except Timeout:
            crashed = f", or remove {held} if its machine crashed" if held.exists() else ""
            raise UserError(
                f"{output}: another process is writing there; wait for it or stop it first{crashed}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS or isinstance(lock, SoftFileLock):
                raise
            path.unlink(missing_ok=True)  # no process can hold it here
            path, lock = held, SoftFileLock(held, thread_local=False)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # already removed, or no longer ours to remove
            path.unlink()  # while it is held: a process that waits for it then makes a new one
        lock.release()
        with contextlib.suppress(OSError):
            for folder in absent:  # the innermost first; one with something in it stays
                folder.rmdir()


def write_json(path: Path, value: Any, indent: int = 4) -> None:
    """Write ``value`` as JSON; no line end after it (as published: files compare equal)."""
    with writing(path) as handle:
        json.dump(value, handle, indent=indent, ensure_ascii=False)


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON object. Raises ``UserError`` if it is missing or broken, with ``made_by``, the
    command that makes it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run {made_by} first") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); run {made_by} again") from None
    if not isinstance(value, dict):
        found = type(value).__name__
        raise UserError(f"{path}: expected a JSON object, found {found}; run {made_by} again")
    return value


def text_lines(path: Path, missing: str) -> Iterator[str]:
    """Stream the lines of a text that people may have edited, without their ends (Unix or Windows)
    and without a byte order mark. Raises ``UserError`` for anything but UTF-8, with the line's
    number, and with ``missing`` if there is no such file.
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


_STARTS = {  # of the first bytes, in lower case and without space before them
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull gets it)",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML text, perhaps a server's error",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x93numpy": "a numpy array",
    b"riff": "an audio file",
}


def kind_of_file(path: Path) -> str | None:
    """What a file or folder is by its first bytes or its names, or None for no known kind."""
    if path.is_dir():
        names = ("config.json", "pytorch_model.bin", "model.safetensors")
        is_model = sum((path / name).exists() for name in names) > 1
        return "a folder of a Hugging Face model" if is_model else "a folder"
    with open(path, "rb") as handle:
        head = handle.read(512)
    if not head:
        return "an empty file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind := next((kind for begin, kind in _STARTS.items() if start.startswith(begin)), None):
        return kind
    if head[4:8] == b"ORTM":
        return "an ONNX Runtime model"
    # protobuf: the version, a number, and then a field of another kind
    if len(head) > 8 and head[0] == 0x08 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42":
        return "an ONNX model"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28:
        return "a safetensors file"
    return "a JSON text" if start.startswith((b"{", b"[")) and head.isascii() else None
