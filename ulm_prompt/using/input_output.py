"""What predict.py reads and writes: the audio files of its command line, and answers as text."""

from __future__ import annotations

import codecs
import csv
import json
import os
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import UserError
from ulm_prompt.prompt_data.label_names import text_of
from ulm_prompt.prompt_data.prompt_record import PromptRecord

if TYPE_CHECKING:
    from ulm_prompt.using.predictor import Prediction

STDIN = "-"
DIGITS = 6  # of a written probability
WIDEST = 40  # characters of a file's name in the table

Times = tuple[float, float]  # start and end of a segment, seconds


def check_sources(words: Sequence[str]) -> list[str]:
    """The files and folders to read; ``-`` stands for a list on standard input, and so does
    nothing when something is piped in.

    Raises ``UserError`` for a name that does not exist, a pipe or device, an empty folder, or no
    audio at all.
    """
    words = list(words)
    if not words:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("no audio: name files or folders, or pipe in a list of them")
        words = [STDIN]
    if words.count(STDIN) > 1:
        raise UserError("-: standard input can be read once")
    if STDIN in words and sys.stdin is None:
        raise UserError("-: standard input is closed; pipe in a list of files")
    for word in words:
        if word == STDIN:
            continue
        if not Path(word).exists():
            raise UserError(f"{word}: no such file or folder")
        if not (Path(word).is_file() or Path(word).is_dir()):
            raise UserError(
                f"{word}: a pipe or device, expected a file; save it first, or name - for a list"
            )
        if next(stream([word]), None) is None:
            raise UserError(f"{word}: no files in this folder, but for hidden ones")
    return words


def stream(words: Sequence[str], passed_over: Counter[str] | None = None) -> Iterator[Path]:
    """Every file, in the order of ``words``; a folder's by name. A name does not tell audio:
    reading it does. Nothing is kept in memory but the folders' identities.

    Links are followed. ``passed_over`` counts what is left out: hidden files and folders, and
    folders that were read already. A folder that cannot be read is given as a file is.
    """
    for word in words:
        if word == STDIN:
            # not sys.stdin: leaving while a thread waits in it ends with a "fatal error"
            with open(0, "rb", closefd=False) as names:
                yield from listed(names)
        elif not Path(word).is_dir():
            yield Path(word)
        else:
            yield from _inside(Path(word), Counter() if passed_over is None else passed_over)


def _inside(top: Path, passed_over: Counter[str]) -> Iterator[Path]:
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


def listed(names: IO[bytes]) -> Iterator[Path]:
    """The files of a list as they arrive: a name a line, or names that end with NUL (``find
    -print0``). A byte order mark, Windows' line ends and blank lines are no part of a name.

    Raises ``UserError`` for UTF-16 and for names of both kinds.
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
            if b"\0" in name:
                raise UserError("-: some names end with a line, others with NUL; choose one way")
            name = name.rstrip(b"\r") if end == b"\n" else name
            if name.strip():
                yield Path(os.fsdecode(name))


def on_a_line(path: Path) -> str:
    """The name with line breaks and terminal controls as escapes; the bytes of others stay."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda sign: ascii(sign[0])[1:-1], str(path))


def as_they_arrive(paths: Iterable[Path], most: int) -> Iterator[list[Path]]:
    """Batches of the paths that have arrived, at most ``most``: the first path never waits.

    A thread reads ahead by two batches. An error of ``paths`` is raised here.
    """
    arrived: queue.Queue[Path | BaseException | None] = queue.Queue(2 * most)

    def read() -> None:
        try:
            for path in paths:
                arrived.put(path)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch = [arrived.get()]
        while len(batch) < most and isinstance(batch[-1], Path) and not arrived.empty():
            batch.append(arrived.get())
        last = batch[-1]
        if good := batch if isinstance(last, Path) else batch[:-1]:
            yield good
        if last is None:
            return
        if isinstance(last, BaseException):
            raise last


class Writer:
    """Writes the answers to one utterance after another: files, or segments of files."""

    def __init__(
        self, out: IO[str], records: Mapping[str, PromptRecord], segments: bool = False
    ) -> None:
        self.out, self.records, self.segments = out, records, segments

    def write(
        self, file: Path, answers: Mapping[str, Sequence[Prediction]], times: Times | None = None
    ) -> None:
        """Write the answers of all tasks to ``file``, or to its segment, best first."""
        for task, ranked in answers.items():
            for rank, answer in enumerate(ranked, start=1):
                probability, *of_labels = (
                    float(f"{share:.{DIGITS}g}")
                    for share in (answer.probability, *answer.label_probabilities)
                )
                entry = {
                    "file": str(file),
                    **{name: round(time, 3) for name, time in zip(("start", "end"), times or ())},
                    "task": task,
                    "rank": rank,
                    "labels": list(answer.names),
                    "slots": list(answer.slots),
                    "probability": probability,
                    "label_probabilities": of_labels,
                }
                self.line(entry)

    def line(self, entry: dict[str, Any]) -> None:
        """Write one answer: here an object a line."""
        self.out.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Csv(Writer):
    """A header and a line an answer; several labels are separated by ``|``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        times = ["start", "end"] if self.segments else []
        columns = ["task", "rank", "labels", "probability", "label_probabilities"]
        self._table = csv.DictWriter(
            self.out, ["file", *times, *columns], extrasaction="ignore", lineterminator="\n"
        )
        self._table.writeheader()

    def line(self, entry: dict[str, Any]) -> None:
        lists = ("labels", "label_probabilities")
        self._table.writerow(entry | {name: "|".join(map(str, entry[name])) for name in lists})


class Table(Writer):
    """Aligned columns; the answer with its probability, and each label with its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._width = 0  # of the column of files, once the first name is known
        self._task = max(map(len, ("task", *self.records)))

    def line(self, entry: dict[str, Any]) -> None:
        file, task = entry["file"], entry["task"]
        if not self._width:
            self._width = min(WIDEST, max(len("file") + 8, len(file) + 4))
            head = f"{'start':>8}  {'end':>8}  " if self.segments else ""
            head += f"{'task':{self._task}}  {'%':>5}  answer"
            self.out.write(f"{'file':{self._width}}  {head}\n")
        name = "".join(sign if sign.isprintable() else "?" for sign in file)
        name = name if entry["rank"] == 1 else ""
        if len(name) > self._width:
            name = "..." + name[3 - self._width :]
        times = "".join(f"{entry[name]:8.2f}  " for name in ("start", "end") if name in entry)
        percent = f"{100 * entry['probability']:5.1f}"
        labels = entry["labels"]
        if self.records[task].is_text:
            text = text_of(labels)
        elif len(labels) == 1:
            text = labels[0]
        else:  # the percentage of each
            shares = zip(labels, entry["label_probabilities"])
            text = "  ".join(f"{label} ({100 * share:.1f})" for label, share in shares)
        self.out.write(f"{name:{self._width}}  {times}{task:{self._task}}  {percent}  {text}\n")


FORMATS: dict[str, type[Writer]] = {"table": Table, "jsonl": Writer, "csv": Csv}
