"""How far a run over audio has come, in files, hours of audio, and times real time."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from preprocess.speech2unit.stream import Encoded

Result = TypeVar("Result")


class Progress:
    """A bar on a terminal while blocks come in, and a line when they are done."""

    def __init__(self, title: str, files: int) -> None:
        self._bar = tqdm(
            total=files, desc=title, unit="file", disable=not sys.stderr.isatty(), mininterval=0.5
        )
        self._start = time.monotonic()
        self.seconds = 0.0
        self.notes: Counter[str] = Counter()

    def __call__(self, encoded: Iterable[Encoded[Result]]) -> Iterator[Encoded[Result]]:
        """Yield what comes, counting it."""
        with self._bar:
            for item in encoded:
                self.seconds += item.seconds
                self.notes += item.notes
                self._bar.set_postfix_str(self.summary(), refresh=False)
                self._bar.update(len(item.results))
                yield item

    def summary(self) -> str:
        """``0.42 h of audio, 35x real time``."""
        speed = self.seconds / max(time.monotonic() - self._start, 1e-9)
        return f"{self.seconds / 3600:.2f} h of audio, {speed:.0f}x real time"
