"""Input and output of predict.py: audio files from the command line, and answers as text."""

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
DIGITS = 6  # significant digits of a written probability
WIDEST = 40  # the most characters of a file name in the table


def check_sources(words: Sequence[str]) -> list[str]:
    """Return the files and folders to read; ``-`` is a list on standard input. Without ``words``,
    read a piped list. Raises ``UserError`` for a word that is not a file or folder with files.
    """
    has_list = sys.stdin is not None and (STDIN in words or not sys.stdin.isatty())
    words = list(words) or [STDIN]
    if STDIN in words and not has_list:
        raise UserError("no audio: name files or folders, or pipe in a list of files")
    for path in (Path(word) for word in words if word != STDIN):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path}: expected a file, found a pipe or device; save it, or use - for a list"
            )
        if next(stream([str(path)], Counter()), None) is None:
            raise UserError(f"{path}: this folder contains no files, except hidden files")
    return words


def batches(words: Sequence[str], size: int, skipped: Counter[str]) -> Iterator[list[Path]]:
    """Yield the files of ``stream`` in batches of at most ``size``; do not wait for slow lists."""
    batch: list[Path] = []
    for path in stream(words, skipped):
        if path is not None:
            batch.append(path)
        if batch and (path is None or len(batch) == size):
            yield batch
            batch = []
    if batch:
        yield batch


def stream(words: Sequence[str], skipped: Counter[str]) -> Iterator[Path | None]:
    """Yield every file, in the order of ``words``; the files of a folder by name, links followed.
    Yields None if the next name of a list may not have arrived. An unreadable folder is yielded
    itself. ``skipped`` counts hidden files, hidden folders, and folders that were already read.
    """
    for word in words:
        if word == STDIN:
            yield from listed(sys.stdin.buffer)
        elif not Path(word).is_dir():
            yield Path(word)
        else:
            yield from _files_in(word, skipped)


def _files_in(top: str, skipped: Counter[str]) -> Iterator[Path]:
    unreadable: list[str] = []
    seen: set[tuple[int, int]] = set()
    walk = os.walk(top, onerror=lambda error: unreadable.append(error.filename), followlinks=True)
    for root, folders, files in walk:
        status = Path(root).stat()
        if (identity := (status.st_dev, status.st_ino)) in seen:  # a link may lead back up
            skipped["folders already read"] += 1
            folders.clear()
            continue
        seen.add(identity)
        for kind, names in (("hidden files", files), ("hidden folders", folders)):
            visible = sorted(name for name in names if not name.startswith("."))
            skipped[kind] += len(names) - len(visible)
            names[:] = visible
        yield from (Path(root) / name for name in files)
    yield from map(Path, unreadable)


def listed(names: IO[bytes]) -> Iterator[Path | None]:
    """Yield the files of a list as they arrive, and None after each piece of the list. Names are
    one per line or end with NUL (``find -print0``). A byte order mark, Windows line ends and blank
    lines are ignored. Raises ``UserError`` for UTF-16.
    """
    rest, separator, piece = b"", b"", b"none yet"
    while piece:
        piece = names.read1(1 << 16)
        rest += piece
        if not separator and (b"\0" in rest or b"\n" in rest or not piece):
            if rest.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError("-: the list is UTF-16 text; save it as UTF-8")
            rest = rest.removeprefix(codecs.BOM_UTF8)
            separator = b"\0" if b"\0" in rest else b"\n"
        complete = rest.split(separator) if separator else [rest]
        rest = complete.pop() if piece else b""
        for name in complete:
            name = name.rstrip(b"\r") if separator == b"\n" else name
            if name.strip():
                yield Path(os.fsdecode(name))
        yield None


class Writer:
    """Writes answers as JSON lines, one per answer; with ``segments`` also start and end times."""

    def __init__(self, out: IO[str], records: Mapping[str, PromptRecord], segments: bool) -> None:
        self.out, self.records = out, records
        self.times = ("start", "end") if segments else ()

    def write(self, file: Path, answers: Answers, times: Sequence[float] = ()) -> None:
        """Write the answers of all tasks for ``file``, best first. ``times``: start and end of the
        segment, in seconds.
        """
        for task, ranked in answers.items():
            for rank, answer in enumerate(ranked, start=1):
                shares = answer.probability, *answer.label_probabilities
                probability, *label_shares = (float(f"{share:.{DIGITS}g}") for share in shares)
                entry = {
                    "file": str(file),
                    **{name: round(time, 3) for name, time in zip(self.times, times)},
                    "task": task,
                    "rank": rank,
                    "labels": list(answer.names),
                    "slots": list(answer.slots),
                    "probability": probability,
                    "label_probabilities": label_shares,
                }
                self.line(entry)

    def line(self, entry: dict[str, Any]) -> None:
        self.out.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Csv(Writer):
    """Writes a header and one line per answer. ``|`` separates the labels of an answer."""

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
    """Writes aligned columns: the answer, its probability, and the probability of each label."""

    _width = 0  # of the file column, set at the first answer

    def line(self, entry: dict[str, Any]) -> None:
        file, task, labels = entry["file"], entry["task"], entry["labels"]
        if not self._width:
            self._width = min(WIDEST, max(len("file") + 8, len(file) + 4))
            self._row("file", [f"{name:>8}" for name in self.times], "task", f"{'%':>5}", "answer")
        name = "".join(char if char.isprintable() else "?" for char in file)
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

    def _row(self, file: str, times: list[str], task: str, percent: str, answer: str) -> None:
        task = f"{task:{max(map(len, ('task', *self.records)))}}"
        self.out.write("  ".join([f"{file:{self._width}}", *times, task, percent, answer]) + "\n")


FORMATS: dict[str, type[Writer]] = {"table": Table, "jsonl": Writer, "csv": Csv}
