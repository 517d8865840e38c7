"""Audio to units, against the published readers of GSLM: one file at a time, on the same clips.

python -m tests.benchmarks units, or python -m tests.benchmarks.bench_units [--clips N] [--rounds N]

Random weights of the released shapes (HuBERT-base, layer 6; CPC big, LSTM layer 2). The published
side is GSLM's own reader as fairseq installs it, then scikit-learn's predict; ours is what
``--action quantized`` runs. Both read the same wav files and have the same cores. Each side is
measured in a process of its own, which gives its peak memory, and the two take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
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

from pipeline.devices import choose_device
from preprocess.actions.manifest import Entry
from preprocess.actions.stream import Encoder, cut_blocks
from preprocess.speech2unit.features import Source, feature_reader, written
from preprocess.speech2unit.kmeans import KMeans
from tests.conftest import DATA, REPOSITORY
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
DIMENSIONS = {"hubert": 768, "cpc": 512}
BATCH_SECONDS = 60


def main(words: Sequence[str] = ()) -> None:
    """Measure both sides of each feature type and print the table."""
    arguments = parse_arguments(words)
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.features, arguments.folder)))
        return
    print(f"{choose_device()[1]}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.clips)
        groups = (
            ("", 8),
            ("utterances/s", 28),
            ("x real time", 22),
            ("peak MB", 20),
            ("equal", 11),
        )
        columns = (("", 8), ("published", 14), ("ours", 7), ("ratio", 7), ("published", 12))
        columns += (("ours", 10), ("published", 12), ("ours", 8), ("equal units, %", 17))
        for head in (groups, columns):
            print("".join(f"{text:>{width}}" for text, width in head))
        for features in LAYERS:
            rounds = [
                {side: run(side, features, folder) for side in ("published", "ours")}
                for _ in range(arguments.rounds)
            ]
            report(features, rounds)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200, help="default: 200")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    for internal in ("--side", "--features"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def prepare(folder: Path, count: int) -> None:
    """Write the checkpoints, random centres and the list of clips (real ones where at hand)."""
    ssl_checkpoints.hubert(folder / "hubert.pt", spread=False, **BASE)
    ssl_checkpoints.cpc(folder / "cpc.pt", 512, 512, gain=6)
    rng = np.random.default_rng(0)
    clips = sorted((DATA / "audio/speech_commands/speech_commands_v0.01").glob("[a-z]*/*.wav"))
    if not clips:
        for number in range(count):
            write(folder / f"{number}.wav", tone(rng.uniform(0.7, 1.0), 90 + number))
        clips = sorted(folder.glob("*.wav"))
    chosen = [str(clips[index]) for index in rng.permutation(len(clips))[:count]]
    (folder / "clips.json").write_text(json.dumps(chosen))
    for features in LAYERS:
        reader = build(features, folder)
        some = [soundfile.read(clip, dtype="float32")[0] for clip in chosen[:60]]
        with torch.inference_mode():
            frames = [reader([torch.from_numpy(clip)])[0].cpu() for clip in some]
        kmeans = MiniBatchKMeans(100, random_state=0, n_init=1).fit(torch.cat(frames).numpy())
        np.save(folder / f"{features}.npy", kmeans.cluster_centers_)


def build(features: str, folder: Path):
    """Our reader."""
    source = Source(folder / f"{features}.pt", LAYERS[features], device=choose_device()[0])
    return feature_reader(features, source)


def run(side: str, features: str, folder: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_units", "--side", side]
    command += ["--features", features, "--folder", str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, check=True, timeout=3600
    )
    return json.loads(result.stdout.splitlines()[-1])


def measure(side: str, features: str, folder: Path) -> dict[str, object]:
    """Quantise all clips one way; the models are loaded and warm before the clock starts."""
    clips = [Path(clip) for clip in json.loads((folder / "clips.json").read_text())]
    centres = np.load(folder / f"{features}.npy")
    work = (published if side == "published" else ours)(features, folder, centres)
    work(clips[:4])
    start = time.perf_counter()
    units = work(clips)
    seconds = time.perf_counter() - start
    audio = sum(soundfile.info(clip).duration for clip in clips)
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]  # kB, of this program alone
    peak = int(status.split()[0]) / 1024
    return {"seconds": seconds, "audio": audio, "peak": peak, "units": units}


def ours(features: str, folder: Path, centres: np.ndarray):
    """The stream that ``--action quantized`` runs."""
    device = choose_device()[0]
    kmeans = KMeans(centres, device)
    encoder = Encoder(
        build(features, folder), lambda frames: written(kmeans(frames)), device, BATCH_SECONDS
    )

    def work(clips: list[Path]) -> list[str]:
        entries = [
            Entry(str(clip), soundfile.info(clip).frames, 0, str(clip), "") for clip in clips
        ]
        blocks = cut_blocks("all", Path("/"), entries, BATCH_SECONDS / 4)
        return [units for encoded in encoder(blocks) for units in encoded.results]

    return work


def published(features: str, folder: Path, centres: np.ndarray):
    """GSLM's reader on each file, then scikit-learn's predict."""
    spec = importlib.util.spec_from_file_location(
        "reader", READERS / f"{features}_feature_reader.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gpu = torch.cuda.is_available()
    if features == "cpc":
        reader = module.CpcFeatureReader(folder / "cpc.pt", LAYERS[features], use_cuda=gpu)
    else:  # its loader wants the training task's files; the rest of it is used as it is
        reader = module.HubertFeatureReader.__new__(module.HubertFeatureReader)
        model = ssl_checkpoints.hubert(folder / "again.pt", spread=False, **BASE)
        reader.model = model.cuda() if gpu else model
        reader.task = SimpleNamespace(cfg=SimpleNamespace(sample_rate=16_000, normalize=False))
        reader.layer, reader.max_chunk, reader.use_cuda = LAYERS[features], 1_600_000, gpu
    kmeans = MiniBatchKMeans(len(centres), n_init=1).fit(centres)
    kmeans.cluster_centers_ = centres

    def work(clips: list[Path]) -> list[str]:
        with torch.inference_mode():
            frames = [reader.get_feats(clip).cpu().numpy() for clip in clips]
        return [" ".join(map(str, kmeans.predict(feature))) for feature in frames]

    return work


def report(features: str, rounds: list[dict[str, dict]]) -> None:
    """One line of the table: medians over the rounds, the ratio of each round's pair."""
    sides = {side: [round_[side] for round_ in rounds] for side in ("published", "ours")}
    count = len(rounds[0]["ours"]["units"])
    rate = {side: median(count / r["seconds"] for r in found) for side, found in sides.items()}
    real = {side: median(r["audio"] / r["seconds"] for r in found) for side, found in sides.items()}
    peak = {side: max(r["peak"] for r in found) for side, found in sides.items()}
    ratio = median(r["published"]["seconds"] / r["ours"]["seconds"] for r in rounds)
    pairs = [
        (a, b)
        for one, other in zip(rounds[0]["published"]["units"], rounds[0]["ours"]["units"])
        for a, b in zip(one.split(), other.split(), strict=True)
    ]
    equal = 100 * sum(a == b for a, b in pairs) / len(pairs)
    print(
        f"{features:8}{rate['published']:14.1f}{rate['ours']:7.1f}{ratio:6.2f}x"
        f"{real['published']:12.1f}{real['ours']:10.1f}"
        f"{peak['published']:12.0f}{peak['ours']:8.0f}{equal:17.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
