"""Audio of a downstream's manifests -> ``<unit_model>/quantized/{train,valid,test}``:
``file|units``, a line a distinct file, runs kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import writing
from pipeline.ranks import Ranks
from preprocess.audio_run import AudioRun, Shard
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.block_store import Line
from preprocess.speech2unit.kmeans import KMeans, load_kmeans
from preprocess.speech2unit.stream import Encoder
from preprocess.speech2unit.units import written


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
