"""Taking a unit LM out of its released archive, trusting nothing that the archive says."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.files import replacing_folder

WANTED = ("checkpoint_best.pt", "dict.txt")
LIMIT = 20 * 10**9  # bytes unpacked; a released LM takes about 2
_MEMBERS = 1000
# what gzip and tarfile raise on bytes that are not theirs; the last two on made-up headers
_DAMAGE = (
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    tarfile.TarError,
    ValueError,
    RecursionError,
)
_PIECE = 1 << 20


def unpack_lm(archive: Path, folder: Path, limit: int = LIMIT) -> None:
    """Take checkpoint_best.pt and dict.txt out of the .tgz ``archive`` into a new ``folder``, which
    replaces an old one whole. They may lie in one folder inside the archive; nothing else is taken.

    Raises ``UserError``, leaving no trace, for an archive that is damaged, cut short or larger than
    ``limit`` bytes, that lacks one of the two, or that holds anything but plain files and folders
    with plain names; ``OSError`` for too little room on the disk.
    """
    with replacing_folder(folder) as fresh:
        try:
            _unpack(archive, fresh, limit)
        except _DAMAGE as error:
            raise _refusal(archive, f"damaged or cut short ({error})") from None


def _unpack(archive: Path, folder: Path, limit: int) -> None:
    missing = set(WANTED)
    with gzip.open(archive) as content:
        stream = _Bounded(content, archive, limit)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member, name in _plain_files(tar, archive):
                if name not in missing:
                    continue
                if member.size > limit:
                    raise _refusal(archive, f"{name} claims {member.size:,} bytes")
                if member.size > shutil.disk_usage(folder).free:
                    raise OSError(f"{folder}: no room for {name}, {member.size:,} bytes")
                with open(folder / name, "wb") as target:
                    shutil.copyfileobj(tar.extractfile(member), target, _PIECE)
                missing.remove(name)
        while stream.read(_PIECE):  # the checksum stands at the very end
            pass
    if missing:
        raise _refusal(archive, f"no {' and no '.join(sorted(missing))} in it")


def _plain_files(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Every plain file with its name, less the folder that all may lie in. Refuses anything that a
    released archive has no reason to hold.
    """
    seen: set[str] = set()
    for number, member in enumerate(tar):
        path = PurePosixPath(member.name)
        if number == _MEMBERS:
            raise _refusal(archive, f"more than {_MEMBERS} files in it")
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise _refusal(archive, f"{member.name[:80]!r} in it leads out of its folder")
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise _refusal(archive, f"{member.name[:80]!r} in it is a link, device or the like")
        name = path.name if len(path.parts) <= 2 else str(path)
        if name in seen:
            raise _refusal(archive, f"{name[:80]!r} is in it twice")
        seen.add(name)
        yield member, name


class _Bounded:
    """The unpacked stream as ``tarfile`` reads it, with an end: headers may claim any size, and
    ``tarfile`` reads some of what they claim into memory at once.
    """

    def __init__(self, content: gzip.GzipFile, archive: Path, limit: int) -> None:
        self._content = content
        self._archive = archive
        self._limit = limit

    def tell(self) -> int:
        return self._content.tell()

    def seek(self, position: int) -> int:
        if position < self.tell() - tarfile.BLOCKSIZE:  # a negative size: tarfile would go in rings
            raise tarfile.ReadError("a header points backwards")
        self._check(position)
        return self._content.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _PIECE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._check(self.tell() + size - _PIECE)  # a last read may ask for more than there is
        return self._content.read(size)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise _refusal(self._archive, f"more than {self._limit:,} bytes unpacked")


def _refusal(archive: Path, reason: str) -> UserError:
    return UserError(f"{archive}: not a unit LM's archive: {reason}; get it again from its source")
