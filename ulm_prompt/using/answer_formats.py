"""Answers as text: an aligned table for people, JSON lines or CSV for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ulm_prompt.using.prompt_record import PromptRecord

if TYPE_CHECKING:
    from ulm_prompt.using.predictor import Prediction


DIGITS = 6  # that count, of a written probability
Times = tuple[float, float]  # start and end of a segment, seconds
WIDEST = 40  # of the table's column of files


class Writer:
    """Writes one utterance after another to ``out``: files, or segments of files."""

    def __init__(
        self, out: IO[str], records: Mapping[str, PromptRecord], segments: bool = False
    ) -> None:
        self.out, self.records, self.segments = out, records, segments
        self.times: Times | None = None  # of the segment that is written
        self.begin()

    def begin(self) -> None:
        """Write what stands before the first answer."""

    def write(
        self, file: Path, answers: Mapping[str, Sequence[Prediction]], times: Times | None = None
    ) -> None:
        """Write the answers of all tasks to ``file``, or to its segment, best first."""
        self.times = times
        for task, of_task in answers.items():
            for rank, answer in enumerate(of_task, start=1):
                self.line(str(file), task, rank, answer)

    def line(self, file: str, task: str, rank: int, answer: Prediction) -> None:
        """Write one answer."""
        raise NotImplementedError


class JsonLines(Writer):
    """An object a line."""

    def line(self, file: str, task: str, rank: int, answer: Prediction) -> None:
        entry = {
            "file": file,
            **(dict(zip(("start", "end"), _rounded_times(self.times))) if self.times else {}),
            "task": task,
            "rank": rank,
            "labels": list(answer.names),
            "slots": list(answer.slots),
            "probability": _rounded(answer.probability),
            "label_probabilities": list(map(_rounded, answer.label_probabilities)),
        }
        self.out.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Csv(Writer):
    """A header and a line an answer; several labels are separated by ``|``."""

    def begin(self) -> None:
        times = ["start", "end"] if self.segments else []
        self._table = csv.writer(self.out, lineterminator="\n")
        self._table.writerow(
            ["file", *times, "task", "rank", "labels", "probability", "label_probabilities"]
        )

    def line(self, file: str, task: str, rank: int, answer: Prediction) -> None:
        shares = "|".join(str(_rounded(each)) for each in answer.label_probabilities)
        names = "|".join(answer.names)
        times = _rounded_times(self.times) if self.times else ()
        probability = _rounded(answer.probability)
        self._table.writerow([file, *times, task, rank, names, probability, shares])


class Table(Writer):
    """Aligned columns; the answer with its probability, and each label with its own."""

    def begin(self) -> None:
        self._file = 0  # the column's width, once the first name is known
        self._task = max(len("task"), *map(len, self.records))

    def write(
        self, file: Path, answers: Mapping[str, Sequence[Prediction]], times: Times | None = None
    ) -> None:
        if not self._file:
            self._file = min(WIDEST, max(len("file") + 8, len(str(file)) + 4))
            head = f"{'start':>8}  {'end':>8}  " if self.segments else ""
            head += f"{'task':{self._task}}  {'%':>5}  answer"
            self.out.write(f"{'file':{self._file}}  {head}\n")
        super().write(file, answers, times)

    def line(self, file: str, task: str, rank: int, answer: Prediction) -> None:
        first = "".join(each if each.isprintable() else "?" for each in file) * (rank == 1)
        if len(first) > self._file:
            first = "…" + first[1 - self._file :]
        shown = text_of(answer, self.records[task])
        percent = f"{100 * answer.probability:5.1f}"
        seconds = "".join(f"{time:8.2f}  " for time in self.times or ())
        self.out.write(f"{first:{self._file}}  {seconds}{task:{self._task}}  {percent}  {shown}\n")


def _rounded(probability: float) -> float:
    return float(f"{probability:.{DIGITS}g}")


def _rounded_times(times: Times) -> list[float]:
    return [round(time, 3) for time in times]


def text_of(answer: Prediction, record: PromptRecord) -> str:
    """A text as it reads; labels with the percentage of each, where there are several."""
    if record.is_text:
        return "".join(name if len(name) == 1 else f"[{name}]" for name in answer.names)
    if len(answer.names) == 1:
        return answer.names[0]
    shares = zip(answer.names, answer.label_probabilities)
    return "  ".join(f"{name} ({100 * share:.1f})" for name, share in shares)


FORMATS: dict[str, type[Writer]] = {"table": Table, "jsonl": JsonLines, "csv": Csv}
