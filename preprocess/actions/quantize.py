"""Audio of a downstream's manifests -> ``<unit_model>/quantized/{train,valid,test}``:
``file|units``, a line a distinct file, runs kept.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.files import holding, read_json, sha256, writing
from pipeline.ranks import Ranks, on_main, wait_for_all
from pipeline.rows import SPLITS
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import report_bad_audio
from preprocess.speech2unit.block_store import BlockStore, Line
from preprocess.speech2unit.features import written
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from preprocess.speech2unit.stream import Block, Encoded, Encoder, cut_blocks

# How far a run over audio has come, in files, hours of audio, and times real time.


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


# A run over the audio of a downstream's manifests, by one process, several ranks, or shards.
# Every block of the work is stored as soon as it is finished, so a killed run goes on where it
# was, and who computed a block does not matter. When all are there, they become a file for each
# split. A subclass says what is computed and how the splits are written.


class Shard(NamedTuple):
    """One job of a scheduler's array: ``index`` of ``count``, from 0."""

    index: int
    count: int


class AudioRun:
    """One task's audio, from its manifests to ``folder``. ``made_from`` is what the results depend
    on beside the audio, ``command`` what a user types to compute them.
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
        """What maps audio to the text that is stored of it. Loads models; called when needed."""
        raise NotImplementedError

    def output(self, split: str) -> Path:
        """The split's file."""
        raise NotImplementedError

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        """Write the ``count`` files of good audio in ``lines``, atomically."""
        raise NotImplementedError

    def run(self, here: Ranks, skip_bad: bool) -> None:
        """Compute this rank's blocks; the main rank then writes the splits.

        Raises ``UserError`` for bad audio (its list lies beside the output, what is good is kept
        for the next call) unless ``skip_bad``, and for another run at work on the same output.
        """
        with contextlib.ExitStack() as stack:
            on_main(here, lambda: stack.enter_context(self._holding_all()))
            if on_main(here, self._is_done):
                return
            on_main(here, self._go_on)
            self._compute(self._blocks[here.rank :: here.world])
            wait_for_all(here)
            on_main(here, lambda: self._write(skip_bad))

    def run_shard(self, shard: Shard) -> None:
        """Compute one shard and note that it is done; ``merge_shards`` follows the last."""
        own = self.folder / f"shard-{shard.index}-of-{shard.count}"
        with contextlib.ExitStack() as stack:
            with holding(self.folder, wait=5):  # other shards hold it for a moment, too
                stack.enter_context(holding(own))
            self._store.open(discard=False)
            blocks = self._blocks[shard.index :: shard.count]
            if self._store.shard_is_finished(*shard) and not self._store.missing(blocks):
                self.task.say(f"shard {shard.index} of {shard.count} is done already")
                return
            self._compute(blocks)
            self._store.finish_shard(*shard)
            self.task.say(f"shard {shard.index} of {shard.count} is done")

    def merge_shards(self, skip_bad: bool) -> None:
        """Write the splits from all shards. Raises ``UserError`` for a missing or a double one."""
        with self._holding_all():
            if self._is_done():
                return
            self._store.open(discard=False)
            shards = self._store.check_shards()
            self._write(skip_bad)
            self.task.say(f"merged {shards} shards")

    @contextlib.contextmanager
    def _holding_all(self) -> Iterator[None]:
        """Hold the output; raises ``UserError`` while a shard is being computed."""
        with holding(self.folder):
            for lock in self.folder.glob(".shard-*.lock"):
                with holding(self.folder / lock.name[1:].removesuffix(".lock")):
                    pass
            yield

    def _is_done(self) -> bool:
        """Whether the splits are there, from the same plan, and no file was left out of them (it
        may be repaired by now); says so, and takes away what is left of the way there.
        """
        record = self.folder / "provenance.json"
        if not all(path.exists() for path in (record, *map(self.output, SPLITS))):
            return False
        made = read_json(record, self._command)
        done = made.get("plan") == self._plan and not made.get("left_out")
        if done:
            self._store.remove()  # what a run left that ended between its record and this
            self.task.say(
                f"{self.folder} is there already, made from these manifests and models; remove it "
                "where audio was changed under its name"
            )
        return done

    def _go_on(self) -> None:
        """Open the store, without the blocks of other runs."""
        there = self._store.open(discard=True)
        if there:
            every = len(self._blocks)
            self.task.say(f"going on after an earlier run: {there} of {every} blocks done")

    def _compute(self, blocks: Sequence[Block]) -> None:
        """Compute what is missing of ``blocks``; with nothing missing no model is loaded."""
        blocks = self._store.missing(blocks)
        if not blocks:
            return
        encoder = self.encoder()
        progress = Progress(self.task.downstream, sum(len(block.entries) for block in blocks))
        for encoded in progress(encoder(blocks)):
            self._store.write(encoded)
        self.task.say(progress.summary())
        for note, count in progress.notes.items():
            self.task.say(f"note: {count} files: {note}")

    def _write(self, skip_bad: bool) -> None:
        """Write the splits from the finished blocks."""
        absent = [block.name for block in self._blocks if not self._store.has(block)]
        if absent:
            raise UserError(
                f"{self._store.folder}: block {absent[0]} is missing; run that shard again"
            )
        bad = {
            split: [line for line in self._store.lines(blocks) if line.bad]
            for split, blocks in self._splits.items()
        }
        every_bad = [line for lines in bad.values() for line in lines]
        reasons = {Path(line.path): line.bad for line in every_bad}
        report_bad_audio(reasons, self.folder / "bad_audio.txt", skip_bad)
        for split, blocks in self._splits.items():
            good = (line for line in self._store.lines(blocks) if not line.bad)
            count = sum(len(block.entries) for block in blocks) - len(bad[split])
            self.write_split(self.output(split), good, count)
            self.task.say(f"{split}: {count} files of {self._rows[split]} utterances")
        self.task.say(f"read {self.task.manifest}, wrote {self.folder}")
        left_out = [line.file for line in every_bad]
        self.task.save_run(self.folder, plan=self._plan, left_out=left_out)
        if not every_bad:
            self._store.remove()


