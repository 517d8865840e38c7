"""Call fairseq's own training loop in this process, with output that people can read. While it
trains, these functions of fairseq and other libraries are changed:

- ``checkpoint_utils.torch_persistent_save`` and ``PathManager.copy`` write a checkpoint in place.
  Ours write a temporary file and rename it.
- ``progress_bar.SummaryWriter`` writes curves in its own thread. On a full disk the thread dies and
  training waits for ever. Ours writes in the caller's thread, and an error ends training.
- ``progress_bar._tensorboard_writers`` stay open, so they would also get the next run's curves.
  Ours are closed after training.
- ``Trainer._log_oom`` continues without the batch that did not fit. Ours ends training.
- ``torch.load`` obeys environment variables. Here it always reads tensors and settings only.
- ``np.compat.long`` was removed in numpy 2, but two of fairseq's datasets still use it.
- ``DictConfig`` looks for interpolations at every access, 60 times per update. Ours returns a
  number as it is.
- ``torch.manual_seed``, called for each update, also queues the seed, with a traceback, for a GPU
  that does not exist. Without a GPU, ours seeds only the CPU.
- ``torch.optim.Optimizer`` imports torch's compiler, for a second, only to be excluded by it.
- ``save_checkpoint.best`` and ``should_stop_early``'s counters outlive a run. They are reset.

More changes are in prompt_lm/task.py (the optimizer, the counters of early stopping) and in
pipeline/torch_files.py (what ``torch.load`` accepts, and a faster import of fairseq).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fairseq_cli.train
import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.optim.lr_scheduler import (  # noqa: F401  (the import registers them)
    cosine_lr_scheduler,
    fixed_schedule,
    inverse_square_root_schedule,
)
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from fairseq.trainer import Trainer
from omegaconf import DictConfig, OmegaConf, ValueNode
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from torch.optim import Optimizer

import ulm_prompt.prompt_lm  # noqa: F401  (registers our task, model, losses and optimizer)
from pipeline.devices import Ranks, choose_device, on_main
from pipeline.errors import UserError
from pipeline.files import naming, replacing
from pipeline.torch_files import load_torch, save_torch
from ulm_prompt.prompt_data.prompt_record import LAST
from ulm_prompt.training.recipe import Settings

# the loggers and messages that the console shows; the log file gets everything
_LOGGERS = ("train_inner", "valid")
_MESSAGES = ("num. shared model params", "early stop", "Loaded checkpoint", "done training",
             "few-shot", "too long")  # fmt: skip
_WEIGHTS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}


def train(
    knobs: Mapping[str, Any], settings: Settings, save_dir: Path, log_dir: Path, here: Ranks
) -> None:
    """Train with the recipe's ``knobs`` and fairseq's ``settings``, on the GPU if there is one.
    Resumes if ``save_dir`` contains a last checkpoint. Writes the log and curves to ``log_dir``.
    All ranks call this within ``pipeline.devices.process_group``; only the main rank writes.
    """
    if here.main:
        if not (save_dir / LAST).exists():
            (log_dir / "train.log").unlink(missing_ok=True)  # the log of a removed run
        log_dir.mkdir(parents=True, exist_ok=True)
    _set_up_logging(log_dir / "train.log" if here.main else None)
    config = fairseq_config(knobs, settings, save_dir, log_dir, here)
    if on_main(here, lambda: _reached_limit(save_dir / LAST, config)):  # fairseq trains once more
        print(f"{save_dir}: this run has finished; nothing to train")
        return
    try:
        with patched():
            distributed_utils.call_main(config, fairseq_cli.train.main)
    except FloatingPointError as error:
        if not here.main:
            sys.exit(1)  # all ranks fail alike; the main rank reports it
        raise UserError(f"training diverged ({error}); lower the learning rate") from None


def fairseq_config(
    knobs: Mapping[str, Any], settings: Settings, save_dir: Path, log_dir: Path, here: Ranks
) -> DictConfig:
    """Return fairseq's config. Each group takes the knobs that it knows, then its ``settings``."""
    gpu = choose_device()[0].type == "cuda"
    # for this rank; fairseq itself would assume one rank per GPU, and none without a GPU
    distributed: dict[str, Any] = {"distributed_world_size": here.world}
    if here.world > 1:
        distributed |= {
            "distributed_rank": here.rank,
            "device_id": here.local,
            "distributed_init_method": "env://",
            "distributed_no_spawn": True,
            "distributed_backend": "nccl" if gpu else "gloo",
            "ddp_backend": "legacy_ddp",  # torch's own needs GPUs and a gradient per vector
        }
    ours = {
        "common": {"cpu": not gpu, "tensorboard_logdir": str(log_dir)},
        "checkpoint": {"save_dir": str(save_dir), "no_epoch_checkpoints": True},
        "dataset": {"num_workers": 0, "data_buffer_size": 2},
        "optimization": {},
        "distributed_training": distributed,
    }
    knobs = {**knobs, "lr": [knobs["lr"]], "update_freq": [knobs["update_freq"]]}
    config = OmegaConf.structured(FairseqConfig)
    for group, values in OmegaConf.merge(settings, ours).items():
        schema = OmegaConf.structured(_schema(group, values.get("_name")))
        taken = {name: knobs[name] for name in schema if name in knobs}
        config[group] = OmegaConf.merge(schema, taken, values)
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True, enum_to_str=True))
    OmegaConf.set_struct(config, True)
    return config


