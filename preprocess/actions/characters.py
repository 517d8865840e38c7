"""Text as labels: the characters of LibriSpeech's transcripts, letters, apostrophe and space."""

from __future__ import annotations

import unicodedata
from collections import Counter

from pipeline.errors import UserError

# 28; the paper counts 29. An answer's end is the LM's own </s> and needs no label.
CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_APOSTROPHES = str.maketrans("’‘`", "'''")


def checked(text: str, where: str) -> str:
    """``text`` with single spaces. Raises ``UserError``, beginning with ``where``, for an empty one
    or a character that is not of ``CHARACTERS``.
    """
    text = " ".join(text.split())
    if not text:
        raise UserError(f"{where}: no text")
    unknown = next((character for character in text if character not in CHARACTERS), None)
    if unknown is not None:
        raise UserError(
            f"{where}: {unknown!r} in {text[:60]!r}; expected capital letters, apostrophes and "
            "spaces, as LibriSpeech's transcripts have them"
        )
    return text


def normalised(word: str, dropped: Counter[str]) -> str:
    """``word`` in capitals, accents taken off; what is no character of ours then is left out, and
    counted in ``dropped``.
    """
    plain = unicodedata.normalize("NFKD", word.translate(_APOSTROPHES)).upper()
    letters = [character for character in plain if not unicodedata.combining(character)]
    kept = [character for character in letters if character in CHARACTERS and character != " "]
    dropped.update(character for character in letters if character not in kept)
    return "".join(kept)


def left_out(dropped: Counter[str]) -> str:
    """What ``normalised`` left out, for people: how many characters, and the most frequent."""
    listed = " ".join(f"{character!r} {count:,}" for character, count in dropped.most_common(9))
    return f"{dropped.total():,} characters left out ({listed})"
