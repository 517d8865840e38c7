"""What predict.py reads and writes: the audio files of its command line, and answers as text."""

from __future__ import annotations

import csv
import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import UserError
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

    Raises ``UserError`` for a name that does not exist, an empty folder, or no audio at all.
    """
    words = list(words)
    if not words:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("no audio: name files or folders, or pipe in a list of them")
        words = [STDIN]
    if words.count(STDIN) > 1:
        raise UserError("-: standard input can be read once")
    for word in words:
        if word != STDIN and not Path(word).exists():
            raise UserError(f"{word}: no such file or folder")
        if word != STDIN and next(stream([word]), None) is None:
            raise UserError(f"{word}: no files in this folder, but for hidden ones")
    return words


def stream(words: Sequence[str]) -> Iterator[Path]:
    """Every file, in the order of ``words``; a folder's by name, without the hidden ones. A name
    does not tell audio: reading it does. Nothing is kept in memory.
    """
    for word in words:
        if word == STDIN:
            # not sys.stdin: leaving while a thread waits in it ends with a "fatal error"
            with open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
                yield from (Path(line.rstrip("\r\n")) for line in lines if line.strip())
        elif not Path(word).is_dir():
            yield Path(word)
        else:
            for root, folders, files in os.walk(word):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                yield from (Path(root) / name for name in sorted(files) if name[0] != ".")


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
            name = "…" + name[1 - self._width :]
        times = "".join(f"{entry[name]:8.2f}  " for name in ("start", "end") if name in entry)
        percent = f"{100 * entry['probability']:5.1f}"
        labels = entry["labels"]
        if self.records[task].is_text:
            text = "".join(label if len(label) == 1 else f"[{label}]" for label in labels)
        elif len(labels) == 1:
            text = labels[0]
        else:  # the percentage of each
            shares = zip(labels, entry["label_probabilities"])
            text = "  ".join(f"{label} ({100 * share:.1f})" for label, share in shares)
        self.out.write(f"{name:{self._width}}  {times}{task:{self._task}}  {percent}  {text}\n")


FORMATS: dict[str, type[Writer]] = {"table": Table, "jsonl": Writer, "csv": Csv}
