"""A file's bytes, decompressed, from front to back, never more than a limit: for files that are not
trusted.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from typing import BinaryIO, Protocol

MOST_BYTES = 1 << 30  # of a file after decompression; what is beyond is not read
MOST_KEPT = 1 << 27  # of those, what may be held in memory
_BLOCK = 1 << 16
_LONGEST_LINE = 1000
_LZMA_MEMORY = 1 << 27  # xz -9 takes 64 MiB; a header may ask for 4 GiB


class _Decompressor(Protocol):
    eof: bool

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class ByteStream:
    """``handle``'s bytes; zlib, gzip, bz2, xz and lzma are recognised by their first bytes.

    Every method raises ``ValueError`` for damaged compression and above the limits.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        start = handle.read(6)
        handle.seek(0)
        self._decompressor = _decompressor(start)
        size = os.fstat(handle.fileno()).st_size
        self._end = MOST_BYTES if self._decompressor else min(size, MOST_BYTES)
        self._position = 0
        self._kept = 0
        self._waiting = b""  # decompressed; what lies before _place is read
        self._place = 0
        self._compressed = b""  # from the file, not yet decompressed

    @property
    def left(self) -> int:
        """No more than so many bytes are left: those of the file, or of the limit."""
        return self._end - self._position

    def tell(self) -> int:
        """Bytes read so far, after decompression."""
        return self._position

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, or fewer where the data ends."""
        self._kept += min(count, self.left)
        if self._kept > MOST_KEPT:
            raise ValueError(f"more than {MOST_KEPT} bytes to hold")
        pieces = []
        while count > 0 and (piece := self._some(count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def exactly(self, count: int) -> bytes:
        """Return ``count`` bytes; ``ValueError`` where the data ends before."""
        data = self.read(count)
        if len(data) < count:
            raise ValueError(f"ends early: {count} bytes expected, {len(data)} found")
        return data

    def readline(self) -> bytes:
        """Return what comes before the next newline, and it."""
        line = bytearray()
        while not line.endswith(b"\n") and (byte := self.read(1)):
            line += byte
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
        return bytes(line)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes without holding them; ``ValueError`` where the data ends."""
        while count > 0:
            piece = self._some(count)
            if not piece:
                raise ValueError(f"ends early: {count} more bytes expected")
            count -= len(piece)

    def _some(self, most: int) -> bytes:
        """One to ``most`` bytes; none at the end."""
        if self._place == len(self._waiting):
            self._waiting, self._place = self._block(), 0
        piece = self._waiting[self._place : self._place + most]
        self._place += len(piece)
        self._position += len(piece)
        if self._position > self._end:
            raise ValueError(f"more than {self._end} bytes")
        return piece

    def _block(self) -> bytes:
        decompressor = self._decompressor
        if decompressor is None:
            return self._handle.read(_BLOCK)
        while not decompressor.eof:
            ended = False
            if not self._compressed and getattr(decompressor, "needs_input", True):
                self._compressed = self._handle.read(_BLOCK)
                ended = not self._compressed
            try:
                block = decompressor.decompress(self._compressed, _BLOCK)
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise ValueError(f"damaged compression ({error})") from None
            # zlib hands back what it has not taken; bz2 and lzma keep it
            self._compressed = getattr(decompressor, "unconsumed_tail", b"")
            if block:
                return block
            if ended:
                break  # within the compressed data
        return b""


def _decompressor(start: bytes) -> _Decompressor | None:
    if start.startswith((b"\x78", b"\x1f\x8b")):
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, by the header
    if start.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if start.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
    return None
