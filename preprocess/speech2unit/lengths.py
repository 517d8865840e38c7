"""Opening a recording, and how long it is. A declared length is compared with what is there:

- It ends before its declared length (WAV, AIFF, AU, FLAC, MP3): cut short, bad audio.
- It declares none (WAV of a recorder or pipe that never wrote the sizes, FLAC without a total, MP3
  without a right count of frames): it is read to its end, with a note. So is Ogg without an end.
- Its format allows only an estimate (GSM, ADPCM): what decodes counts.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

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


class BadAudio(Exception):
    """A file that cannot become units; its text is the reason. Reasons of one kind have the same
    words before their first colon.
    """


class _Recording(soundfile.SoundFile):
    """Reads beyond the declared length, where soundfile would stop."""

    def seekable(self) -> bool:
        return False


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
        if self.frames != UNKNOWN and soundfile.SoundFile.seekable(self.file):
            self.file.seek(count)
            return
        while count and (read := len(self.file.read(min(count, 1 << 16)))):
            count -= read

    def length(self) -> int:
        """Samples a channel that decode. An ordinary file is not decoded for it: its last sample is
        enough. Raises ``BadAudio`` for a recording that is cut short.
        """
        file, count, promised, complete = self.file, self.frames, self.promised, True
        if not promised and file.format in ("FLAC", "OGG", "MP3") and not self._ends():
            promised = 0 if count == UNKNOWN else count
            count, complete = self._decoded(), False
            if not promised and count >= 0:
                return count
        if not promised and complete:
            return count
        of = f" of {promised / file.samplerate:.2f} s" if promised else ""
        raise BadAudio(f"is cut short: {abs(count) / file.samplerate:.2f} s{of} are there")

    def _ends(self) -> bool:
        """Whether the last sample decodes; False where it is not known which that is."""
        if self.frames == UNKNOWN:
            return False
        with contextlib.suppress(soundfile.LibsndfileError):
            self.file.seek(self.frames - 1)
            return len(self.file.read(1)) == 1
        return False

    def _decoded(self) -> int:
        """How many samples decode, negative if an error ends them."""
        count = 0
        fresh = self.file if self.frames == UNKNOWN else _Recording(self.file.name)
        with fresh, contextlib.suppress(soundfile.LibsndfileError):
            while block := len(fresh.read(4096, dtype="float32")):
                count += block
            return count
        return -count


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a recording. Raises ``BadAudio``: no regular file (which is never opened), empty, not
    audio. An error of decoding inside the block becomes ``BadAudio`` too.
    """
    status = _status(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_Recording(path))
        except soundfile.LibsndfileError as error:
            raise BadAudio(_reason(path, error)) from None
        except TypeError:  # of a name that ends with .raw
            raise BadAudio(HEADERLESS) from None
        frames, promised, notes = file.frames, 0, []
        if file.subtype.startswith("MPEG"):
            walked = _walk_mp3(path, status.st_mtime_ns, status.st_size)
            if walked and walked.declared > walked.count + 2:
                frames, promised = (walked.samples * n for n in (walked.count, walked.declared))
            elif walked and (walked.declared < walked.count - 2 or file.format != "MP3"):
                with_count = _Beheaded(stack.enter_context(open(path, "rb")), *walked.head())
                file = stack.enter_context(_Recording(with_count))
                frames, notes = file.frames, [NO_LENGTH]
        elif frames == 0 and (head := _unclosed(path, status.st_size)):
            file = stack.enter_context(
                _Recording(_Beheaded(stack.enter_context(open(path, "rb")), head, len(head)))
            )
            frames, notes = file.frames, [NO_LENGTH]
        elif sizes := _SIZES.search(file.extra_info):
            declared, actual = map(int, sizes.groups())
            if declared >= _NEVER_WRITTEN:
                notes = [NO_LENGTH]
            elif declared > actual + _PADDING:
                promised = frames * declared // max(actual, 1)
        elif frames == UNKNOWN or "closed properly" in file.extra_info:
            notes = [NO_LENGTH]
        elif file.format == "OGG" and not _has_end(path):
            notes = [NO_END]
        if frames == 0:
            raise BadAudio("holds no samples")
        try:
            yield Opened(file, frames, promised, tuple(notes))
        except soundfile.LibsndfileError:
            raise BadAudio("is cut short or damaged: it does not decode to its end") from None


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise BadAudio("does not exist") from None
    except (OSError, ValueError) as error:  # what is no file name at all
        raise BadAudio(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a pipe; save it to a file first",
            stat.S_IFSOCK: "a socket",
        }
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise BadAudio(f"is not readable audio: it is {kind}")
    if status.st_size == 0:
        raise BadAudio("is an empty file")
    return status


