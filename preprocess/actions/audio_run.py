"""A resumable run over the audio of a downstream's manifests, by one process, several or shards.

The work is cut into blocks. A finished block is a file that appears whole or not at all, so a
killed run resumes where it was, and it does not matter which process computed a block.
``plan.json`` says which run the blocks belong to. When all blocks exist, they become one file for
each split.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.files import holding, read_json, sha256, write_json, writing
from pipeline.ranks import Ranks, on_main, wait_for_all
from pipeline.rows import SPLITS
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.actions.stream import Block, Encoded, Encoder, cut_blocks
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import BadAudio, report_bad_audio

Result = TypeVar("Result")


class Shard(NamedTuple):
    """One job of a scheduler's array: ``index`` of ``count``, from 0."""

    index: int
    count: int


class Line(NamedTuple):
    """One distinct file of the manifest: what was computed, as text, or why there is nothing."""

    file: str
    path: str
    result: str | None
    bad: str | None


class Progress:
    """A bar on a terminal while blocks are computed, and a summary: hours of audio, times real
    time.
    """

    def __init__(self, title: str, files: int) -> None:
        self._bar = tqdm(
            total=files, desc=title, unit="file", disable=not sys.stderr.isatty(), mininterval=0.5
        )
        self._start = time.monotonic()
        self._seconds = 0.0
        self.notes: Counter[str] = Counter()

    def __call__(self, blocks: Iterable[Encoded[Result]]) -> Iterator[Encoded[Result]]:
        """Yield the blocks and count them."""
        with self._bar:
            for block in blocks:
                self._seconds += block.seconds
                self.notes += block.notes
                self._bar.set_postfix_str(self.summary(), refresh=False)
                self._bar.update(len(block.results))
                yield block

    def summary(self) -> str:
        """``0.42 h of audio, 35x real time``."""
        speed = self._seconds / max(time.monotonic() - self._start, 1e-9)
        return f"{self._seconds / 3600:.2f} h of audio, {speed:.0f}x real time"


class BlockStore:
    """The folder of one run's blocks. ``plan`` is all that the results depend on."""

    def __init__(self, folder: Path, plan: dict[str, Any], command: str) -> None:
        self.folder = folder
        self._plan = plan
        self._command = command  # that makes blocks

    def open(self, discard: bool) -> int:
        """Make the folder ready and return how many blocks it holds.

        Blocks of another plan are removed (``discard``) or raise ``UserError``: other shards may be
        at work on them.
        """
        path = self.folder / "plan.json"
        if path.exists() and read_json(path, self._command) != self._plan:
            if not discard:
                raise UserError(
                    f"{path}: the blocks there were made with other settings or another manifest; "
                    f"remove {self.folder} and run every shard again"
                )
            self.remove()
        if not path.exists():
            write_json(path, self._plan)
        return sum(1 for _ in self.folder.glob("*.jsonl"))

    def path(self, block: Block) -> Path:
        """The file of a block."""
        return self.folder / f"{block.name}.jsonl"

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks without a file, and those with bad audio (it may be repaired by now)."""
        return [
            block
            for block in blocks
            if not self.path(block).exists() or any(line.bad for line in self.read(block))
        ]

    def write(self, encoded: Encoded[str]) -> None:
        """Store a finished block."""
        block = encoded.block
        with writing(self.path(block)) as handle:
            for entry, result in zip(block.entries, encoded.results, strict=True):
                bad = isinstance(result, BadAudio)
                outcome = (None, str(result)) if bad else (result, None)
                line = Line(entry.file, str(block.root / entry.path), *outcome)
                handle.write(json.dumps(line) + "\n")

    def read(self, block: Block) -> list[Line]:
        """Read a finished block. Raises ``UserError`` for one that is not of this manifest."""
        path = self.path(block)
        try:
            lines = [Line(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        except (ValueError, TypeError):
            lines = []
        if [line.file for line in lines] != [entry.file for entry in block.entries]:
            raise UserError(f"{path}: not what {self._command} wrote; remove it and run that again")
        return lines

    def remove(self) -> None:
        """Remove the folder, where there is one."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


