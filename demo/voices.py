"""The demo's speakers: espeak-ng variants (timbre) with an accent, a pace and a pitch, split by
variant.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.rows import SPLITS
from preprocess.speech_commands.corpus import which_split

ACCENT = "en-us"
# The espeak-ng variants that a linear classifier on log-mel units understands fairly well from
# other voices (checked once, over all of them, to set how hard the demo is): no whisper, no robot.
# Not f2 and victor either: espeak-ng reads unset memory in them and speaks differently each time.
VARIANTS = (
    *("Alex", "Denis", "Diogo", "Gene2", "Henrique", "Hugo", "Mario", "Michael", "Mike"),
    *("Mr serious", "Nguyen", "Storm", "boris", "f1", "grandma", "grandpa", "iven3", "iven4"),
    *("john", "m1", "m3", "m4", "m5", "m6", "m7", "max", "michel", "miguel", "pablo", "paul"),
    *("quincy", "rob", "robert"),
)
# share of the variants, and the number of speakers
_SHARES = {"train": 0.65, "valid": 0.15, "test": 0.2}
_SPEAKERS = {"train": 100, "valid": 15, "test": 30}


@dataclass(frozen=True)
class Speaker:
    """One voice. ``keyword_id`` is 8 hexadecimal digits that ``which_split`` sends to the speaker's
    split.
    """

    split: str
    voice: str  # accent+variant
    rate: int  # words a minute
    pitch: int  # 0..100, 50 is the variant's own
    keyword_id: str
    intent_id: str


def speakers(seed: int) -> dict[str, list[Speaker]]:
    """The speakers of each split. No variant is in two splits."""
    rng = np.random.default_rng(seed)
    variants = rng.permutation(VARIANTS).tolist()
    found: dict[str, list[Speaker]] = {}
    for split in SPLITS:
        share = round(_SHARES[split] * len(VARIANTS))
        own, variants = variants[:share], variants[share:]
        found[split] = [
            _speaker(split, own[number % share], seed, number, rng)
            for number in range(_SPEAKERS[split])
        ]
    return found


def _speaker(split: str, variant: str, seed: int, number: int, rng: np.random.Generator) -> Speaker:
    return Speaker(
        split=split,
        voice=f"{ACCENT}+{variant}",
        rate=int(rng.integers(175, 236)),
        pitch=int(rng.integers(42, 59)),
        keyword_id=_keyword_id(split, f"{seed} {split} {number}"),
        intent_id=hashlib.sha1(f"{seed} {split} {number}".encode()).hexdigest()[:16],
    )


def _keyword_id(split: str, key: str) -> str:
    """Eight hexadecimal digits that hash into ``split``; test speakers into the share that the rule
    drops.
    """
    wanted = None if split == "test" else split
    attempt = 0
    while True:
        name = hashlib.sha1(f"{key} {attempt}".encode()).hexdigest()[:8]
        if which_split(f"{name}_nohash_0.wav") == wanted:
            return name
        attempt += 1
