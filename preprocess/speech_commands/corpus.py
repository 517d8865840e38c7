"""Speech Commands v0.01: its folders, its classes, its split rule."""

from __future__ import annotations

import hashlib
import re

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = (*KEYWORDS, UNKNOWN, SILENCE)  # the label is the index
TRAIN_FOLDER, TEST_FOLDER = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
NOISE_FOLDER = f"{TRAIN_FOLDER}/_background_noise_"
MAX_WAVS_PER_CLASS = 2**27 - 1


def which_split(file_name: str) -> str | None:
    """The dataset's own rule, which keeps a speaker in one split. None: in neither train nor valid.

    ``file_name`` is like ``a6d586b7_nohash_4.wav``; what stands before ``_nohash_`` is the speaker.
    """
    speaker = re.sub(r"_nohash_.*$", "", file_name)
    digest = int(hashlib.sha1(speaker.encode("utf-8")).hexdigest(), 16)
    percentage = (digest % (MAX_WAVS_PER_CLASS + 1)) * (100.0 / MAX_WAVS_PER_CLASS)
    if percentage < 10:
        return "valid"
    return None if percentage < 20 else "train"