def _schema(group: str, name: str | None) -> type:
    """Return the dataclass of a group's settings: as registered by ``name``, or fairseq's own."""
    registries = {kind: entry["dataclass_registry"] for kind, entry in REGISTRIES.items()}
    registries |= {"task": TASK_DATACLASS_REGISTRY, "model": MODEL_DATACLASS_REGISTRY}
    if group in registries:
        return registries[group][ARCH_MODEL_NAME_REGISTRY.get(name, name)]
    return FairseqConfig.__dataclass_fields__[group].default


def _reached_limit(last: Path, config: DictConfig) -> bool:
    """Return whether training reached a limit. The run's prompt.json may still be incomplete."""
    if not last.exists():
        return False
    state = load_torch(last)  # fairseq reads it later, unchecked: it may be any file
    try:
        updates = int(state["optimizer_history"][-1]["num_updates"])
        epochs = int(state["extra_state"]["train_iterator"]["epoch"]) - 1
        stale_epochs = int(state["extra_state"].get("UnitPromptTask", {}).get("num_runs", 0))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{last}: not a run's last checkpoint; choose a new --date, or remove the folder"
        ) from None
    reached = updates, epochs, stale_epochs
    optimization = config.optimization
    limits = optimization.max_update, optimization.max_epoch, config.checkpoint.patience
    return any(count >= limit > 0 for count, limit in zip(reached, limits))


class LogFile(logging.FileHandler):
    """A log file with the learning curves, so that a line that cannot be written is an error."""

    def __init__(self, path: Path) -> None:
        """Append to the log at ``path``, after removing a last line that was cut off."""
        self._path = path
        if path.exists():
            with naming(path), open(path, "r+b") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)
        super().__init__(path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        with naming(self._path):
            raise


def _set_up_logging(log: Path | None) -> None:
    """Log everything to ``log`` and the essential to the console. Without ``log``, log nothing."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if log is not None:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        console.addFilter(_is_essential)
        file = LogFile(log)
        file.setFormatter(logging.Formatter("%(asctime)s | %(name)s | %(message)s"))
        handlers = [console, file]
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)


def _is_essential(record: logging.LogRecord) -> bool:
    is_ours = record.name in _LOGGERS or record.getMessage().startswith(_MESSAGES)
    return is_ours or record.levelno > logging.WARNING


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Apply the changes that the module's docstring lists, while the block runs."""
    vars(checkpoint_utils.save_checkpoint).clear()
    vars(fairseq_cli.train.should_stop_early).clear()
    # ranks exchange a resumed state as a torch file, with this placeholder for each tensor
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder])
    with (
        mock.patch.dict(os.environ, _WEIGHTS_ONLY),
        mock.patch.object(checkpoint_utils, "torch_persistent_save", _save_whole),
        mock.patch.object(checkpoint_utils, "PathManager", _WholeFiles),
        mock.patch.object(progress_bar, "SummaryWriter", CurveWriter),
        mock.patch.object(Trainer, "_log_oom", _out_of_memory),
        mock.patch.object(np, "compat", SimpleNamespace(long=int), create=True),
        mock.patch.object(DictConfig, "__getattr__", _setting),
        contextlib.ExitStack() as stack,
    ):
        if not torch.cuda.is_available():
            seed = torch.default_generator.manual_seed
            stack.enter_context(mock.patch.object(torch, "manual_seed", seed))
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
            method = getattr(Optimizer, name).__wrapped__
            uncompiled = mock.patch.object(method, "__dynamo_disable", method, create=True)
            stack.enter_context(uncompiled)
        try:
            yield
        finally:
            while progress_bar._tensorboard_writers:
                progress_bar._tensorboard_writers.popitem()[1].close()


_original_getattr = DictConfig.__getattr__


def _setting(config: DictConfig, name: str) -> Any:
    content = config.__dict__["_content"]
    node = content.get(name) if isinstance(content, dict) else None
    if type(node) is DictConfig:
        return node
    value = node._val if isinstance(node, ValueNode) else None
    return value if isinstance(value, (int, float)) else _original_getattr(config, name)


def _save_whole(value: Any, filename: str, async_write: bool = False) -> None:
    save_torch(value, Path(filename))


class _WholeFiles(PathManager):
    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        with replacing(Path(dst_path)) as temporary:
            shutil.copyfile(src_path, temporary)
        return True


class CurveWriter:
    """The part of ``SummaryWriter`` that fairseq uses: scalars and texts, written to ``folder``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        with naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._folder / "events"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(summary.scalar(name, value), int(step))

    def add_text(self, name: str, text: str) -> None:
        self._write(summary.text(name, text), 0)

    def _write(self, value: Any, step: int) -> None:
        with naming(self._folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=value))

    def flush(self) -> None:
        with naming(self._folder):
            self._events.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._events.close()


def _out_of_memory(_trainer: Trainer, error: RuntimeError) -> None:
    raise UserError(
        f"a batch does not fit into the GPU's memory ({str(error).splitlines()[0][:120]}); lower "
        "batch_size or max_tokens and raise update_freq by the same factor, or set dtype=bfloat16"
    ) from None
