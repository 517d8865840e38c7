"""Make the golden set in this folder: real clips, and the files that stages 1 to 3 must write.

python tests/golden/make.py

It shares no code with the stages. Log-mel: float64 numpy, as Kaldi defines it. Units: ``predict``
of scikit-learn. Texts: string joins. fairseq's binaries: ``struct``. The clips come from
demo/speech_commands (CC BY 4.0, see its LICENSE). They are stored without loss, because Opus
decoders round differently.
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
# the words of the clips; the most frequent word is not the first
SPLITS = {"train": "no up up stop up no", "valid": "up no", "test": "stop up"}
UNIT_MODEL, CLUSTERS = "golden16", 16
LEAST_MARGIN = 0.02  # between squared distances to the 2 nearest centres; float32 errs less


def clips() -> list[tuple[str, str, np.ndarray]]:
    """Return (split, word, int16 samples) for the first clips of each word."""
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


def mel(hertz: float | np.ndarray) -> float | np.ndarray:
    return 1127 * np.log(1 + hertz / 700)


def logmel(samples: np.ndarray) -> np.ndarray:
    """Return the features of samples in [-1, 1], frame by frame: (T,) -> (frames, 80)."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    edges = np.linspace(mel(20), mel(8000), 82)
    bins = mel(np.arange(256) * 16_000 / 512)
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


def binaries(lines: list[str], indices: dict[str, int]) -> tuple[bytes, bytes]:
    """Return fairseq's ``mmap`` files: uint16 symbols with </s> after each line, and the index."""
    rows = [[*(indices[symbol] for symbol in line.split()), 2] for line in lines]
    data = b"".join(struct.pack(f"<{len(row)}H", *row) for row in rows)
    sizes = [len(row) for row in rows]
    offsets = [2 * sum(sizes[:index]) for index in range(len(sizes))]
    uint16 = 8  # fairseq's code
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, uint16, len(rows))
    return data, header + struct.pack(f"<{len(rows)}i{len(rows)}q", *sizes, *offsets)


def main() -> None:
    chosen = clips()
    (HERE / "clips").mkdir(exist_ok=True)
    table = ["path,label,split"]
    for number, (split, word, samples) in enumerate(chosen):
        soundfile.write(HERE / "clips" / f"{number}.flac", samples, 16_000)
        table.append(f"{number}.flac,{word},{split}")
    (HERE / "clips" / "table.csv").write_text("\n".join(table) + "\n")

    features = [logmel(samples / 32768) for _, _, samples in chosen]
    kmeans = KMeans(CLUSTERS, n_init=1, random_state=1).fit(np.concatenate(features))
    kmeans.cluster_centers_ = kmeans.cluster_centers_.astype(np.float32).astype(np.float64)
    np.savez(HERE / "km.npz", centres=kmeans.cluster_centers_.astype(np.float32))
    nearest = np.sort(kmeans.transform(np.concatenate(features)) ** 2, axis=1)
    margin = (nearest[:, 1] - nearest[:, 0]).min()
    assert margin > LEAST_MARGIN, margin
    units = [kmeans.predict(frames) for frames in features]

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
    indices = {symbol: index for index, symbol in enumerate(symbols)}
    data, datasets = f"preprocess/table/data/{UNIT_MODEL}", f"ulm_prompt/datasets/{UNIT_MODEL}"
    write(f"{datasets}/verbal.json", json.dumps({"TABLE": dict(sorted(verbal.items()))}, indent=4))
    for split in SPLITS:
        split_rows = [row[1:] for row in rows if row[0] == split]
        renamed = [f"{text} <s> {verbal[label]}" for _, text, label in split_rows]
        quantized = [
            f"{number}.flac|{' '.join(map(str, clip_units))}\n"
            for number, (clip, clip_units) in enumerate(zip(chosen, units, strict=True))
            if clip[0] == split
        ]
        write(f"{data}/quantized/{split}", "".join(quantized))
        write(f"{data}/{split}", "".join("|".join(row) + "\n" for row in split_rows))
        prompt = "".join(f"{text} <s> {label}\n" for _, text, label in split_rows)
        write(f"{datasets}/table/data_prompt/{split}.txt", prompt)
        write(f"{datasets}/table/data_freq/{split}.txt", "".join(line + "\n" for line in renamed))
        for suffix, contents in zip(("bin", "idx"), binaries(renamed, indices), strict=True):
            write(f"ulm_prompt/data-bins/{UNIT_MODEL}/TABLE-data-bin/{split}.{suffix}", contents)


if __name__ == "__main__":
    main()
