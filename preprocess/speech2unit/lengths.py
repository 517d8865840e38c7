"""Open a recording and find its length.

A file that ends before its declared length, or with an error, is cut short: it is bad audio. A file
that declares no length is read to its end, with a note. This covers a WAV by a recorder or pipe
that never wrote the sizes, a FLAC without a total, an MP3 without a frame count, and an Ogg without
a last page. If a format allows only an estimate (GSM, ADPCM), the decoded samples count.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile

HEADERLESS = "has no header that says its rate and format; convert it to wav or flac"
NO_LENGTH = "no length in the header, read to the file's end"
NO_END = "no end mark, perhaps cut short"
UNKNOWN = (1 << 63) - 1  # libsndfile's frame count for a FLAC whose header has no total
_NEVER_WRITTEN = (1 << 31) - (1 << 16)  # bytes: unwritten sizes are 0, -1 or nearly 2 GiB
_PADDING = 16  # bytes by which a header may declare too much
# libsndfile's log: "data : 96000 (should be 47978)"
_SIZES = re.compile(
    r"^ *(?:data|SSND|Data Size|[Rr]iff(?: size)?) *: (\d+) \(should be (\d+)\)", re.M
)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe; save it to a file first"}


class BadAudio(Exception):
    """The reason why a file cannot become units. The text before the first colon is the kind."""


class _Recording(soundfile.SoundFile):
    """A file that claims it cannot seek: soundfile then reads beyond the declared length."""

    def seekable(self) -> bool:
        return False


class _Endless(io.FileIO):
    """A file that seems fifty times as large. libsndfile guesses an MP3's length from the file size
    and the first frame, and never reads beyond the guess.
    """

    _at_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at_end = whence == os.SEEK_END
        return super().seek(offset, whence)

    def tell(self) -> int:
        return super().tell() * (50 if self._at_end else 1)


class Opened(NamedTuple):
    """``file``, at its start. ``frames``: the samples per channel in the file, or ``UNKNOWN``.
    ``declared``: the samples per channel that the header declares if those are more, otherwise 0.
    """

    file: soundfile.SoundFile
    frames: int
    declared: int
    notes: tuple[str, ...]

    def skip(self, count: int) -> None:
        """Go to sample ``count``. Read up to it if the format does not allow a seek (GSM)."""
        if self.file.frames != UNKNOWN and soundfile.SoundFile.seekable(self.file):
            self.file.seek(count)
            return
        while count and (read := len(self.file.read(min(count, 1 << 16)))):
            count -= read

    def length(self) -> int:
        """Return the decodable samples per channel. Raises ``BadAudio`` for a cut file."""
        file, frames, declared = self.file, self.frames, self.declared
        if frames != UNKNOWN and not declared:
            if file.format not in ("FLAC", "OGG", "MP3"):
                return frames
            with contextlib.suppress(soundfile.LibsndfileError):
                file.seek(frames - 1)
                if len(file.read(1)):
                    return frames
            file, declared, frames = _Recording(file.name), frames, UNKNOWN
        if frames == UNKNOWN:
            frames = 0
            with file, contextlib.suppress(soundfile.LibsndfileError):
                while block := len(file.read(1024, dtype="float32")):
                    frames += block
                if not declared:
                    return frames
        total = f" of {declared / file.samplerate:.2f} s" if declared else ""
        raise BadAudio(f"is cut short: found {frames / file.samplerate:.2f} s{total}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a recording. Raises ``BadAudio`` if ``path`` is no regular file (such a path is never
    opened), is empty or is not audio. A decoding error inside the block becomes ``BadAudio`` too.
    """
    size = _size(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_Recording(path))
        except soundfile.LibsndfileError as error:
            reason = f"is not readable audio: {error.error_string.rstrip('.')}"
            raise BadAudio(reason) from None
        except TypeError:  # soundfile's error for a name that ends with .raw
            raise BadAudio(HEADERLESS) from None
        frames, declared, notes = file.frames, 0, []
        if file.subtype.startswith("MPEG"):
            endless = stack.enter_context(_Recording(stack.enter_context(_Endless(path))))
            if endless.frames != frames:  # libsndfile guessed the length from the file size
                file, frames = endless, UNKNOWN
        elif frames == 0:
            file = stack.enter_context(_Recording(_until_the_end(path, size)))
            frames = file.frames
        elif sizes := _SIZES.search(file.extra_info):
            declared_bytes, actual_bytes = map(int, sizes.groups())
            if not 0 < declared_bytes < _NEVER_WRITTEN:
                notes = [NO_LENGTH]
            elif declared_bytes > actual_bytes + _PADDING:
                declared = frames * declared_bytes // max(actual_bytes, 1)
        elif file.format == "OGG" and not _has_end(path, size):
            notes = [NO_END]
        if frames == 0:
            raise BadAudio("contains no samples")
        if frames == UNKNOWN or "closed properly" in file.extra_info:
            notes = [NO_LENGTH]
        try:
            yield Opened(file, frames, declared, tuple(notes))
        except soundfile.LibsndfileError:
            raise BadAudio("is cut short or damaged: it does not decode to its end") from None


def _size(path: Path) -> int:
    """Return the bytes of a regular file. Raises ``BadAudio`` for anything else."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise BadAudio("does not exist") from None
    except (OSError, ValueError) as error:  # such as an invalid file name
        raise BadAudio(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a socket or a device")
        raise BadAudio(f"is not readable audio: it is {kind}")
    if status.st_size == 0:
        raise BadAudio("is an empty file")
    return status.st_size


def _until_the_end(path: Path, size: int) -> mmap.mmap:
    """Return the file's bytes, in which a WAV without sizes now lasts to the end of the file."""
    with open(path, "rb") as file:
        copy = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    has_size = abs(int.from_bytes(copy[4:8], "little") + 8 - size) <= _PADDING
    if copy[:4] == b"RIFF" and not has_size:
        copy[4:8] = (8).to_bytes(4, "little")
    return copy


def _has_end(path: Path, size: int) -> bool:
    """Return whether the last page of an Ogg is complete and marked as the last."""
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 512))  # a page is at most that large
        page = file.read().rpartition(b"OggS")[2]  # the page after these 4 bytes
    if len(page) < 23 or not page[1] & 4:
        return False
    return 23 + page[22] + sum(page[23 : 23 + page[22]]) <= len(page)
