"""The output of decoding: answers are written as they come, and the published JSON at the end.

While a run is under way its answers lie in ``<output>.part``, a JSON line each, under a first line
that says what they were made from. A killed run goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import naming, read_json, write_json

if TYPE_CHECKING:  # fairseq takes seconds to import
    from fairseq.data import Dictionary

    from ulm_prompt.prompt_lm.decoding import Decoded

WITHIN = "_within_labels"  # ends the name of the file decoded within the label set
DIGITS = 5  # of a stored log-probability


class PartialAnswers:
    """The answers so far of one run: ``done``, row number -> what was added for it."""

    def __init__(self, path: Path, made_from: dict[str, Any]) -> None:
        """Go on with the file at ``path`` when it was ``made_from`` the same, else begin it anew.

        A last line that was cut off is dropped. Raises ``OSError`` when it cannot be written.
        """
        self.path = path
        self.done: dict[int, dict[str, Any]] = {}
        header = json.dumps(made_from) + "\n"
        kept = self._read(header) if path.exists() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(path, "r+b" if kept else "wb")
        with naming(path):
            self._handle.truncate(kept)
            self._handle.seek(kept)
            if not kept:
                self._handle.write(header.encode())

    def _read(self, header: str) -> int:
        """Take the whole lines of an earlier run; return how many bytes they are."""
        first, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        if first != header.encode():
            return 0
        kept = len(first)
        for line in lines:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None:
                break
            self.done[entry.pop("row")] = entry
            kept += len(line)
        return kept

    def add(self, entries: dict[int, dict[str, Any]]) -> None:
        """Save the answers of one batch; they are safe from a kill when this returns."""
        self.done.update(entries)
        lines = (json.dumps({"row": row, **entry}) + "\n" for row, entry in entries.items())
        with naming(self.path):
            self._handle.write("".join(lines).encode())
            self._handle.flush()

    def remove(self) -> None:
        """The run is complete and its output written."""
        self._handle.close()
        self.path.unlink(missing_ok=True)


def entry(decoded: Decoded, dictionary: Dictionary) -> dict[str, dict[str, Any]]:
    """Both answers to a row as they are stored: label units, the log-probability that the LM gives
    them, and each one's share of it.
    """
    return {
        kind: {
            "predict": " ".join(dictionary[symbol] for symbol in answer.symbols),
            "score": round(sum(answer.scores), DIGITS),
            "label_scores": [round(score, DIGITS) for score in answer.scores],
        }
        for kind, answer in (("free", decoded.free), ("within", decoded.within))
    }


def write_samples(
    path: Path,
    sources: list[dict[str, str]],
    answers: dict[int, dict[str, Any]],
    scored: bool,
) -> None:
    """Write the free answers to ``path`` and those within the label set beside it.

    ``sources``: file_name, src and label of each row. ``answers``: row -> its ``entry``. The free
    file has the published four keys; its scores come after them only when ``scored``.
    """
    for name, kind in (("", "free"), (WITHIN, "within")):
        samples = {}
        for row, source in enumerate(sources):
            answer = answers[row][kind]
            if kind == "free" and not scored:
                answer = {"predict": answer["predict"]}
            samples[str(row)] = {**source, **answer}
        write_json(path.with_stem(path.stem + name), samples)


def read_samples(path: Path) -> list[dict[str, str]]:
    """The label and the answer of each utterance, in their order."""
    samples = read_json(path, "ulm_prompt/sample.py")
    try:
        entries = [{key: entry[key] for key in ("label", "predict")} for entry in samples.values()]
    except (AttributeError, KeyError, TypeError):
        entries = []
    if not entries:
        raise UserError(
            f"{path}: expected id -> file_name, src, label, predict; run sample.py again"
        )
    return entries