class AudioRun:
    """One task's audio, from its manifests to ``folder``. The results depend on the audio and on
    ``made_from``. ``command`` is what a user types to compute them.

    A subclass says what is computed, and how the splits are written.
    """

    def __init__(
        self, task: Preprocessor, folder: Path, made_from: dict[str, Any], command: str
    ) -> None:
        self.task = task
        self.folder = folder
        self._command = command
        self._splits: dict[str, list[Block]] = {}
        self._rows: dict[str, int] = {}
        seconds = task.config.fairseqrc.batch_seconds
        for split in SPLITS:
            root, entries = read_manifest(task.manifest / f"{split}.tsv")
            self._splits[split] = cut_blocks(split, root, distinct(entries), seconds)
            self._rows[split] = len(entries)
        self._blocks = [block for blocks in self._splits.values() for block in blocks]
        self._plan = {
            **made_from,
            "batch_seconds": seconds,
            "manifest": {split: sha256(task.manifest / f"{split}.tsv") for split in SPLITS},
        }
        self._store = BlockStore(folder / "blocks", self._plan, command)

    def encoder(self) -> Encoder[str]:
        """What maps audio to the text that is stored of it. Loads models, so only when needed."""
        raise NotImplementedError

    def output(self, split: str) -> Path:
        """The split's file."""
        raise NotImplementedError

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        """Write the ``count`` files of good audio in ``lines``, atomically."""
        raise NotImplementedError

    def run(self, here: Ranks, skip_bad: bool) -> None:
        """Compute this rank's blocks; the main rank then writes the splits.

        Raises ``UserError`` for bad audio unless ``skip_bad`` (the bad files are listed beside the
        output, what is good is kept for the next call), and where another run writes the output.
        """
        with contextlib.ExitStack() as stack:
            on_main(here, lambda: stack.enter_context(holding(self.folder)))
            if on_main(here, self._is_done):
                return
            on_main(here, self._resume)
            self._compute(self._blocks[here.rank :: here.world])
            wait_for_all(here)
            on_main(here, lambda: self._write(skip_bad))

    def run_shard(self, shard: Shard) -> None:
        """Compute one shard's blocks; ``merge_shards`` follows the last."""
        name = f"shard {shard.index} of {shard.count}"
        lock = self.folder / f"shard-{shard.index}-of-{shard.count}"
        with holding(self.folder, shared=True), holding(lock):
            self._store.open(discard=False)
            computed = self._compute(self._blocks[shard.index :: shard.count])
            self.task.say(f"{name} is done" if computed else f"{name} is done already")

    def merge_shards(self, skip_bad: bool) -> None:
        """Write the splits from all shards. Raises ``UserError`` where one has not finished."""
        with holding(self.folder):
            if not self._is_done():
                self._store.open(discard=False)
                self._write(skip_bad)

    def _is_done(self) -> bool:
        """Whether the splits exist, from the same plan, with no file left out (it may be repaired
        by now). If so, prints it and removes what an earlier run left behind.
        """
        record = self.folder / "provenance.json"
        if not all(path.exists() for path in (record, *map(self.output, SPLITS))):
            return False
        made = read_json(record, self._command)
        done = made.get("plan") == self._plan and not made.get("left_out")
        if done:
            self._store.remove()  # of a run that ended between its record and this
            self.task.say(
                f"{self.folder} already exists, made from these manifests and models; remove it if "
                "audio files have changed"
            )
        return done

    def _resume(self) -> None:
        """Open the store, without the blocks of other runs."""
        stored = self._store.open(discard=True)
        if stored:
            total = len(self._blocks)
            self.task.say(f"resumes an earlier run: {stored} of {total} blocks done")

    def _compute(self, blocks: Sequence[Block]) -> bool:
        """Compute the missing ones of ``blocks``. With none missing, no model is loaded and the
        answer is False.
        """
        blocks = self._store.missing(blocks)
        if not blocks:
            return False
        encoder = self.encoder()
        progress = Progress(self.task.downstream, sum(len(block.entries) for block in blocks))
        for encoded in progress(encoder(blocks)):
            self._store.write(encoded)
        self.task.say(progress.summary())
        for note, count in progress.notes.items():
            self.task.say(f"note: {count} files: {note}")
        return True

    def _write(self, skip_bad: bool) -> None:
        """Write the splits from the finished blocks."""
        absent = [block.name for block in self._blocks if not self._store.path(block).exists()]
        if absent:
            raise UserError(
                f"{self._store.folder}: {len(absent)} of {len(self._blocks)} blocks are missing, "
                f"the first is {absent[0]}; run the shards that have not finished"
            )
        bad: list[Line] = []
        good = dict.fromkeys(SPLITS, 0)
        for split, blocks in self._splits.items():
            for line in self._lines(blocks):
                bad += [line] if line.bad else []
                good[split] += not line.bad
        reasons = {Path(line.path): line.bad for line in bad}
        report_bad_audio(reasons, self.folder / "bad_audio.txt", skip_bad)
        for split, blocks in self._splits.items():
            lines = (line for line in self._lines(blocks) if not line.bad)
            self.write_split(self.output(split), lines, good[split])
            self.task.say(f"{split}: {good[split]} files of {self._rows[split]} utterances")
        self.task.say(f"read {self.task.manifest}, wrote {self.folder}")
        left_out = [line.file for line in bad]
        self.task.save_run(self.folder, plan=self._plan, left_out=left_out)
        if not bad:
            self._store.remove()

    def _lines(self, blocks: Sequence[Block]) -> Iterator[Line]:
        for block in blocks:
            yield from self._store.read(block)
