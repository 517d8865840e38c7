"""Finished blocks of a run, a small file each, until all are there.

A block's file appears whole or not at all: what a killed run, another rank or another shard has
finished is simply there. ``plan.json`` says which run the blocks belong to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json, write_json, writing
from preprocess.speech2unit.audio import BadAudio
from preprocess.speech2unit.stream import Block, Encoded


class Line(NamedTuple):
    """One distinct file of the manifest: what was computed, as text, or why it has nothing."""

    file: str
    path: str
    result: str | None
    bad: str | None


class BlockStore:
    """The folder of one run's blocks. ``plan`` is all that the results depend on."""

    def __init__(self, folder: Path, plan: dict[str, Any], remedy: str) -> None:
        self.folder = folder
        self._plan = plan
        self._remedy = remedy  # the command that makes blocks

    def open(self, discard: bool) -> int:
        """Make the folder ready and return how many blocks it holds.

        Blocks of another plan are removed (``discard``) or raise ``UserError``: other shards may be
        at work on them.
        """
        path = self.folder / "plan.json"
        if path.exists() and read_json(path, self._remedy) != self._plan:
            if not discard:
                raise UserError(
                    f"{path}: the blocks there were made with other settings or another manifest; "
                    f"remove {self.folder} and run every shard again"
                )
            shutil.rmtree(self.folder)
        if not path.exists():
            write_json(path, self._plan)
        return sum(1 for _ in self.folder.glob("*.jsonl"))

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that are not there, or hold a bad file (it may be repaired by now)."""
        return [
            block
            for block in blocks
            if not self.has(block) or any(line.bad for line in self.read(block))
        ]

    def has(self, block: Block) -> bool:
        """Whether the block is finished."""
        return self._path(block).exists()

    def write(self, encoded: Encoded[str]) -> None:
        """Store a finished block."""
        with writing(self._path(encoded.block)) as handle:
            for entry, result in zip(encoded.block.entries, encoded.results, strict=True):
                bad = isinstance(result, BadAudio)
                line = Line(
                    entry.file,
                    str(encoded.block.root / entry.path),
                    None if bad else result,
                    str(result) if bad else None,
                )
                handle.write(json.dumps(line) + "\n")

    def read(self, block: Block) -> list[Line]:
        """Read a finished block. Raises ``UserError`` for one that is not of this manifest."""
        path = self._path(block)
        try:
            lines = [Line(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        except (ValueError, TypeError):
            lines = []
        if [line.file for line in lines] != [entry.file for entry in block.entries]:
            raise UserError(f"{path}: not what {self._remedy} wrote; remove it and run that again")
        return lines

    def lines(self, blocks: Sequence[Block]) -> Iterator[Line]:
        """All lines of ``blocks``, in order."""
        for block in blocks:
            yield from self.read(block)

    def remove(self) -> None:
        """Remove the folder, if it is there; what it held has been written elsewhere."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def finish_shard(self, shard: int, shards: int) -> None:
        """Note that shard ``shard`` of ``shards`` has computed all of its blocks."""
        write_json(self._marker(shard, shards), {"shard": shard, "num_shards": shards})

    def shard_is_finished(self, shard: int, shards: int) -> bool:
        """Whether ``finish_shard`` was called for it."""
        return self._marker(shard, shards).exists()

    def check_shards(self) -> int:
        """Return N when shards 0 to N - 1 of N are all there, once each.

        Raises ``UserError`` for a missing shard, and for shards of two different divisions, where
        work was done twice.
        """
        found: dict[int, set[int]] = {}
        for path in self.folder.glob("shard-*-of-*.json"):
            _, shard, _, shards = path.stem.split("-")
            found.setdefault(int(shards), set()).add(int(shard))
        if not found:
            raise UserError(f"{self.folder}: no shard is finished; run {self._remedy} --shard K")
        if len(found) > 1:
            divisions = " and ".join(f"--num_shards {shards}" for shards in sorted(found))
            raise UserError(
                f"{self.folder}: shards of {divisions} were both run, so work was done twice; "
                "remove the shard-*.json of one of them"
            )
        ((shards, done),) = found.items()
        missing = sorted(set(range(shards)) - done)
        if missing:
            listed = ", ".join(map(str, missing))
            raise UserError(
                f"{self.folder}: of {shards} shards, {listed} missing; "
                f"run {self._remedy} --num_shards {shards} --shard {missing[0]}"
            )
        return shards

    def _path(self, block: Block) -> Path:
        return self.folder / f"{block.name}.jsonl"

    def _marker(self, shard: int, shards: int) -> Path:
        return self.folder / f"shard-{shard}-of-{shards}.json"
