"""The speaker's gender on VoxCeleb1: the speaker task's reader with another label."""

from __future__ import annotations

from preprocess.voxceleb1.preprocessor import VoxCeleb1


class VoxCeleb1Gender(VoxCeleb1):
    """Its config names the label."""
