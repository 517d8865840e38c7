"""The finished blocks of a run over audio: a file each, which appears whole or not at all, and the
audio files that they were made from. ``plan.json`` says which run they belong to.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json, write_json, writing
from preprocess.actions.stream import Block, Encoded
from preprocess.speech2unit.audio import BadAudio, Tally


class Line(NamedTuple):
    """One distinct file of the manifest: what was computed, as text, or why there is nothing; what
    was noted about the audio, and its stamp.
    """

    file: str
    path: str
    result: str | None
    bad: str | None
    notes: Sequence[str] = ()
    stamp: list[int] | None = None  # None: stored by an earlier version


class StoredBlocks:
    """The folder of ``blocks``; ``command`` is what a user types to compute them."""

    def __init__(
        self, folder: Path, blocks: Sequence[Block], plan: dict[str, Any], command: str
    ) -> None:
        self._folder, self._command = folder, command
        self._plan = {**plan, "blocks": [len(block.entries) for block in blocks]}
        # size and time of each audio file, before any is read; None: it does not exist
        paths = {str(block.root / e.path) for block in blocks for e in block.entries}
        self.stamps = {path: _stamp(path) for path in paths}

    def open(self, discard: bool) -> None:
        """Make the folder ready. Blocks of another plan are removed (``discard``) or raise
        ``UserError``: other shards may be at work on them.
        """
        path = self._folder / "plan.json"
        if path.exists() and read_json(path, self._command) != self._plan:
            if not discard:
                raise UserError(
                    f"{path}: the blocks there were made with other settings or another manifest; "
                    f"remove {self._folder} and run every shard again"
                )
            self.remove()
        if not path.exists():
            write_json(path, self._plan)

    def remove(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def count(self) -> int:
        return sum(1 for _ in self._folder.glob("*.jsonl"))

    def has(self, block: Block) -> bool:
        return self._path(block).exists()

    def write(self, encoded: Encoded[str]) -> None:
        """Write a finished block's file."""
        block = encoded.block
        with writing(self._path(block)) as handle:
            for entry, result, notes in zip(
                block.entries, encoded.results, encoded.notes, strict=True
            ):
                path = str(block.root / entry.path)
                bad = isinstance(result, BadAudio)
                outcome = (None, str(result)) if bad else (result, None)
                line = Line(entry.file, path, *outcome, notes, self.stamps[path])
                handle.write(json.dumps(line) + "\n")

    def read(self, block: Block) -> list[Line]:
        """Read a finished block. Raises ``UserError`` for one that is not of this manifest."""
        path = self._path(block)
        try:
            lines = [Line(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        except (ValueError, TypeError):
            lines = []
        if [line.file for line in lines] != [entry.file for entry in block.entries]:
            raise UserError(f"{path}: not what {self._command} wrote; remove it and run that again")
        return lines

    def lines(self, blocks: Sequence[Block]) -> Iterator[Line]:
        for block in blocks:
            yield from self.read(block)

    def tally(self, blocks: Sequence[Block]) -> Tally:
        """Count what the blocks say of their audio."""
        tally = Tally()
        for line in self.lines(blocks):
            tally.add(BadAudio(line.bad) if line.bad else line.notes)
        return tally

    def changed(self, block: Block) -> int:
        """How many audio files of a stored block are other ones than those that were read."""
        return sum(self.stamps[line.path] not in (None, line.stamp) for line in self.read(block))

    def remove_changed(self, blocks: Sequence[Block]) -> str:
        """Remove the blocks whose audio has changed. Returns a line that counts them, if any."""
        counts = {block.name: self.changed(block) for block in blocks if self.has(block)}
        stale = [block for block in blocks if counts.get(block.name)]
        for block in stale:
            self._path(block).unlink()
        if not stale:
            return ""
        return (
            f"{sum(counts.values())} audio files have changed since they were read: their "
            f"{len(stale)} blocks are computed again"
        )

    def fingerprint(self) -> str:
        """The SHA-256 of all stamps."""
        return hashlib.sha256(json.dumps(self.stamps, sort_keys=True).encode()).hexdigest()

    def _path(self, block: Block) -> Path:
        return self._folder / f"{block.name}.jsonl"


def _stamp(path: str) -> list[int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
