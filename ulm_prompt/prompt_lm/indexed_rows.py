"""fairseq's binaries of a split, opened only when index, tokens and dict fit each other.

fairseq believes what an index says: of how long a row is, of where it lies, and of which of its
five formats it is.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from pipeline.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1)
_HEADER = struct.Struct("<BQ")  # type of the tokens, number of rows
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_PIECE = 1 << 20  # tokens looked at together


def open_rows(split: Path, dictionary: Dictionary) -> MMapIndexedDataset:
    """Open ``split``.idx and ``split``.bin (format ``mmap``); their rows stay on the disk.

    Raises ``UserError`` where one is missing, they do not fit, or a token is not in the dict.
    """
    index, tokens = (split.with_name(f"{split.name}.{end}") for end in ("idx", "bin"))
    for path in (index, tokens):
        if not path.is_file():
            raise UserError(f"{path}: split not found; run ulm_prompt/fairseq_preprocess.py")
    try:
        _check(index, tokens, len(dictionary))
    except ValueError as error:
        raise UserError(f"{index}: {error}; run ulm_prompt/fairseq_preprocess.py again") from None
    return MMapIndexedDataset(str(split))


def _check(index: Path, tokens: Path, symbols: int) -> None:
    """Raises ``ValueError``."""
    begin = len(_MAGIC) + _HEADER.size
    with open(index, "rb") as handle:
        head = handle.read(begin)
    if len(head) < begin or not head.startswith(_MAGIC):
        raise ValueError("not an index of fairseq's mmap format")
    code, count = _HEADER.unpack(head[len(_MAGIC) :])
    if code not in _TYPES:
        raise ValueError(f"tokens of an unknown type ({code})")
    expected = begin + 12 * count  # four bytes for a row's size, eight for its place
    if count < 1 or index.stat().st_size != expected:
        raise ValueError(f"declares {count:,} rows, has {index.stat().st_size:,} bytes")
    sizes = np.memmap(index, np.int32, "r", begin, (count,))
    places = np.memmap(index, np.int64, "r", begin + sizes.nbytes, (count,))
    width = np.dtype(_TYPES[code]).itemsize
    ends = np.cumsum(sizes, dtype=np.int64)
    if sizes.min() < 1 or not np.array_equal(places, (ends - sizes) * width):
        raise ValueError("its rows do not lie one after the other")
    if tokens.stat().st_size != ends[-1] * width:
        raise ValueError(f"declares {ends[-1]:,} tokens, {tokens.name} does not hold so many")
    text = np.memmap(tokens, _TYPES[code], "r")
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        if piece.min() < 0 or piece.max() >= symbols:
            raise ValueError(f"{tokens.name} holds a token that is none of the {symbols} symbols")
