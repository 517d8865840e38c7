"""Learning the k-means of a unit model on the train splits of the tasks that share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import save_config
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.runs import provenance
from preprocess.actions.manifest import Entry, distinct, read_manifest
from preprocess.actions.quantize import Progress
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import BadAudio, report_bad_audio
from preprocess.speech2unit.features import SAMPLE_RATE
from preprocess.speech2unit.kmeans import fit_kmeans, load_kmeans, save_kmeans
from preprocess.speech2unit.stream import Encoder, cut_blocks


def learn_kmeans(preprocessors: Sequence[Preprocessor]) -> None:
    """Fit k-means to frames of the train manifests and write the first task's ``km_path``, an
    ``.npz``. One that is there stays: units, and the unit LM, belong to it. One that ships with the
    repository gives way to the new one, which knows the corpus better.

    The settings are the first task's. Raises ``UserError`` where tasks differ in unit model or
    features, and for a speech model whose k-means comes with it.
    """
    first = preprocessors[0]
    settings, task = first.config.fairseqrc, first.config.taskrc
    for other in preprocessors[1:]:
        if other.config.fairseqrc != settings or other.config.taskrc.unit_model != task.unit_model:
            raise UserError(
                f"{first.downstream} and {other.downstream} differ in unit_model or fairseqrc; "
                "learn their k-means one --downstream at a time"
            )
    km_path = first.learned_km_path
    if settings.km_clusters is None:
        raise UserError("fairseqrc.km_clusters: empty; say how many units to learn")
    if first.km_path.is_file() and not first.km_ships:
        _keep(first.km_path, settings.km_clusters)
        return
    if first.ckpt_path is not None and first.km_path != km_path and not first.km_ships:
        raise UserError(
            f"{first.km_path}: not here, but {task.unit_model} comes with it (python "
            f"pretrained_models/download.py {task.unit_model} --only kmeans); to learn one of your "
            "own, give it a unit model of its own (--unit_model, --set fairseqrc.feature_type)"
        )
    if km_path.suffix != ".npz":
        raise UserError(f"fairseqrc.km_path={km_path}: learn_kmeans writes an .npz file; name one")
    manifests = [read_manifest(each.manifest / "train.tsv") for each in preprocessors]
    reader, device = first.feature_reader()
    seconds = settings.km_frames / reader.frame_rate
    chosen = _choose([distinct(entries) for _, entries in manifests], seconds, task.seed)
    blocks = []
    for each, (root, _), entries in zip(preprocessors, manifests, chosen, strict=True):
        blocks += cut_blocks(each.downstream, root, entries, settings.batch_seconds)
        print(f"{each.downstream}: {len(entries)} files of its train manifest")
    encoder = Encoder(
        reader, lambda features: features.cpu().numpy(), device, settings.batch_seconds
    )
    sample = np.empty((settings.km_frames, reader.dim), np.float32)  # (N, D)
    filled, bad = 0, {}
    progress = Progress("features", sum(map(len, chosen)))
    for block, results, *_ in progress(encoder(blocks)):
        for entry, result in zip(block.entries, results, strict=True):
            if isinstance(result, BadAudio):
                bad[block.root / entry.path] = str(result)
                continue
            frames = result[: len(sample) - filled]
            sample[filled : filled + len(frames)] = frames
            filled += len(frames)
    print(progress.summary())
    report_bad_audio(bad, km_path.with_suffix(".bad_audio.txt"), first.skip_bad)
    sample = sample[:filled]
    shape = settings.km_clusters, settings.km_starts, task.seed, settings.km_reassign
    save_kmeans(km_path, fit_kmeans(sample, *shape))
    save_config(first.config, km_path.with_suffix(".yaml"))
    write_json(km_path.with_suffix(".json"), provenance())
    print(f"wrote {km_path}: {settings.km_clusters} clusters of {len(sample)} frames")


def _keep(km_path: Path, clusters: int) -> None:
    """Say that it is there. Raises ``UserError`` where another number of clusters is asked for."""
    found = len(load_kmeans(km_path))
    if found != clusters:
        raise UserError(
            f"{km_path}: has {found} clusters, asked for are {clusters}; remove it, or name "
            "another with --set fairseqrc.km_path=FILE.npz"
        )
    print(f"{km_path} is there already: kept; remove it to learn it anew")


def _choose(pools: Sequence[Sequence[Entry]], seconds: float, seed: int) -> list[list[Entry]]:
    """Draw files from all pools together until they last ``seconds``; each pool's share, in its own
    order.
    """
    everything = [
        (pool, index) for pool, entries in enumerate(pools) for index in range(len(entries))
    ]
    drawn: set[tuple[int, int]] = set()
    missing = seconds * SAMPLE_RATE
    for position in np.random.default_rng(seed).permutation(len(everything)):
        if missing <= 0:
            break
        pool, index = everything[position]
        missing -= pools[pool][index].frames
        drawn.add((pool, index))
    return [
        [entry for index, entry in enumerate(entries) if (pool, index) in drawn]
        for pool, entries in enumerate(pools)
    ]
