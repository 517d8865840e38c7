"""Learn the k-means of a unit model, and map the audio of a downstream's manifests to units. These
are written to ``<unit_model>/quantized/{train,valid,test}``: one line ``file|units`` per distinct
piece of audio, repeated units not merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import save_config
from pipeline.errors import UserError
from pipeline.files import write_json, writing
from pipeline.runs import provenance
from preprocess.actions.audio_run import AudioRun, Line
from preprocess.actions.manifest import distinct, read_manifest
from preprocess.actions.stream import AudioStream, cut_blocks, file_rates, with_bar
from preprocess.preprocessor import Preprocessor
from preprocess.speech2unit.audio import BadAudio, Tally
from preprocess.speech2unit.features import units_as_text
from preprocess.speech2unit.kmeans import KMeans, fit_kmeans, load_kmeans, save_kmeans


def learn_kmeans(preprocessors: Sequence[Preprocessor]) -> None:
    """Fit k-means to frames of the train manifests and write it to the first preprocessor's
    ``learned_km_path``. An existing k-means is kept, because units and LM depend on it, except a
    shipped one, which fits this corpus less. Raises ``UserError`` if unit models or features differ
    or if the unit model has a checkpoint and a released k-means that is not downloaded.
    """
    first = preprocessors[0]
    settings, unit_model = first.config.fairseqrc, first.config.taskrc.unit_model
    for other in preprocessors[1:]:
        if other.config.fairseqrc != settings or other.config.taskrc.unit_model != unit_model:
            what = f"{first.downstream} and {other.downstream} differ in unit_model or fairseqrc"
            raise UserError(f"{what}; learn their k-means one --downstream at a time")
    km_path = first.learned_km_path
    if settings.km_clusters is None:
        raise UserError("fairseqrc.km_clusters: empty; set the number of units to learn")
    if first.km_path.is_file() and not first.km_ships:
        stored = len(load_kmeans(first.km_path))
        if stored != settings.km_clusters:
            what = f"{first.km_path}: expected {settings.km_clusters} clusters, found {stored}"
            raise UserError(f"{what}; remove it, or name another with fairseqrc.km_path=FILE.npz")
        print(f"{first.km_path} already exists: kept; remove it to learn it again")
        return
    if first.ckpt_path is not None and first.km_path != km_path and not first.km_ships:
        get = f"python pretrained_models/download.py {unit_model} --only kmeans"
        what = f"{first.km_path}: not found; {unit_model} has a released k-means: run {get}"
        raise UserError(f"{what}, or learn your own k-means under another --unit_model")
    if km_path.suffix != ".npz":
        raise UserError(f"fairseqrc.km_path={km_path}: learn_kmeans writes an .npz file; name one")
    frames, tally = _sample(preprocessors)
    shape = settings.km_clusters, settings.km_starts, first.config.taskrc.seed, settings.km_reassign
    centres = fit_kmeans(frames, *shape)
    save_config(first.config, km_path.with_suffix(".yaml"))
    write_json(km_path.with_suffix(".json"), provenance() | {"audio": tally.record()})
    save_kmeans(km_path, centres)  # last: if it exists, the next call takes it as finished
    print(f"wrote {km_path}: {settings.km_clusters} clusters of {len(frames)} frames")


def _sample(preprocessors: Sequence[Preprocessor]) -> tuple[np.ndarray, Tally]:
    """Return at most ``km_frames`` frames (N, D) of drawn train files, and a tally of the files."""
    first = preprocessors[0]
    settings = first.config.fairseqrc
    reader, device = first.feature_reader()
    files = []  # corpus number, entry, seconds
    manifests = [preprocessor.manifest for preprocessor in preprocessors]
    corpora = [(*read_manifest(path / "train.tsv"), file_rates(path)) for path in manifests]
    for number, (_, entries, rates) in enumerate(corpora):
        files += [(number, e, e.frames / rates[e.path]) for e in distinct(entries)]
    order = np.random.default_rng(first.config.taskrc.seed).permutation(len(files))
    wanted, seconds = settings.km_frames / reader.frame_rate, settings.batch_seconds
    missing = np.subtract.accumulate([wanted, *(files[index][2] for index in order)])  # before each
    drawn = [files[index] for index in np.sort(order[: np.count_nonzero(missing > 0)])]
    blocks = []
    for number, (preprocessor, (root, _, rates)) in enumerate(zip(preprocessors, corpora)):
        entries = [entry for corpus, entry, _ in drawn if corpus == number]
        print(f"{preprocessor.downstream}: {len(entries)} files of its train manifest")
        blocks += cut_blocks(preprocessor.downstream, root, entries, seconds, rates)
    stream = AudioStream(reader, lambda x: x.cpu().numpy(), device, seconds, np.concatenate)
    sample = np.empty((settings.km_frames, reader.dim), np.float32)  # (N, D)
    filled, tally = 0, Tally()
    for encoded in with_bar(stream(blocks), "features", len(drawn), print):
        for entry, result, notes in zip(encoded.block.entries, encoded.results, encoded.notes):
            is_bad = isinstance(result, BadAudio)
            tally.add(result if is_bad else notes, encoded.block.root / entry.path)
            if not is_bad:
                frames = result[: len(sample) - filled]
                sample[filled : filled + len(frames)] = frames
                filled += len(frames)
    tally.report(first.learned_km_path.with_suffix(".bad_audio.txt"), first.skip_bad)
    return sample[:filled], tally


class Quantizing(AudioRun):
    """Maps audio to units, written as text."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        command = f"preprocess/runner.py --downstream {preprocessor.downstream} --action quantized"
        record = preprocessor.unit_model_record()
        super().__init__(preprocessor, preprocessor.quantized, record, command)

    def stream(self) -> AudioStream[str]:
        """Return the stream from audio to units. Raises ``UserError`` for centres of other size."""
        preprocessor = self.preprocessor
        reader, device = preprocessor.feature_reader()
        path, seconds = preprocessor.km_path, preprocessor.config.fairseqrc.batch_seconds
        centres = load_kmeans(path, reader.dim)
        hint = ", which was learned from a few commands; learn_kmeans makes a better one"
        preprocessor.say(f"{len(centres)} clusters of {path}{hint * preprocessor.km_ships}")
        kmeans = KMeans(centres, device)
        return AudioStream(reader, lambda x: units_as_text(kmeans(x)), device, seconds, " ".join)

    def write_split(self, path: Path, lines: Iterable[Line], count: int) -> None:
        """Write one line ``file|units`` per good piece of audio."""
        with writing(path) as handle:
            for line in lines:
                handle.write(f"{line.file}|{line.result}\n")
