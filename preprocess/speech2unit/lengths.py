"""Opening a recording, and how long it is.

Cut short, thus bad audio: what ends before its declared length, or with an error. Read to its end,
with a note: what declares none (WAV of a recorder or pipe that never wrote the sizes, FLAC without
a total, MP3 without a count), Ogg without a last page. Where a format allows only an estimate (GSM,
ADPCM), what decodes counts.
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
UNKNOWN = (1 << 63) - 1  # libsndfile's frames of a FLAC whose header has no total
_NEVER_WRITTEN = (1 << 31) - (1 << 16)  # bytes: recorders and pipes leave -1, or nearly 2 GiB
_PADDING = 16  # bytes that a header may promise too many
# libsndfile's log: "data : 96000 (should be 47978)"
_SIZES = re.compile(
    r"^ *(?:data|SSND|Data Size|[Rr]iff(?: size)?) *: (\d+) \(should be (\d+)\)", re.M
)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe; save it to a file first"}


class BadAudio(Exception):
    """Why a file cannot become units. Before the first colon are the words for all of a kind."""


class _Recording(soundfile.SoundFile):
    """Reads beyond the declared length, where soundfile would stop."""

    def seekable(self) -> bool:
        return False


class _Endless(io.FileIO):
    """A file that seems fifty times as large: libsndfile guesses an MP3's length from its size and
    first frame, and never reads beyond its guess.
    """

    _at_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at_end = whence == os.SEEK_END
        return super().seek(offset, whence)

    def tell(self) -> int:
        return super().tell() * (50 if self._at_end else 1)


class Opened(NamedTuple):
    """``file`` at its begin. ``frames``: samples a channel that are there, or ``UNKNOWN``;
    ``promised``: what the header declares, where that is more.
    """

    file: soundfile.SoundFile
    frames: int
    promised: int
    notes: tuple[str, ...]

    def skip(self, count: int) -> None:
        """Go to sample ``count``, by reading where the format cannot be sought (GSM)."""
        if self.file.frames != UNKNOWN and soundfile.SoundFile.seekable(self.file):
            self.file.seek(count)
            return
        while count and (read := len(self.file.read(min(count, 1 << 16)))):
            count -= read

    def length(self) -> int:
        """Samples a channel that decode. Raises ``BadAudio`` where it is cut short."""
        file, frames, promised = self.file, self.frames, self.promised
        if frames != UNKNOWN and not promised:
            if file.format not in ("FLAC", "OGG", "MP3"):
                return frames
            with contextlib.suppress(soundfile.LibsndfileError):
                file.seek(frames - 1)
                if len(file.read(1)):
                    return frames
            file, promised, frames = _Recording(file.name), frames, UNKNOWN
        if frames == UNKNOWN:
            frames = 0
            with file, contextlib.suppress(soundfile.LibsndfileError):
                while block := len(file.read(1024, dtype="float32")):
                    frames += block
                if not promised:
                    return frames
        of = f" of {promised / file.samplerate:.2f} s" if promised else ""
        raise BadAudio(f"is cut short: {frames / file.samplerate:.2f} s{of} are there")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a recording. Raises ``BadAudio``: no regular file (which is never opened), empty, not
    audio. An error of decoding inside the block becomes ``BadAudio`` too.
    """
    size = _size(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_Recording(path))
        except soundfile.LibsndfileError as error:
            reason = f"is not readable audio: {error.error_string.rstrip('.')}"
            raise BadAudio(reason) from None
        except TypeError:  # of a name that ends with .raw
            raise BadAudio(HEADERLESS) from None
        frames, promised, notes = file.frames, 0, []
        if file.subtype.startswith("MPEG"):
            endless = stack.enter_context(_Recording(stack.enter_context(_Endless(path))))
            if endless.frames != frames:  # a guess
                file, frames = endless, UNKNOWN
        elif frames == 0:
            file = stack.enter_context(_Recording(_closed(path, size)))
            frames = file.frames
        elif sizes := _SIZES.search(file.extra_info):
            declared, actual = map(int, sizes.groups())
            if not 0 < declared < _NEVER_WRITTEN:
                notes = [NO_LENGTH]
            elif declared > actual + _PADDING:
                promised = frames * declared // max(actual, 1)
        elif file.format == "OGG" and not _has_end(path, size):
            notes = [NO_END]
        if frames == 0:
            raise BadAudio("holds no samples")
        if frames == UNKNOWN or "closed properly" in file.extra_info:
            notes = [NO_LENGTH]
        try:
            yield Opened(file, frames, promised, tuple(notes))
        except soundfile.LibsndfileError:
            raise BadAudio("is cut short or damaged: it does not decode to its end") from None


def _size(path: Path) -> int:
    """Bytes of a regular file, otherwise ``BadAudio``."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise BadAudio("does not exist") from None
    except (OSError, ValueError) as error:  # what is no file name at all
        raise BadAudio(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a socket or a device")
        raise BadAudio(f"is not readable audio: it is {kind}")
    if status.st_size == 0:
        raise BadAudio("is an empty file")
    return status.st_size


def _closed(path: Path, size: int) -> mmap.mmap:
    """A file as it is, but a WAV without sizes, which then lasts to the file's end."""
    with open(path, "rb") as file:
        copy = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    written = abs(int.from_bytes(copy[4:8], "little") + 8 - size) <= _PADDING
    if copy[:4] == b"RIFF" and not written:
        copy[4:8] = (8).to_bytes(4, "little")
    return copy


def _has_end(path: Path, size: int) -> bool:
    """Whether the last page of an Ogg is whole, and says that it is the last."""
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 512))  # the largest page
        page = file.read().rpartition(b"OggS")[2]  # after its first 4 bytes
    if len(page) < 23 or not page[1] & 4:
        return False
    return 23 + page[22] + sum(page[23 : 23 + page[22]]) <= len(page)
