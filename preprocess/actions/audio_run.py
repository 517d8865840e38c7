"""A resumable run over the audio of a downstream's manifests, by one process, several or shards.

The work is cut into blocks. A finished block is a file that appears whole or not at all, so a
killed run resumes where it was, and it does not matter which process computed a block.
``plan.json`` says which run the blocks belong to. When all blocks exist, they become one file for
each split.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.devices import Ranks, on_main, wait_for_all
from pipeline.errors import UserError
from pipeline.files import holding, read_json, sha256
from pipeline.rows import SPLITS
from pipeline.runs import progress_bar
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.actions.stored_blocks import Line, StoredBlocks
from preprocess.actions.stream import Block, Encoded, Encoder, cut_blocks, file_rates
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import report_bad_audio

Result = TypeVar("Result")


class Shard(NamedTuple):
    """One job of a scheduler's array: ``index`` of ``count``, from 0."""

    index: int
    count: int


class Progress:
    """A bar on a terminal while blocks are computed, and a summary: hours of audio, times real
    time.
    """

    def __init__(self, title: str, files: int) -> None:
        self._bar = progress_bar(total=files, desc=title, unit="file")
        self._start = time.monotonic()
        self._seconds = 0.0

    def __call__(self, blocks: Iterable[Encoded[Result]]) -> Iterator[Encoded[Result]]:
        """Yield the blocks and count them."""
        with self._bar:
            for block in blocks:
                self._seconds += block.seconds
                self._bar.set_postfix_str(self.summary(), refresh=False)
                self._bar.update(len(block.results))
                yield block

    def summary(self) -> str:
        """``0.42 h of audio, 35x real time``."""
        speed = self._seconds / max(time.monotonic() - self._start, 1e-9)
        return f"{self._seconds / 3600:.2f} h of audio, {speed:.0f}x real time"


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
        rates = file_rates(task.manifest)
        for split in SPLITS:
            root, entries = read_manifest(task.manifest / f"{split}.tsv")
            self._splits[split] = cut_blocks(split, root, distinct(entries), seconds, rates)
            self._rows[split] = len(entries)
        self._blocks = [block for blocks in self._splits.values() for block in blocks]
        self._plan = {
            **made_from,
            "batch_seconds": seconds,
            "manifest": {split: sha256(task.manifest / f"{split}.tsv") for split in SPLITS},
        }
        self._stored = StoredBlocks(folder / "blocks", self._blocks, self._plan, command)

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
            on_main(here, lambda: stack.enter_context(self._holding_all()))
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
        with contextlib.ExitStack() as stack:
            with holding(self.folder, wait=5):  # other shards hold it for a moment, too
                stack.enter_context(holding(lock))
            blocks = self._blocks[shard.index :: shard.count]
            self._stored.open(discard=False)
            self._say_if(self._stored.remove_changed(blocks))
            computed = self._compute(blocks)
            self.task.say(str(self._stored.tally(blocks)))
            self.task.say(f"{name} is done" if computed else f"{name} is done already")

    def merge_shards(self, skip_bad: bool) -> None:
        """Write the splits from all shards. Raises ``UserError`` where one has not finished."""
        with self._holding_all():
            if not self._is_done():
                self._stored.open(discard=False)
                self._write(skip_bad)

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
        if not all(path.exists() for path in (record, *map(self.output, SPLITS))):
            return False
        made = read_json(record, self._command)
        if made.get("plan") != self._plan or made.get("left_out"):
            return False
        if absent := sum(stamp is None for stamp in self._stored.stamps.values()):
            unsure = f"; {absent} of its audio files do not exist now, none was compared"
        elif "audio_files" not in made:
            unsure = "; remove it if audio files have changed"
        elif made["audio_files"] == self._stored.fingerprint():
            unsure = ", audio files included"
        else:
            self.task.say(f"{self.folder}: audio files have changed since, it is made again")
            return False
        self._stored.remove()  # of a run that ended between its record and this
        self.task.say(f"{self.folder} already exists, made from these manifests and models{unsure}")
        return True

    def _resume(self) -> None:
        """Remove the blocks of other runs and of other audio, and print how many are left."""
        self._stored.open(discard=True)
        self._say_if(self._stored.remove_changed(self._blocks))
        if stored := self._stored.count():
            total = len(self._blocks)
            self.task.say(f"resumes an earlier run: {stored} of {total} blocks done")

    def _say_if(self, text: str) -> None:
        if text:
            self.task.say(text)

    def _compute(self, blocks: Sequence[Block]) -> bool:
        """Compute those of ``blocks`` that are missing or hold bad audio (it may be repaired by
        now). Without any, no model is loaded and the answer is False.
        """
        blocks = [
            block
            for block in blocks
            if not self._stored.has(block) or any(line.bad for line in self._stored.read(block))
        ]
        if not blocks:
            return False
        encoder = self.encoder()
        progress = Progress(self.task.downstream, sum(len(block.entries) for block in blocks))
        for encoded in progress(encoder(blocks)):
            self.store(encoded)
        self.task.say(progress.summary())
        return True

    def _write(self, skip_bad: bool) -> None:
        """Write the splits from the finished blocks."""
        absent = [block.name for block in self._blocks if not self._stored.has(block)]
        if absent:
            raise UserError(
                f"{self.folder}/blocks: {len(absent)} of {len(self._blocks)} blocks are missing, "
                f"the first is {absent[0]}; run the shards that have not finished"
            )
        if changed := sum(map(self._stored.changed, self._blocks)):
            raise UserError(
                f"{self.folder}/blocks: {changed} audio files have changed since they were read; "
                f"run {self._command} again, or its shards"
            )
        bad: list[Line] = []
        good = dict.fromkeys(SPLITS, 0)
        for split, blocks in self._splits.items():
            for line in self._stored.lines(blocks):
                bad += [line] if line.bad else []
                good[split] += not line.bad
        tally = self._stored.tally(self._blocks)
        self.task.say(str(tally))
        reasons = {Path(line.path): line.bad for line in bad}
        report_bad_audio(reasons, self.folder / "bad_audio.txt", skip_bad)
        for split, blocks in self._splits.items():
            lines = (line for line in self._stored.lines(blocks) if not line.bad)
            self.write_split(self.output(split), lines, good[split])
            self.task.say(f"{split}: {good[split]} files of {self._rows[split]} utterances")
        self.task.say(f"read {self.task.manifest}, wrote {self.folder}")
        more = {"audio": tally.record(), "audio_files": self._stored.fingerprint()}
        left_out = [line.file for line in bad]
        self.task.save_run(self.folder, plan=self._plan, left_out=left_out, **more)
        if not bad:
            self._stored.remove()

    def store(self, encoded: Encoded[str]) -> None:
        """Write a finished block's file."""
        self._stored.write(encoded)
