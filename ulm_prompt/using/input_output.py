"""What predict.py reads and writes: the audio files of its command line, and answers as text."""

from __future__ import annotations

import codecs
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import text_of
from ulm_prompt.prompt_data.prompt_record import PromptRecord

if TYPE_CHECKING:
    from ulm_prompt.using.predictor import Answers

STDIN = "-"
DIGITS = 6  # of a written probability
WIDEST = 40  # characters of a file's name in the table


def check_sources(words: Sequence[str]) -> list[str]:
    """The files and folders to read, or ``-``: a list on standard input, as nothing is when
    something is piped in. Raises ``UserError`` for what holds no audio.
    """
    is_open = sys.stdin is not None and (STDIN in words or not sys.stdin.isatty())
    words = list(words) or [STDIN]
    if STDIN in words and not is_open:
        raise UserError("no audio: name files or folders, or pipe in a list of them")
    for path in (Path(word) for word in words if word != STDIN):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path}: a pipe or device, expected a file; save it first, or name - for a list"
            )
        if next(stream([str(path)], Counter()), None) is None:
            raise UserError(f"{path}: no files in this folder, but for hidden ones")
    return words


def batches(words: Sequence[str], most: int, passed_over: Counter[str]) -> Iterator[list[Path]]:
    """Every file of ``stream``, at most ``most`` together; a name of a list waits for no other."""
    batch: list[Path] = []
    for path in stream(words, passed_over):
        if path is not None:
            batch.append(path)
        if batch and (path is None or len(batch) == most):
            yield batch
            batch = []
    if batch:
        yield batch


def stream(words: Sequence[str], passed_over: Counter[str]) -> Iterator[Path | None]:
    """Every file, in the order of ``words``; a folder's by name, links followed. None: the next
    name of a list may not have arrived. A folder that cannot be read is given as a file is.

    ``passed_over`` counts hidden files and folders, and folders that were read already.
    """
    for word in words:
        if word == STDIN:
            yield from listed(sys.stdin.buffer)
        elif not Path(word).is_dir():
            yield Path(word)
        else:
            yield from _inside(word, passed_over)


def _inside(top: str, passed_over: Counter[str]) -> Iterator[Path]:
    unreadable: list[str] = []
    seen: set[tuple[int, int]] = set()
    walk = os.walk(top, onerror=lambda error: unreadable.append(error.filename), followlinks=True)
    for root, folders, files in walk:
        status = Path(root).stat()
        if (identity := (status.st_dev, status.st_ino)) in seen:  # a link may lead back up
            passed_over["folders read already"] += 1
            folders.clear()
            continue
        seen.add(identity)
        for kind, names in (("hidden files", files), ("hidden folders", folders)):
            shown = sorted(name for name in names if not name.startswith("."))
            passed_over[kind] += len(names) - len(shown)
            names[:] = shown
        yield from (Path(root) / name for name in files)
    yield from map(Path, unreadable)


def listed(names: IO[bytes]) -> Iterator[Path | None]:
    """The files of a list as they arrive, then None: a name a line, or names that end with NUL
    (``find -print0``), without a byte order mark, Windows' line ends and blank lines.
    Raises ``UserError`` for UTF-16.
    """
    left, end, piece = b"", b"", b"none yet"
    while piece:
        piece = names.read1(1 << 16)
        left += piece
        if not end and (b"\0" in left or b"\n" in left or not piece):
            if left.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError("-: the list is UTF-16 text; save it as UTF-8")
            left = left.removeprefix(codecs.BOM_UTF8)
            end = b"\0" if b"\0" in left else b"\n"
        whole = left.split(end) if end else [left]
        left = whole.pop() if piece else b""
        for name in whole:
            name = name.rstrip(b"\r") if end == b"\n" else name
            if name.strip():
                yield Path(os.fsdecode(name))
        yield None


class Writer:
    """Writes the answers to files, or to ``segments`` of files: a JSON object a line."""

    def __init__(self, out: IO[str], records: Mapping[str, PromptRecord], segments: bool) -> None:
        self.out, self.records = out, records
        self.times = ("start", "end") if segments else ()

    def write(self, file: Path, answers: Answers, times: Sequence[float] = ()) -> None:
        """Write the answers of all tasks to ``file``, best first; ``times``: start and end of its
        segment, in seconds.
        """
        for task, ranked in answers.items():
            for rank, answer in enumerate(ranked, start=1):
                shares = answer.probability, *answer.label_probabilities
                probability, *of_labels = (float(f"{share:.{DIGITS}g}") for share in shares)
                entry = {
                    "file": str(file),
                    **{name: round(time, 3) for name, time in zip(self.times, times)},
                    "task": task,
                    "rank": rank,
                    "labels": list(answer.names),
                    "slots": list(answer.slots),
                    "probability": probability,
                    "label_probabilities": of_labels,
                }
                self.line(entry)

    def line(self, entry: dict[str, Any]) -> None:
        self.out.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Csv(Writer):
    """A header and a line an answer; several labels are separated by ``|``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        columns = "task", "rank", "labels", "probability", "label_probabilities"
        names = ["file", *self.times, *columns]
        self._table = csv.DictWriter(self.out, names, extrasaction="ignore", lineterminator="\n")
        self._table.writeheader()

    def line(self, entry: dict[str, Any]) -> None:
        lists = ("labels", "label_probabilities")
        self._table.writerow(entry | {name: "|".join(map(str, entry[name])) for name in lists})


class Table(Writer):
    """Aligned columns; the answer with its probability, and each label with its own."""

    _width = 0  # of the column of files, once the first name is known

    def line(self, entry: dict[str, Any]) -> None:
        file, task, labels = entry["file"], entry["task"], entry["labels"]
        if not self._width:
            self._width = min(WIDEST, max(len("file") + 8, len(file) + 4))
            self._row("file", [f"{name:>8}" for name in self.times], "task", f"{'%':>5}", "answer")
        name = "".join(sign if sign.isprintable() else "?" for sign in file)
        if len(name) > self._width:
            name = "..." + name[3 - self._width :]
        if self.records[task].is_text:
            text = text_of(labels)
        elif len(labels) == 1:
            text = labels[0]
        else:
            shares = zip(labels, entry["label_probabilities"])
            text = "  ".join(f"{label} ({100 * share:.1f})" for label, share in shares)
        times = [f"{entry[name]:8.2f}" for name in self.times]
        percent = f"{100 * entry['probability']:5.1f}"
        self._row(name if entry["rank"] == 1 else "", times, task, percent, text)

    def _row(self, file: str, times: list[str], task: str, *others: str) -> None:
        task = f"{task:{max(map(len, ('task', *self.records)))}}"
        self.out.write("  ".join([f"{file:{self._width}}", *times, task, *others]) + "\n")


FORMATS: dict[str, type[Writer]] = {"table": Table, "jsonl": Writer, "csv": Csv}
