"""Audio of a downstream's manifests -> units, by one process, several ranks, or shards.

Every block of the work is stored as soon as it is finished, so a killed run goes on where it was,
and who computed a block does not matter. When all are there, they become
``<unit_model>/quantized/{train,valid,test}``: ``file|units``, a line a distinct file, runs kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, writing
from pipeline.locks import holding
from pipeline.ranks import Ranks, on_main, wait_for_all
from pipeline.rows import SPLITS
from preprocess.manifest import distinct, read_manifest
from preprocess.preprocessor import Preprocessor
from preprocess.progress import Progress
from preprocess.speech2unit.audio import report_bad_audio
from preprocess.speech2unit.block_store import BlockStore, Line
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from preprocess.speech2unit.stream import Block, Encoder, cut_blocks
from preprocess.speech2unit.units import written


class Shard(NamedTuple):
    """One job of a scheduler's array: ``index`` of ``count``, from 0."""

    index: int
    count: int


def quantize(task: Preprocessor, here: Ranks, skip_bad: bool) -> None:
    """Compute this rank's blocks; the main rank then writes the splits.

    Raises ``UserError`` for bad audio (its list lies beside the output, what is good is kept for
    the next call) unless ``skip_bad``, and for another run at work on the same output.
    """
    run = _Run(task)
    with contextlib.ExitStack() as stack:
        on_main(here, lambda: stack.enter_context(holding(run.lock)))
        if on_main(here, run.is_done):
            return
        on_main(here, run.go_on)
        run.compute(run.blocks[here.rank :: here.world])
        wait_for_all(here)
        on_main(here, lambda: run.write(skip_bad))


def quantize_shard(task: Preprocessor, shard: Shard) -> None:
    """Compute one shard's blocks and note that it is done; ``merge_shards`` follows the last."""
    run = _Run(task)
    with (
        holding(run.lock, shared=True),
        holding(task.quantized / f".shard-{shard.index}-of-{shard.count}.lock"),
    ):
        run.store.open(discard=False)
        if run.store.shard_is_finished(*shard):
            task.say(f"shard {shard.index} of {shard.count} is done already")
            return
        run.compute(run.blocks[shard.index :: shard.count])
        run.store.finish_shard(*shard)
        task.say(f"shard {shard.index} of {shard.count} is done")


def merge_shards(task: Preprocessor, skip_bad: bool) -> None:
    """Write the splits from all shards. Raises ``UserError`` for a missing or a double one."""
    run = _Run(task)
    with holding(run.lock):
        if run.is_done():
            return
        run.store.open(discard=False)
        shards = run.store.check_shards()
        run.write(skip_bad)
        task.say(f"merged {shards} shards")


class _Run:
    def __init__(self, task: Preprocessor) -> None:
        self._task = task
        self.lock = task.quantized / ".lock"
        self._splits: dict[str, list[Block]] = {}
        self._rows: dict[str, int] = {}
        seconds = task.config.fairseqrc.batch_seconds
        for split in SPLITS:
            root, entries = read_manifest(task.manifest / f"{split}.tsv")
            self._splits[split] = cut_blocks(split, root, distinct(entries), seconds)
            self._rows[split] = len(entries)
        self.blocks = [block for blocks in self._splits.values() for block in blocks]
        self._plan = {
            **task.unit_model_record(),
            "batch_seconds": seconds,
            "manifest": {split: sha256(task.manifest / f"{split}.tsv") for split in SPLITS},
        }
        self.store = BlockStore(
            task.quantized / "blocks",
            self._plan,
            f"preprocess/runner.py --downstream {task.downstream} --action quantized",
        )

    def is_done(self) -> bool:
        """Whether the splits are there, from the same plan, and no file was left out of them (it
        may be repaired by now); says so.
        """
        record = self._task.quantized / "provenance.json"
        if not all(path.exists() for path in (record, *map(self._output, SPLITS))):
            return False
        made = read_json(record, "preprocess/runner.py --action quantized")
        done = made.get("plan") == self._plan and not made["left_out"]
        if done:
            folder = self._task.quantized
            self._task.say(f"{folder} is there already, made from the same audio and models")
        return done

    def go_on(self) -> None:
        """Open the store, without the blocks of other runs."""
        there = self.store.open(discard=True)
        if there:
            every = len(self.blocks)
            self._task.say(f"going on after an earlier run: {there} of {every} blocks done")

    def compute(self, blocks: Sequence[Block]) -> None:
        """Compute what is missing of ``blocks``; with nothing missing no model is loaded."""
        blocks = self.store.missing(blocks)
        if not blocks:
            return
        task = self._task
        centres = load_kmeans(task.km_path)
        reader, device = task.feature_reader()
        if centres.shape[1] != reader.dim:
            raise UserError(
                f"{task.km_path}: its centres have {centres.shape[1]} numbers, a feature frame has "
                f"{reader.dim}; k-means and features do not belong together"
            )
        task.say(f"{len(centres)} clusters of {task.km_path}")
        kmeans = KMeans(centres, device)
        encoder = Encoder(
            reader,
            lambda features: written(kmeans(features)),
            device,
            task.config.fairseqrc.batch_seconds,
        )
        progress = Progress(task.downstream, sum(len(block.entries) for block in blocks))
        for encoded in progress(encoder(blocks)):
            self.store.write(encoded)
        task.say(progress.summary())
        for note, count in progress.notes.items():
            task.say(f"note: {count} files: {note}")

    def write(self, skip_bad: bool) -> None:
        """Write the splits from the finished blocks."""
        task = self._task
        absent = [block.name for block in self.blocks if not self.store.has(block)]
        if absent:
            raise UserError(
                f"{self.store.folder}: block {absent[0]} is missing; run that shard again"
            )
        bad = [line for line in self.store.lines(self.blocks) if line.bad]
        reasons = {Path(line.path): line.bad for line in bad}
        report_bad_audio(reasons, task.quantized / "bad_audio.txt", skip_bad)
        for split, blocks in self._splits.items():
            count = 0
            with writing(self._output(split)) as handle:
                for line in self.store.lines(blocks):
                    if line.units is not None:
                        handle.write(_text(line))
                        count += 1
            task.say(f"{split}: {count} files of {self._rows[split]} utterances")
        task.say(f"read {task.manifest}, wrote {task.quantized}")
        task.save_run(task.quantized, plan=self._plan, left_out=[line.file for line in bad])
        if not bad:
            self.store.remove()

    def _output(self, split: str) -> Path:
        return self._task.quantized / split


def _text(line: Line) -> str:
    return f"{line.file}|{line.units}\n"
