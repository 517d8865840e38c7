"""A resumable run over the audio of a downstream's manifests, by one process, several or shards.

A finished block is a file that appears whole or not at all, so a killed run resumes, whichever
process computed a block. ``plan.json`` says which run the blocks belong to. From all blocks, one
file a split is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.devices import Ranks, on_main, wait_for_all
from pipeline.errors import UserError
from pipeline.files import holding, read_json, sha256, write_json, writing
from pipeline.rows import SPLITS
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.actions.stream import Block, Encoded, Encoder, cut_blocks, file_rates, with_progress
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import BadAudio, Tally


class Shard(NamedTuple):
    """One job of a scheduler's array: ``index`` of ``count``, from 0."""

    index: int
    count: int


class Line(NamedTuple):
    """A distinct file of the manifest: what was computed, as text, or why not; its notes."""

    file: str
    path: str
    result: str | None
    bad: str | None
    notes: Sequence[str] = ()
    stamp: list[int] | None = None  # None: stored by an earlier version

    @property
    def outcome(self) -> Sequence[str] | BadAudio:
        """What a ``Tally`` counts."""
        return BadAudio(self.bad) if self.bad else self.notes


class AudioRun:
    """One task's audio, from its manifests to ``folder``: results depend on the audio and
    ``made_from``; ``command`` is what a user types. A subclass says what is computed, and writes
    the splits.
    """

    suffix = ""

    def __init__(
        self, task: Preprocessor, folder: Path, made_from: dict[str, Any], command: str
    ) -> None:
        self.task, self.folder, self._command = task, folder, command
        self._stored = folder / "blocks"
        self._splits: dict[str, list[Block]] = {}
        self._rows: dict[str, int] = {}
        seconds = task.config.fairseqrc.batch_seconds
        rates = file_rates(task.manifest)
        manifests = {split: task.manifest / f"{split}.tsv" for split in SPLITS}
        for split, path in manifests.items():
            root, entries = read_manifest(path)
            self._splits[split] = cut_blocks(split, root, distinct(entries), seconds, rates)
            self._rows[split] = len(entries)
        self._blocks = [block for blocks in self._splits.values() for block in blocks]
        hashes = {split: sha256(path) for split, path in manifests.items()}
        self._plan = {**made_from, "batch_seconds": seconds, "manifest": hashes}
        # of each audio file, before any is read
        paths = {str(block.root / e.path) for block in self._blocks for e in block.entries}
        self._stamps = {path: _stamp(path) for path in paths}
        stamps = json.dumps(self._stamps, sort_keys=True).encode()
        self._audio_files = hashlib.sha256(stamps).hexdigest()

    def encoder(self) -> Encoder[str]:
        """What maps audio to the text that is stored of it. Loads models, so only when needed."""
        raise NotImplementedError

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        """Write the ``count`` files of good audio in ``lines``, atomically."""
        raise NotImplementedError

    def run(self, here: Ranks, skip_bad: bool) -> None:
        """Compute this rank's blocks; the main rank then writes the splits. Raises ``UserError``
        where another run writes them, and for bad audio unless ``skip_bad``; what is good is kept.
        """
        with contextlib.ExitStack() as stack:
            on_main(here, lambda: stack.enter_context(self._holding_all()))
            if on_main(here, self._is_done):
                return
            left = on_main(here, self._resume)
            self._compute([self._blocks[index] for index in left[here.rank :: here.world]])
            wait_for_all(here)
            on_main(here, lambda: self._write(skip_bad))

    def run_shard(self, shard: Shard) -> None:
        """Compute one shard's blocks; ``merge_shards`` follows the last."""
        lock = self.folder / f"shard-{shard.index}-of-{shard.count}"
        with contextlib.ExitStack() as stack:
            with holding(self.folder, wait=5):  # other shards hold it for a moment, too
                stack.enter_context(holding(lock))
            self._open(discard=False)
            blocks = self._blocks[shard.index :: shard.count]
            left = self._left(blocks)
            self._compute([blocks[index] for index in left])
            tally = Tally()
            for line in self._lines(blocks):
                tally.add(line.outcome)
            self.task.say(str(tally))
            done = "is done" if left else "is done already"
            self.task.say(f"shard {shard.index} of {shard.count} {done}")

    def merge_shards(self, skip_bad: bool) -> None:
        """Write the splits from all shards. Raises ``UserError`` where one has not finished."""
        with self._holding_all():
            if not self._is_done():
                self._open(discard=False)
                self._write(skip_bad)

    def _output(self, split: str) -> Path:
        return self.folder / f"{split}{self.suffix}"

    @contextlib.contextmanager
    def _holding_all(self) -> Iterator[None]:
        """Hold the output; raises ``UserError`` while a shard is being computed."""
        with holding(self.folder):
            for lock in self.folder.glob(".shard-*.lock"):
                with holding(self.folder / lock.name[1:].removesuffix(".lock")):
                    pass
            yield

    def _is_done(self) -> bool:
        """Whether the splits exist, from the same plan and audio files, with no file left out (it
        may be repaired by now). If so, prints it and removes what an earlier run left behind.
        """
        record = self.folder / "provenance.json"
        if not all(path.exists() for path in (record, *map(self._output, SPLITS))):
            return False
        made = read_json(record, self._command)
        if made.get("plan") != self._plan or made.get("left_out"):
            return False
        unsure = ", audio files included"
        if absent := sum(stamp is None for stamp in self._stamps.values()):
            unsure = f"; {absent} of its audio files do not exist now, none was compared"
        elif "audio_files" not in made:
            unsure = "; remove it if audio files have changed"
        elif made["audio_files"] != self._audio_files:
            self.task.say(f"{self.folder}: audio files have changed since, it is made again")
            return False
        shutil.rmtree(self._stored, ignore_errors=True)  # of a run that ended before removing it
        self.task.say(f"{self.folder} already exists, made from these manifests and models{unsure}")
        return True

    def _open(self, discard: bool) -> None:
        """Make the blocks' folder ready; another plan's are removed, or an error."""
        path = self._stored / "plan.json"
        plan = {**self._plan, "blocks": [len(block.entries) for block in self._blocks]}
        if path.exists() and read_json(path, self._command) != plan:
            if not discard:
                what = f"{path}: the blocks there were made with other settings or another manifest"
                raise UserError(f"{what}; remove {self._stored} and run every shard again")
            shutil.rmtree(self._stored)
        if not path.exists():
            write_json(path, plan)

    def _resume(self) -> list[int]:
        """Remove the blocks of other runs. Returns which blocks are left to compute."""
        self._open(discard=True)
        is_first = next(self._stored.glob("*.jsonl"), None) is None
        left, total = self._left(self._blocks), len(self._blocks)
        if not is_first:
            self.task.say(f"resumes an earlier run: {total - len(left)} of {total} blocks done")
        return left

    def _left(self, blocks: Sequence[Block]) -> list[int]:
        """Which of ``blocks`` are missing, or hold audio that has changed or was bad."""
        left, changed = [], []
        for index, block in enumerate(blocks):
            lines = self._read(block) if self._path(block).exists() else []
            if stale := sum(map(self._has_changed, lines)):
                changed.append(stale)
            if stale or not lines or any(line.bad for line in lines):
                left.append(index)
        if changed:
            what = f"{sum(changed)} audio files have changed since they were read"
            self.task.say(f"{what}: their {len(changed)} blocks are computed again")
        return left

    def _has_changed(self, line: Line) -> bool:
        """Whether the audio file is another one than the one that was read."""
        return self._stamps[line.path] not in (None, line.stamp)

    def _compute(self, blocks: Sequence[Block]) -> None:
        """Compute and store ``blocks``. Without any, no model is loaded."""
        if blocks:
            files = sum(len(block.entries) for block in blocks)
            encoded = self.encoder()(blocks)
            for block in with_progress(encoded, self.task.downstream, files, self.task.say):
                self.store(block)

    def store(self, encoded: Encoded[str]) -> None:
        """Write a finished block's file."""
        block = encoded.block
        with writing(self._path(block)) as handle:
            for entry, result, notes in zip(
                block.entries, encoded.results, encoded.notes, strict=True
            ):
                path = str(block.root / entry.path)
                outcome = (None, str(result)) if isinstance(result, BadAudio) else (result, None)
                line = Line(entry.file, path, *outcome, notes, self._stamps[path])
                handle.write(json.dumps(line) + "\n")

    def _path(self, block: Block) -> Path:
        return self._stored / f"{block.name}.jsonl"

    def _read(self, block: Block) -> list[Line]:
        """Read a finished block. Raises ``UserError`` for one that is not of this manifest."""
        path = self._path(block)
        try:
            lines = [Line(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        except (ValueError, TypeError):
            lines = []
        if [line.file for line in lines] != [entry.file for entry in block.entries]:
            raise UserError(f"{path}: not what {self._command} wrote; remove it and run that again")
        return lines

    def _lines(self, blocks: Sequence[Block]) -> Iterator[Line]:
        return (line for block in blocks for line in self._read(block))

    def _write(self, skip_bad: bool) -> None:
        """Write the splits from the finished blocks."""
        absent = [block.name for block in self._blocks if not self._path(block).exists()]
        if absent:
            what = f"{self._stored}: {len(absent)} of {len(self._blocks)} blocks are missing"
            raise UserError(f"{what}, the first is {absent[0]}; run the shards that have not ended")
        tally, changed, left_out, good = Tally(), 0, [], dict.fromkeys(SPLITS, 0)
        for split, blocks in self._splits.items():
            for line in self._lines(blocks):
                tally.add(line.outcome, Path(line.path))
                changed += self._has_changed(line)
                left_out += [line.file] if line.bad else []
                good[split] += not line.bad
        if changed:
            what = f"{self._stored}: {changed} audio files have changed since they were read"
            raise UserError(f"{what}; run {self._command} again, or its shards")
        tally.report(self.folder / "bad_audio.txt", skip_bad, self.task.say)
        for split, blocks in self._splits.items():
            lines = (line for line in self._lines(blocks) if not line.bad)
            self.write_split(self._output(split), lines, good[split])
            self.task.say(f"{split}: {good[split]} files of {self._rows[split]} utterances")
        self.task.say(f"read {self.task.manifest}, wrote {self.folder}")
        more = {"audio": tally.record(), "audio_files": self._audio_files}
        self.task.save_run(self.folder, plan=self._plan, left_out=left_out, **more)
        if not left_out:
            shutil.rmtree(self._stored)


def _stamp(path: str) -> list[int] | None:
    """Size and time; None: it does not exist."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