def _reason(path: Path, error: soundfile.LibsndfileError) -> str:
    try:
        open(path, "rb").close()
    except OSError as denied:
        return f"cannot be opened: {denied.strerror}"
    return f"is not readable audio: {error.error_string.rstrip('.')}"


class _Beheaded:
    """A file whose first ``skipped`` bytes are replaced by ``head``."""

    def __init__(self, file: IO[bytes], head: bytes, skipped: int) -> None:
        self._file, self._head, self._more, self._at = file, head, len(head) - skipped, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = os.fstat(self._file.fileno()).st_size + self._more
        self._at = offset + (0, self._at, size)[whence]
        return self._at

    def read(self, size: int) -> bytes:
        data = self._head[self._at : self._at + size]
        self._file.seek(max(self._at, len(self._head)) - self._more)
        data += self._file.read(size - len(data))
        self._at += len(data)
        return data


def _unclosed(path: Path, size: int) -> bytes | None:
    """A begin with which libsndfile takes all that follows, for a WAV whose sizes were never
    written.
    """
    with open(path, "rb") as file:
        begin = file.read(12)
    written = abs(int.from_bytes(begin[4:8], "little") + 8 - size) <= _PADDING
    if begin[:4] != b"RIFF" or begin[8:] != b"WAVE" or written:
        return None
    return b"RIFF" + (8).to_bytes(4, "little")


def _has_end(path: Path) -> bool:
    """Whether the last page of an Ogg is whole, and says that it is the last."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16) - 512))  # the largest page
        tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail) or not tail[at + 5] & 4:
        return False
    body = at + 27 + tail[at + 26]
    return body + sum(tail[at + 27 : body]) <= len(tail)


class _Mp3(NamedTuple):
    """The frames of an MP3: ``header`` and position of the first, how many there are, how many its
    Xing or VBRI header declares (-1: it has none), and samples a channel of each.
    """

    header: int
    first: int
    count: int
    declared: int
    samples: int

    def head(self) -> tuple[bytes, int]:
        """A first frame that declares the right count, and how many bytes it replaces."""
        header = self.header & ~0xF200 | 0x1E000  # the largest frame, no checksum, no padding
        size, samples = _mp3_frame(header.to_bytes(4, "big"), 0)
        mono = header >> 6 & 3 == 3
        side = (17 if mono else 32) if samples == 1152 else (9 if mono else 17)
        tag = header.to_bytes(4, "big") + bytes(side) + b"Xing" + (1).to_bytes(4, "big")
        return (tag + self.count.to_bytes(4, "big")).ljust(size, b"\0"), self.first


_KBITS = {  # of layer III, by samples a frame
    1152: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    576: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mp3_frame(data: bytes | mmap.mmap, at: int) -> tuple[int, int] | None:
    """Bytes and samples of the layer III frame whose header is at ``at``; None without one."""
    header = int.from_bytes(data[at : at + 4], "big")
    version, layer, rate = header >> 19 & 3, header >> 17 & 3, header >> 10 & 3
    bitrate = header >> 12 & 15
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate == 3 or bitrate in (0, 15):
        return None
    samples = 1152 if version == 3 else 576
    hertz = (44_100, 48_000, 32_000)[rate] >> (3 - version if version else 2)
    kbits = _KBITS[samples][bitrate - 1]
    return samples // 8 * 1000 * kbits // hertz + (header >> 9 & 1), samples


@functools.lru_cache
def _walk_mp3(path: Path, *_version: int) -> _Mp3 | None:
    """Count the frames of an MP3, wherever in the file they begin; None if there is none."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = count = header = first = samples = 0
        declared, known = -1, False
        if data[:3] == b"ID3":  # its size is in 4 times 7 bits
            at = 10 + functools.reduce(lambda size, byte: size << 7 | byte, data[6:10])
        while at >= 0 and at + 4 <= len(data):
            frame = _mp3_frame(data, at)
            if frame and not known:  # the next one tells a frame from bytes that look like one
                known = at + frame[0] >= len(data) or _mp3_frame(data, at + frame[0]) is not None
            if not frame or not known:
                known, at = False, data.find(b"\xff", at + 1)
                continue
            if at + frame[0] > len(data):
                break
            if not samples:
                samples, header = frame[1], int.from_bytes(data[at : at + 4], "big")
                body, first = data[at : at + min(frame[0], 64)], at
                for name, position in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
                    if (mark := body.find(name)) >= 0:
                        declared = int.from_bytes(body[mark + position :][:4], "big")
                if declared >= 0:
                    at = first = at + frame[0]
                    continue
            count, at = count + 1, at + frame[0]
    return _Mp3(header, first, count, declared, samples) if count else None