def quantize(task: Preprocessor, here: Ranks, skip_bad: bool) -> None:
    """Compute this rank's part, and write the splits: ``AudioRun.run``."""
    _Quantizing(task).run(here, skip_bad)


def quantize_shard(task: Preprocessor, shard: Shard) -> None:
    """Compute one shard: ``AudioRun.run_shard``."""
    _Quantizing(task).run_shard(shard)


def merge_shards(task: Preprocessor, skip_bad: bool) -> None:
    """Write the splits from all shards: ``AudioRun.merge_shards``."""
    _Quantizing(task).merge_shards(skip_bad)


class _Quantizing(AudioRun):
    def __init__(self, task: Preprocessor) -> None:
        command = f"preprocess/runner.py --downstream {task.downstream} --action quantized"
        super().__init__(task, task.quantized, task.unit_model_record(), command)

    def encoder(self) -> Encoder[str]:
        task = self.task
        centres = load_kmeans(task.km_path)
        reader, device = task.feature_reader()
        if centres.shape[1] != reader.dim:
            raise UserError(
                f"{task.km_path}: its centres have {centres.shape[1]} numbers, a feature frame has "
                f"{reader.dim}; k-means and features do not belong together"
            )
        more = ""
        if task.km_ships:
            more = ", which ships for a few commands; learn_kmeans makes a better one"
        task.say(f"{len(centres)} clusters of {task.km_path}{more}")
        kmeans = KMeans(centres, device)
        seconds = task.config.fairseqrc.batch_seconds
        return Encoder(reader, lambda features: written(kmeans(features)), device, seconds)

    def output(self, split: str) -> Path:
        return self.folder / split

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        with writing(path) as handle:
            for line in lines:
                handle.write(f"{line.file}|{line.result}\n")
