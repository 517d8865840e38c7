"""The output of decoding: answers are written as they come, and the published JSON at the end.

While a run is under way its answers lie in ``<output>.part``, a JSON line each, under a first line
that says what they were made from. A killed run goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import naming, read_json, write_json

if TYPE_CHECKING:  # fairseq takes seconds to import
    from fairseq.data import Dictionary

    from ulm_prompt.prompt_lm.decoding import Decoded


BOS = "<s>"
WITHIN = "_within_labels"  # ends the name of the file decoded within the label set
DIGITS = 5  # of a stored log-probability
FORMAT = 2  # of a partial file; 1 kept every ``<s>`` in an answer
# to a row that is too long for the LM; it has no probability
NO_ANSWER: dict[str, Any] = {
    **{kind: {"predict": "", "score": None, "label_scores": []} for kind in ("free", "within")},
    "symbols": 0,
}


class PartialAnswers(Mapping[int, dict[str, Any]]):
    """The answers so far of one run: row number -> what was added for it, read from the file."""

    def __init__(self, path: Path, made_from: dict[str, Any]) -> None:
        """Go on with the file at ``path`` when it was ``made_from`` the same, else begin it anew.

        A last line that was cut off is dropped. Raises ``OSError`` when it cannot be written.
        """
        self.path = path
        self.done: dict[int, int] = {}  # row -> where its line begins
        header = (json.dumps({"format": FORMAT, **made_from}) + "\n").encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(path, "r+b" if path.exists() else "w+b")
        self._end = self._read(header)
        with naming(path):
            self._handle.truncate(self._end)
            if not self._end:
                self._write(header)

    def _read(self, header: bytes) -> int:
        """Take the whole lines of an earlier run; return how many bytes they are."""
        if self._handle.readline(len(header)) != header:
            return 0
        kept = len(header)
        for line in self._handle:
            row = _row(line)
            if row is None:
                break
            self.done[row] = kept
            kept += len(line)
        return kept

    def add(self, entries: dict[int, dict[str, Any]]) -> None:
        """Save the answers of one batch; they are safe from a kill when this returns."""
        with naming(self.path):
            for row, entry in entries.items():
                self.done[row] = self._end
                self._write((json.dumps({"row": row, **entry}) + "\n").encode())
            self._handle.flush()

    def _write(self, line: bytes) -> None:
        self._handle.seek(self._end)
        self._handle.write(line)
        self._end += len(line)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self._handle.seek(self.done[row])
        return json.loads(self._handle.readline())

    def __iter__(self) -> Iterator[int]:
        return iter(self.done)

    def __len__(self) -> int:
        return len(self.done)

    def remove(self) -> None:
        """The run is complete and its output written."""
        self._handle.close()
        self.path.unlink(missing_ok=True)


def _row(line: bytes) -> int | None:
    """The row whose answer the line holds; None for a line that was cut off or damaged."""
    try:
        row = json.loads(line)["row"] if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return row if type(row) is int else None


def entry(decoded: Decoded, dictionary: Dictionary) -> dict[str, Any]:
    """Both answers to a row as they are stored: label units, the log-probability that the LM gives
    them, and each one's share of it. ``symbols``: how many the free answer had.

    As published, ``<s>`` is no part of an answer: ``<s> 53`` is ``53``.
    """
    stored: dict[str, Any] = {"symbols": len(decoded.free.symbols)}
    for kind, answer in (("free", decoded.free), ("within", decoded.within)):
        scored = zip(answer.symbols, answer.scores)
        labels = [(symbol, score) for symbol, score in scored if symbol != dictionary.bos()]
        stored[kind] = {
            "predict": " ".join(dictionary[symbol] for symbol, _ in labels),
            "score": round(sum(score for _, score in labels), DIGITS),
            "label_scores": [round(score, DIGITS) for _, score in labels],
        }
    return stored


def write_samples(
    path: Path,
    sources: Iterable[dict[str, str]],
    answers: Mapping[int, dict[str, Any]],
    scored: bool,
) -> None:
    """Write the free answers to ``path`` and those within the label set beside it.

    ``sources``: file_name, src (units and ``<s>``, as published) and label of each row.
    ``answers``: row -> its ``entry``. The free file has the published four keys; its scores come
    after them only when ``scored``.
    """
    samples: dict[str, dict[str, Any]] = {}
    within: dict[str, dict[str, Any]] = {}
    for row, source in enumerate(sources):
        answer = answers[row]
        free = answer["free"] if scored else {"predict": answer["free"]["predict"]}
        samples[str(row)] = {**source, **free}
        within[str(row)] = {**source, **answer["within"]}
    write_json(path.with_stem(path.stem + WITHIN), within)
    write_json(path, samples)


def origin_path(samples: Path) -> Path:
    """Beside a sample file: what it was made from."""
    return samples.with_name(samples.name.replace("samples_", "made_from_", 1))


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a sample file says of each utterance, in its order. ``<s>`` is no part of an
    answer, also in files that were written when it was kept.

    Raises ``UserError`` where there is no label or no answer, and for a file without any.
    """
    expected = "expected id -> file_name, src, label, predict; run sample.py again"
    samples = read_json(path, "ulm_prompt/sample.py")
    if not samples:
        raise UserError(f"{path}: no utterance in it; {expected}")
    for name, sample in samples.items():
        if not isinstance(sample, dict) or not all(
            isinstance(sample.get(key), str) for key in ("label", "predict")
        ):
            raise UserError(f"{path}: {name[:60]!r}: {expected}")
        if BOS in sample["predict"]:
            sample["predict"] = " ".join(word for word in sample["predict"].split() if word != BOS)
        yield sample
