"""A resumable run over all audio of a downstream: in one process, in several, or in shards.

A finished block is a file that appears whole or not at all. So a killed run resumes, whichever
process computed a block. ``plan.json`` identifies the run that the blocks belong to. In the end,
all blocks are joined into one file per split.
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
from preprocess.actions.stream import AudioStream, Block, Encoded, cut_blocks, file_rates, with_bar
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import BadAudio, Tally


class Shard(NamedTuple):
    """One of ``count`` jobs of a scheduler's array; ``index`` counts from 0."""

    index: int
    count: int


class Line(NamedTuple):
    """One distinct piece of audio, with the result as text, or the reason why it is bad."""

    file: str  # the row's name in the manifest
    path: str  # of the audio file
    result: str | None
    bad: str | None
    notes: Sequence[str] = ()
    stamp: list[int] | None = None  # see ``_stamp``; None: stored by an earlier version

    @property
    def outcome(self) -> Sequence[str] | BadAudio:
        """The value that a ``Tally`` counts."""
        return BadAudio(self.bad) if self.bad else self.notes


class AudioRun:
    """Maps the audio in a preprocessor's manifests to results in ``folder``. A subclass computes
    the results and writes the splits. ``made_from``: everything that the results depend on, except
    the audio. ``command``: what a user types to start the run.
    """

    suffix = ""

    def __init__(
        self, preprocessor: Preprocessor, folder: Path, made_from: dict[str, Any], command: str
    ) -> None:
        self.preprocessor, self.folder, self._command = preprocessor, folder, command
        self._say = preprocessor.say
        self._stored = folder / "blocks"
        self._splits: dict[str, list[Block]] = {}
        self._rows: dict[str, int] = {}
        seconds = preprocessor.config.fairseqrc.batch_seconds
        rates = file_rates(preprocessor.manifest)
        manifests = {split: preprocessor.manifest / f"{split}.tsv" for split in SPLITS}
        for split, path in manifests.items():
            root, entries = read_manifest(path)
            self._splits[split] = cut_blocks(split, root, distinct(entries), seconds, rates)
            self._rows[split] = len(entries)
        self._blocks = [block for blocks in self._splits.values() for block in blocks]
        hashes = {split: sha256(path) for split, path in manifests.items()}
        self._plan = {**made_from, "batch_seconds": seconds, "manifest": hashes}
        paths = {str(block.root / e.path) for block in self._blocks for e in block.entries}
        self._stamps = {path: _stamp(path) for path in paths}  # taken before any audio is read
        stamps = json.dumps(self._stamps, sort_keys=True).encode()
        self._audio_files = hashlib.sha256(stamps).hexdigest()

    def stream(self) -> AudioStream[str]:
        """Return the stream from audio to result. It loads models, so call it only when needed."""
        raise NotImplementedError

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        """Write ``lines``, the results of ``count`` good files, atomically."""
        raise NotImplementedError

    def run(self, here: Ranks, skip_bad: bool) -> None:
        """Compute this rank's blocks; the main rank then writes the splits. Raises ``UserError``
        if another run is writing them, or for bad audio, unless ``skip_bad``. Good blocks are kept.
        """
        with contextlib.ExitStack() as stack:
            on_main(here, lambda: stack.enter_context(self._holding_all()))
            if on_main(here, self._is_done):
                return
            unfinished = on_main(here, self._resume)
            self._compute([self._blocks[index] for index in unfinished[here.rank :: here.world]])
            wait_for_all(here)
            on_main(here, lambda: self._write(skip_bad))

    def run_shard(self, shard: Shard) -> None:
        """Compute the blocks of one shard. ``merge_shards`` runs after the last shard."""
        lock = self.folder / f"shard-{shard.index}-of-{shard.count}"
        with contextlib.ExitStack() as stack:
            with holding(self.folder, wait=5):  # other shards also hold it, for a moment
                stack.enter_context(holding(lock))
            self._open(discard=False)
            blocks = self._blocks[shard.index :: shard.count]
            unfinished = self._unfinished(blocks)
            self._compute([blocks[index] for index in unfinished])
            tally = Tally()
            for line in self._lines(blocks):
                tally.add(line.outcome)
            self._say(str(tally))
            done = "is done" if unfinished else "is done already"
            self._say(f"shard {shard.index} of {shard.count} {done}")

    def merge_shards(self, skip_bad: bool) -> None:
        """Write the splits from all shards. Raises ``UserError`` if a shard has not finished."""
        with self._holding_all():
            if not self._is_done():
                self._open(discard=False)
                self._write(skip_bad)

    def _output(self, split: str) -> Path:
        return self.folder / f"{split}{self.suffix}"

    @contextlib.contextmanager
    def _holding_all(self) -> Iterator[None]:
        """Hold the output. Raises ``UserError`` while a shard is being computed."""
        with holding(self.folder):
            for lock in self.folder.glob(".shard-*.lock"):
                with holding(self.folder / lock.name[1:].removesuffix(".lock")):
                    pass
            yield

    def _is_done(self) -> bool:
        """Return whether the splits exist, made from the same plan and audio files. A run that left
        files out is not done: they may be repaired now. If it is done, say so and remove blocks.
        """
        provenance = self.folder / "provenance.json"
        if not all(path.exists() for path in (provenance, *map(self._output, SPLITS))):
            return False
        record = read_json(provenance, self._command)
        if record.get("plan") != self._plan or record.get("left_out"):
            return False
        note = ", audio files included"
        if missing := sum(stamp is None for stamp in self._stamps.values()):
            note = f"; audio files were not compared, {missing} of them no longer exist"
        elif "audio_files" not in record:
            note = "; remove it if audio files have changed"
        elif record["audio_files"] != self._audio_files:
            self._say(f"{self.folder}: audio files have changed; it is made again")
            return False
        shutil.rmtree(self._stored, ignore_errors=True)  # if a run was killed before removing it
        self._say(f"{self.folder} already exists, made from these manifests and models{note}")
        return True

    def _open(self, discard: bool) -> None:
        """Prepare the blocks' folder. If its blocks have another plan: ``discard`` or refuse."""
        path = self._stored / "plan.json"
        plan = {**self._plan, "blocks": [len(block.entries) for block in self._blocks]}
        if path.exists() and read_json(path, self._command) != plan:
            if not discard:
                what = f"{path}: these blocks were made with other settings or another manifest"
                raise UserError(f"{what}; remove {self._stored} and run every shard again")
            shutil.rmtree(self._stored)
        if not path.exists():
            write_json(path, plan)

    def _resume(self) -> list[int]:
        """Remove the blocks of other plans. Returns the indices of the blocks to compute."""
        self._open(discard=True)
        is_first = next(self._stored.glob("*.jsonl"), None) is None
        todo, total = self._unfinished(self._blocks), len(self._blocks)
        if not is_first:
            self._say(f"resumes an earlier run: {total - len(todo)} of {total} blocks done")
        return todo

    def _unfinished(self, blocks: Sequence[Block]) -> list[int]:
        """Return the indices of ``blocks`` that are missing, or whose audio changed or was bad."""
        unfinished, changed = [], []
        for index, block in enumerate(blocks):
            lines = self._read(block) if self._path(block).exists() else []
            if stale := sum(map(self._has_changed, lines)):
                changed.append(stale)
            if stale or not lines or any(line.bad for line in lines):
                unfinished.append(index)
        if changed:
            what = f"{sum(changed)} audio files have changed since they were read"
            self._say(f"{what}: their {len(changed)} blocks are computed again")
        return unfinished

    def _has_changed(self, line: Line) -> bool:
        """Return whether the audio file has changed since it was read."""
        return self._stamps[line.path] not in (None, line.stamp)

    def _compute(self, blocks: Sequence[Block]) -> None:
        """Compute and store ``blocks``. If there are none, load no model."""
        if blocks:
            files = sum(len(block.entries) for block in blocks)
            encoded, name = self.stream()(blocks), self.preprocessor.downstream
            for block in with_bar(encoded, name, files, self._say):
                self._store(block)

    def _store(self, encoded: Encoded[str]) -> None:
        """Write a finished block's file."""
        block = encoded.block
        rows = zip(block.entries, encoded.results, encoded.notes, strict=True)
        with writing(self._path(block)) as handle:
            for entry, result, notes in rows:
                path = str(block.root / entry.path)
                outcome = (None, str(result)) if isinstance(result, BadAudio) else (result, None)
                line = Line(entry.file, path, *outcome, notes, self._stamps[path])
                handle.write(json.dumps(line) + "\n")

    def _path(self, block: Block) -> Path:
        return self._stored / f"{block.name}.jsonl"

    def _read(self, block: Block) -> list[Line]:
        """Read a finished block. Raises ``UserError`` if it does not match the manifest."""
        path = self._path(block)
        try:
            lines = [Line(*json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        except (ValueError, TypeError):
            lines = []
        if [line.file for line in lines] != [entry.file for entry in block.entries]:
            raise UserError(f"{path}: not a block of {self._command}; remove it and run that again")
        return lines

    def _lines(self, blocks: Sequence[Block]) -> Iterator[Line]:
        return (line for block in blocks for line in self._read(block))

    def _write(self, skip_bad: bool) -> None:
        """Write the splits from the finished blocks."""
        missing = [block.name for block in self._blocks if not self._path(block).exists()]
        if missing:
            what = f"{self._stored}: {len(missing)} of {len(self._blocks)} blocks are missing"
            raise UserError(f"{what}, the first is {missing[0]}; run the unfinished shards")
        tally, changed, left_out, good = Tally(), 0, [], dict.fromkeys(SPLITS, 0)
        for split, blocks in self._splits.items():
            for line in self._lines(blocks):
                tally.add(line.outcome, Path(line.path))
                changed += self._has_changed(line)
                left_out += [line.file] if line.bad else []
                good[split] += not line.bad
        if changed:
            what = f"{self._stored}: {changed} audio files have changed since they were read"
            raise UserError(f"{what}; run {self._command} again, or all its shards")
        tally.report(self.folder / "bad_audio.txt", skip_bad, self._say)
        for split, blocks in self._splits.items():
            lines = (line for line in self._lines(blocks) if not line.bad)
            self.write_split(self._output(split), lines, good[split])
            self._say(f"{split}: {good[split]} files of {self._rows[split]} utterances")
        self._say(f"read {self.preprocessor.manifest}, wrote {self.folder}")
        more = {"audio": tally.record(), "audio_files": self._audio_files}
        self.preprocessor.save_run(self.folder, plan=self._plan, left_out=left_out, **more)
        if not left_out:
            shutil.rmtree(self._stored)


def _stamp(path: str) -> list[int] | None:
    """Return size and modification time of a file, or None if it does not exist."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
