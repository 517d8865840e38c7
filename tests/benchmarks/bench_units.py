"""Compare our audio to units with GSLM's published readers, on the same clips.

python -m tests.benchmarks units, or python -m tests.benchmarks.bench_units [--clips N] [--rounds N]

The weights are random, with the released shapes (HuBERT-base, layer 6; CPC big, LSTM layer 2). The
published side is GSLM's reader as fairseq installs it, one file at a time, then scikit-learn's
predict. Ours is what ``--action quantized`` runs. Both read the same wav files on the same cores.
Each side runs in its own process, which gives the peak memory; the sides take turns. If the machine
multiplies bfloat16, ``--dtype bfloat16`` is also compared with the published reader.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import fairseq
import numpy as np
import soundfile
import torch
from sklearn.cluster import MiniBatchKMeans

from pipeline.devices import choose_device, multiplies_bfloat16
from preprocess.actions.manifest import Entry
from preprocess.actions.stream import AudioStream, cut_blocks
from preprocess.speech2unit.features import Source, feature_reader, units_as_text
from preprocess.speech2unit.kmeans import KMeans
from tests.benchmarks.measure import Result, dtype_name, machine, matrix_rate, report, run_isolated
from tests.conftest import DATA
from tests.preprocess import ssl_checkpoints
from tests.preprocess.corpora import tone, write

READERS = Path(fairseq.__file__).parent / "examples/textless_nlp/gslm/speech2unit/pretrained"
BASE = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
}
LAYERS = {"hubert": 6, "cpc": 2}
BATCH_SECONDS = 60
GFLOP_PER_AUDIO_SECOND = 9.5  # HuBERT Base up to layer 6
SHAPE = (50, 768, 3072)  # the feed-forward network on one second of audio


def main(arguments: Sequence[str] = ()) -> None:
    """Measure both sides of each feature type and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200, help="number of clips (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default: 3)")
    args = parser.parse_args(arguments)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = prepare(folder, args.clips)
        has_bfloat16, _ = multiplies_bfloat16(choose_device()[0])
        sides = ("published", "ours", *["bfloat16"] * has_bfloat16)
        for features in LAYERS:
            rounds = [
                {side: run_isolated(measure, side, features, folder, clips) for side in sides}
                for _ in range(args.rounds)
            ]
            summarise(features, rounds)


def prepare(folder: Path, count: int) -> list[Path]:
    """Write checkpoints and k-means centres; return the clips, real ones if they exist."""
    ssl_checkpoints.hubert(folder / "hubert.pt", spread=False, **BASE)
    ssl_checkpoints.cpc(folder / "cpc.pt", 512, 512, gain=6)
    rng = np.random.default_rng(0)
    clips = sorted((DATA / "audio/speech_commands/speech_commands_v0.01").glob("[a-z]*/*.wav"))
    if not clips:
        for number in range(count):
            write(folder / f"{number}.wav", tone(rng.uniform(0.7, 1.0), 90 + number))
        clips = sorted(folder.glob("*.wav"))
    chosen = [clips[index] for index in rng.permutation(len(clips))[:count]]
    for features in LAYERS:
        reader = our_reader(features, folder)
        waveforms = [soundfile.read(clip, dtype="float32")[0] for clip in chosen[:60]]
        with torch.inference_mode():
            frames = [reader([torch.from_numpy(waveform)])[0].cpu() for waveform in waveforms]
        kmeans = MiniBatchKMeans(100, random_state=0, n_init=1).fit(torch.cat(frames).numpy())
        np.save(folder / f"{features}.npy", kmeans.cluster_centers_)
    return chosen


def our_reader(features: str, folder: Path, dtype: str = "float32"):
    """Return our reader of a feature type."""
    path, layer = folder / f"{features}.pt", LAYERS[features]
    return feature_reader(features, Source(path, layer, device=choose_device()[0], dtype=dtype))


