"""Every change to fairseq's own functions while it trains here, with the reason.

- ``checkpoint_utils.torch_persistent_save`` writes a checkpoint in place, and tries a failed write
  again behind what the first attempt left. Here it writes beside it and renames.
- ``checkpoint_utils.PathManager.copy`` copies one checkpoint over another in place. The same.
- ``progress_bar.SummaryWriter`` writes TensorBoard's curves in a thread of its own. On a full disk
  the thread dies and training waits for ever. Here the caller writes, and an error ends training.
- ``progress_bar._tensorboard_writers`` stay open: the next run's curves would go into this run's.
- ``Trainer._log_oom`` notes that memory was full, and training continues without that batch.
  Here it ends training.
- ``torch.load`` in ``checkpoint_utils`` reads whatever the environment says. Here it reads tensors
  and settings alone.
- ``np.compat.long`` is gone from numpy 2; two of fairseq's datasets still ask for it.
- ``checkpoint_utils.save_checkpoint.best`` and ``should_stop_early``'s counters outlive a run.

Two more are by subclass, in prompt_lm/task.py: ``PromptAdam``, and the counters of early stopping
that a resumed run would forget. pipeline/torch_files.py lists fairseq's classes that ``torch.load``
accepts, and imports fairseq without the packages that only other tasks' scores need.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fairseq_cli.train
import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq.trainer import Trainer
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from pipeline.errors import UserError
from pipeline.files import naming, replacing
from pipeline.torch_files import save_torch

_WEIGHTS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Let fairseq train with these changes while the block runs."""
    vars(checkpoint_utils.save_checkpoint).clear()
    vars(fairseq_cli.train.should_stop_early).clear()
    # ranks send each other a resumed state as a torch file, with this number for each tensor
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder])
    patches = [
        (checkpoint_utils, "torch_persistent_save", save_whole),
        (checkpoint_utils, "PathManager", WholeFiles),
        (progress_bar, "SummaryWriter", CurveWriter),
        (Trainer, "_log_oom", _out_of_memory),
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(_close_curves)
        stack.enter_context(mock.patch.dict(os.environ, _WEIGHTS_ONLY))
        for owner, name, ours in patches:
            stack.enter_context(mock.patch.object(owner, name, ours))
        no_compat = mock.patch.object(np, "compat", SimpleNamespace(long=int), create=True)
        stack.enter_context(no_compat)
        yield


def _close_curves() -> None:
    while progress_bar._tensorboard_writers:
        progress_bar._tensorboard_writers.popitem()[1].close()


def save_whole(value: Any, filename: str, async_write: bool = False) -> None:
    """In place of ``torch_persistent_save``."""
    save_torch(value, Path(filename))


class WholeFiles(PathManager):
    """In place of ``PathManager``, as checkpoints are copied."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        with replacing(Path(dst_path)) as temporary:
            shutil.copyfile(src_path, temporary)
        return True


class CurveWriter:
    """In place of ``SummaryWriter``: what fairseq asks of it, scalars and a text in ``folder``."""

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


def _out_of_memory(_trainer: Trainer, error: RuntimeError) -> None:
    """In place of ``Trainer._log_oom``."""
    raise UserError(
        f"a batch does not fit into the GPU's memory ({str(error).splitlines()[0][:120]}); take a "
        "smaller batch_size or max_tokens, and update_freq as much larger, or dtype=bfloat16"
    ) from None
