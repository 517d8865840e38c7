"""The demo's speakers: espeak-ng variants (timbre) with an accent, a pace and a pitch, split by
variant.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np

from pipeline.rows import SPLITS

ACCENT = "en-us"
# These speak differently each time: espeak-ng reads unset memory in them (with glibc, the variable
# MALLOC_PERTURB_ changes their samples).
LEFT_OUT = frozenset(
    ("Alicia", "Demonic", "f2", "f3", "f5", "sandro", "victor", "whisper", "whisperf")
)
_SHARES = {"train": 0.65, "valid": 0.15, "test": 0.2}  # of the variants
_SPEAKERS = {"train": 124, "valid": 28, "test": 38}  # two or so with each variant


@dataclass(frozen=True)
class Speaker:
    """One voice."""

    name: str
    voice: str  # accent+variant
    rate: int  # words a minute
    pitch: int  # 0..100, 50 is the variant's own


def variants() -> list[str]:
    """Every variant that the installed espeak-ng has, but ``LEFT_OUT``, by name."""
    folder = Path(str(espeakng_loader.get_data_path())) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if path.name not in LEFT_OUT)


def speakers(seed: int) -> dict[str, list[Speaker]]:
    """The speakers of each split. No variant is in two splits."""
    rng = np.random.default_rng(seed)
    left = rng.permutation(variants()).tolist()
    by_split: dict[str, list[Speaker]] = {}
    for split in SPLITS:
        share = round(_SHARES[split] * len(variants()))
        heard, left = left[:share], left[share:]
        by_split[split] = [
            Speaker(
                name=hashlib.sha1(f"{seed} {split} {number}".encode()).hexdigest()[:16],
                voice=f"{ACCENT}+{heard[number % share]}",
                rate=int(rng.integers(175, 236)),
                pitch=int(rng.integers(42, 59)),
            )
            for number in range(_SPEAKERS[split])
        ]
    return by_split
