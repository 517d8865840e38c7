"""Make the golden set beside this file: real clips, and what stages 1 to 3 must make of them.

python tests/golden/make.py

It shares no code with the stages: log-mel as Kaldi defines it in float64 numpy, units by
scikit-learn's ``predict``, texts by string joins, fairseq's binaries by ``struct``. The clips are
of demo/speech_commands (CC BY 4.0, LICENSE there), stored without loss, since Opus decoders round
differently.
"""

from __future__ import annotations

import csv
import json
import struct
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
from sklearn.cluster import KMeans

HERE = Path(__file__).resolve().parent
PACKED = HERE.parents[1] / "demo" / "speech_commands"
# the words of the clips; the most frequent is not the first
SPLITS = {"train": "no up up stop up no", "valid": "up no", "test": "stop up"}
UNIT_MODEL, CLUSTERS = "golden16", 16
LEAST_MARGIN = 0.02  # squared distance by which a frame's centre is nearest: float32 rounds less


def clips() -> list[tuple[str, str, np.ndarray]]:
    """(split, word, samples) of a word's first clips, int16."""
    with open(PACKED / "clips.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    waveforms = {}
    for word in set(" ".join(SPLITS.values()).split()):
        folder = f"speech_commands_v0.01/{word}"
        packed, _ = soundfile.read(PACKED / f"{folder}.opus", dtype="int16")
        ends = np.cumsum([int(row["samples"]) for row in rows if row["folder"] == folder])
        waveforms[word] = iter(np.split(packed, ends))
    return [
        (split, word, next(waveforms[word]))
        for split, words in SPLITS.items()
        for word in words.split()
    ]


def logmel(samples: np.ndarray) -> np.ndarray:
    """(T,) in [-1, 1] to (frames, 80), one frame after another."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    mel_of = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges = np.linspace(mel_of(20), mel_of(8000), 82)
    bins = mel_of(np.arange(256) * 16_000 / 512)
    banks = [
        np.maximum(0, np.minimum((bins - low) / (top - low), (high - bins) / (high - top)))
        for low, top, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    frames = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400] - samples[start : start + 400].mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)[:256]) ** 2
        frames.append([np.log(max(bank @ power, np.finfo(np.float32).eps)) for bank in banks])
    return np.array(frames)


def write(name: str, contents: str | bytes) -> None:
    path = HERE / "expected" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def binaries(lines: list[str], numbers: dict[str, int]) -> tuple[bytes, bytes]:
    """fairseq's ``mmap`` format: uint16 symbols, each line ended by </s>, and their index."""
    rows = [[*(numbers[symbol] for symbol in line.split()), 2] for line in lines]
    data = b"".join(struct.pack(f"<{len(row)}H", *row) for row in rows)
    sizes = [len(row) for row in rows]
    offsets = [2 * sum(sizes[:index]) for index in range(len(sizes))]
    uint16 = 8  # fairseq's code
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, uint16, len(rows))
    index += struct.pack(f"<{len(rows)}i{len(rows)}q", *sizes, *offsets)
    return data, index


def main() -> None:
    chosen = clips()
    (HERE / "clips").mkdir(exist_ok=True)
    table = ["path,label,split"]
    for number, (split, word, samples) in enumerate(chosen):
        soundfile.write(HERE / "clips" / f"{number}.flac", samples, 16_000)
        table.append(f"{number}.flac,{word},{split}")
    (HERE / "clips" / "table.csv").write_text("\n".join(table) + "\n")

    features = [logmel(samples / 32768) for _, _, samples in chosen]
    learned = KMeans(CLUSTERS, n_init=1, random_state=1).fit(np.concatenate(features))
    learned.cluster_centers_ = learned.cluster_centers_.astype(np.float32).astype(np.float64)
    np.savez(HERE / "km.npz", centres=learned.cluster_centers_.astype(np.float32))
    nearest = np.sort(learned.transform(np.concatenate(features)) ** 2, axis=1)
    assert (nearest[:, 1] - nearest[:, 0]).min() > LEAST_MARGIN, (
        nearest[:, 1] - nearest[:, 0]
    ).min()
    units = [learned.predict(frames) for frames in features]

    merged = [" ".join(str(unit) for unit, _ in groupby(row)) for row in units]
    words = list(dict.fromkeys(word for split, word, _ in chosen if split == "train"))
    rows = [
        (split, f"{number}.flac", text, str(words.index(word)))
        for number, ((split, word, _), text) in enumerate(zip(chosen, merged, strict=True))
    ]
    train = [row for row in rows if row[0] == "train"]
    common = Counter(unit for row in train for unit in row[2].split()).most_common()
    labels = Counter(row[3] for row in train).most_common()
    verbal = {label: unit for (label, _), (unit, _) in zip(labels, common, strict=False)}
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *map(str, range(CLUSTERS))]
    (HERE / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols[4:]))
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    data, sets = f"preprocess/table/data/{UNIT_MODEL}", f"ulm_prompt/datasets/{UNIT_MODEL}"
    write(f"{sets}/verbal.json", json.dumps({"TABLE": dict(sorted(verbal.items()))}, indent=4))
    for split in SPLITS:
        of_split = [row[1:] for row in rows if row[0] == split]
        renamed = [f"{text} <s> {verbal[label]}" for _, text, label in of_split]
        quantized = [
            (n, u) for (s, *_), (n, u) in zip(chosen, enumerate(units), strict=True) if s == split
        ]
        write(
            f"{data}/quantized/{split}",
            "".join(f"{n}.flac|{' '.join(map(str, u))}\n" for n, u in quantized),
        )
        write(f"{data}/{split}", "".join("|".join(row) + "\n" for row in of_split))
        prompt = "".join(f"{text} <s> {label}\n" for _, text, label in of_split)
        write(f"{sets}/table/data_prompt/{split}.txt", prompt)
        write(f"{sets}/table/data_freq/{split}.txt", "".join(line + "\n" for line in renamed))
        for suffix, contents in zip(("bin", "idx"), binaries(renamed, numbers), strict=True):
            write(f"ulm_prompt/data-bins/{UNIT_MODEL}/TABLE-data-bin/{split}.{suffix}", contents)


if __name__ == "__main__":
    main()