def measure(side: str, features: str, folder: Path, clips: list[Path]) -> dict[str, object]:
    """Quantise all clips. The clock starts when the models are loaded and warm."""
    centres = np.load(folder / f"{features}.npy")
    if side == "published":
        work = published(features, folder, centres)
    else:
        work = ours(features, folder, centres, "float32" if side == "ours" else side)
    work(clips[:4])
    start = time.perf_counter()
    units = work(clips)
    seconds = time.perf_counter() - start
    audio = sum(soundfile.info(clip).duration for clip in clips)
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]  # this process's peak, kB
    peak = int(status.split()[0]) / 1024
    return {"seconds": seconds, "audio": audio, "peak": peak, "units": units}


def ours(features: str, folder: Path, centres: np.ndarray, dtype: str):
    """Return a function from clips to units that runs the stream of ``--action quantized``."""
    device = choose_device()[0]
    kmeans = KMeans(centres, device)
    reader = our_reader(features, folder, dtype)
    stream = AudioStream(reader, lambda x: units_as_text(kmeans(x)), device, BATCH_SECONDS)

    def work(clips: list[Path]) -> list[str]:
        entries = [
            Entry(str(clip), soundfile.info(clip).frames, 0, str(clip), "") for clip in clips
        ]
        blocks = cut_blocks("all", Path("/"), entries, BATCH_SECONDS / 4)
        return [units for encoded in stream(blocks) for units in encoded.results]

    return work


def published(features: str, folder: Path, centres: np.ndarray):
    """Return a function from clips to units: GSLM's reader, then scikit-learn's predict."""
    spec = importlib.util.spec_from_file_location(
        "reader", READERS / f"{features}_feature_reader.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gpu = torch.cuda.is_available()
    if features == "cpc":
        reader = module.CpcFeatureReader(folder / "cpc.pt", LAYERS[features], use_cuda=gpu)
    else:  # HuBERT's loader needs files of the training task; the rest of the reader is used
        reader = module.HubertFeatureReader.__new__(module.HubertFeatureReader)
        model = ssl_checkpoints.hubert(folder / "again.pt", spread=False, **BASE)
        reader.model = model.cuda() if gpu else model
        reader.task = SimpleNamespace(cfg=SimpleNamespace(sample_rate=16_000, normalize=False))
        reader.layer, reader.max_chunk, reader.use_cuda = LAYERS[features], 1_600_000, gpu
    kmeans = MiniBatchKMeans(len(centres), n_init=1).fit(centres)
    kmeans.cluster_centers_ = centres

    def work(clips: list[Path]) -> list[str]:
        with torch.inference_mode():
            clip_frames = [reader.get_feats(clip).cpu().numpy() for clip in clips]
        return [" ".join(map(str, kmeans.predict(frames))) for frames in clip_frames]

    return work


def summarise(features: str, rounds: list[dict[str, dict]]) -> None:
    """Report medians over the rounds."""
    runs = {side: [results[side] for results in rounds] for side in rounds[0]}
    count = len(rounds[0]["ours"]["units"])
    spent = {side: median(run["seconds"] for run in runs[side]) for side in runs}
    peak = {side: max(run["peak"] for run in runs[side]) for side in runs}
    audio = rounds[0]["ours"]["audio"]
    published_ms = 1e3 * spent["published"] / count
    for side in runs.keys() - {"published"}:
        dtype = torch.bfloat16 if side == "bfloat16" else torch.float32
        bound = [None, None]
        if features == "hubert":
            bound = [GFLOP_PER_AUDIO_SECOND * audio / spent[side], matrix_rate(dtype, SHAPE)]
        note = f"{equal(rounds[0]['published'], rounds[0][side]):.3f} % of the units equal, random "
        note += f"weights; peak {peak['published']:.0f} and {peak[side]:.0f} MB"
        what = f"{features} units, {count} clips, {dtype_name(dtype)}"
        our_ms = 1e3 * spent[side] / count
        report(Result(what, published_ms, our_ms, "ms per utterance", *bound, note))


def equal(published_run: dict, our_run: dict) -> float:
    """Return the percentage of equal units."""
    pairs = [
        pair
        for units in zip(published_run["units"], our_run["units"])
        for pair in zip(*map(str.split, units), strict=True)
    ]
    return 100 * sum(a == b for a, b in pairs) / len(pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
