"""The files that fairseq writes while it trains: each whole, or an error that ends the training.

By itself it copies checkpoints in place, tries a failed write again behind what the first attempt
left, and logs past a full disk; TensorBoard's own thread dies of one, and training waits for it
for ever.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from pipeline.files import naming, replacing
from pipeline.torch_files import save_torch


def write_whole_files() -> None:
    """From here on fairseq's checkpoints appear whole, and its curves are written by its thread."""
    checkpoint_utils.torch_persistent_save = _save
    checkpoint_utils.PathManager = _Files
    progress_bar.SummaryWriter = CurveWriter


def close_curves() -> None:
    """fairseq keeps its curves' files open: the next run's curves would go there."""
    writers = list(progress_bar._tensorboard_writers.values())
    progress_bar._tensorboard_writers.clear()
    for writer in writers:
        writer.close()


def _save(value: Any, filename: str, async_write: bool = False) -> None:
    save_torch(value, Path(filename))


class _Files(PathManager):
    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        with replacing(Path(dst_path)) as temporary:
            shutil.copyfile(src_path, temporary)
        return True


class CurveWriter:
    """What fairseq asks of a TensorBoard writer: scalars and a text in ``folder``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        with naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._folder / "events"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(summary=summary.scalar(name, value), step=int(step)))

    def add_text(self, name: str, text: str) -> None:
        self._write(Event(summary=summary.text(name, text)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with naming(self._folder):
            self._events.write_event(event)

    def flush(self) -> None:
        with naming(self._folder):
            self._events.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._events.close()


class LogFile(logging.FileHandler):
    """A log that learning curves are read from: a line that cannot be written is an error."""

    def __init__(self, path: Path) -> None:
        """Go on with the log at ``path``, less a last line that was cut off."""
        self._path = path
        if path.exists():
            with naming(path), open(path, "r+b") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)
        super().__init__(path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        with naming(self._path):
            raise
