"""Learning curves, read from the log that training leaves."""

from __future__ import annotations

import re
from pathlib import Path

_VALID = re.compile(r"valid on 'valid' subset \| (?P<scores>.*)")
_SCORE = re.compile(r"(\w+) (-?[\d.]+(?:e-?\d+)?)")


def valid_curve(train_log: Path) -> dict[int, dict[str, float]]:
    """Update number -> scores of each validation, in order; what a restart repeated counts once."""
    curve = {}
    with open(train_log, encoding="utf-8") as handle:
        for line in handle:
            if match := _VALID.search(line):
                scores = {name: float(value) for name, value in _SCORE.findall(match["scores"])}
                curve[int(scores["num_updates"])] = scores
    return dict(sorted(curve.items()))
