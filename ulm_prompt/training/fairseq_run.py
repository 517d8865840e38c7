"""fairseq's own training loop, called in this process, with output that a person can read."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fairseq_cli.train
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import DictConfig, OmegaConf

import ulm_prompt.prompt_lm  # noqa: F401  (registers our task, model, losses and optimizer)
from pipeline.devices import Ranks, choose_device, on_main
from pipeline.errors import UserError
from pipeline.files import naming
from pipeline.torch_files import load_torch
from ulm_prompt.prompt_data.prompt_record import LAST
from ulm_prompt.training.fairseq_patches import patched
from ulm_prompt.training.recipe import Settings

# what a person watching wants to see; everything goes to the log file
_LOGGERS = ("train_inner", "valid")
_MESSAGES = ("num. shared model params", "early stop", "Loaded checkpoint", "done training",
             "few-shot", "too long")  # fmt: skip


def train(
    knobs: Mapping[str, Any], settings: Settings, save_dir: Path, log_dir: Path, here: Ranks
) -> None:
    """Train by the recipe's ``knobs`` and by ``settings``; resume when ``save_dir`` holds a last
    checkpoint.

    The whole log goes to ``log_dir``/train.log, curves to TensorBoard there. Uses the GPU if there
    is one. Every rank calls this, within ``pipeline.devices.process_group``; the main one writes.
    """
    if here.main:
        if not (save_dir / LAST).exists():
            (log_dir / "train.log").unlink(missing_ok=True)  # of a run that was removed
        log_dir.mkdir(parents=True, exist_ok=True)
    _show_the_essential(log_dir / "train.log" if here.main else None)
    config = fairseq_config(knobs, settings, save_dir, log_dir, here)
    if on_main(here, lambda: _is_finished(save_dir / LAST, config)):
        print(f"{save_dir}: this run has finished; nothing to train")
        return
    try:
        with patched():
            distributed_utils.call_main(config, fairseq_cli.train.main)
    except FloatingPointError as error:
        if not here.main:
            sys.exit(1)  # every rank has the same gradients: one of them tells
        raise UserError(f"training diverged ({error}); lower the learning rate") from None


def fairseq_config(
    knobs: Mapping[str, Any], settings: Settings, save_dir: Path, log_dir: Path, here: Ranks
) -> DictConfig:
    """fairseq's config: each group takes the knobs that it has a field for, then the ``settings``
    of that group.
    """
    device, _ = choose_device()
    gpu = device.type == "cuda"
    # for this rank; fairseq would guess: one rank for each GPU, none without a GPU
    distributed: dict[str, Any] = {"distributed_world_size": here.world}
    if here.world > 1:
        distributed |= {
            "distributed_rank": here.rank,
            "device_id": here.local,
            "distributed_init_method": "env://",
            "distributed_no_spawn": True,
            "distributed_backend": "nccl" if gpu else "gloo",
            "ddp_backend": "legacy_ddp",  # torch's own needs GPUs, and every vector's gradient
        }
    ours = {
        "common": {"cpu": not gpu, "tensorboard_logdir": str(log_dir)},
        "checkpoint": {"save_dir": str(save_dir), "no_epoch_checkpoints": True},
        "dataset": {"num_workers": 0, "data_buffer_size": 2},
        "optimization": {},
        "distributed_training": distributed,
    }
    settings = OmegaConf.merge(settings, ours)
    knobs = {**knobs, "lr": [knobs["lr"]], "update_freq": [knobs["update_freq"]]}
    config = OmegaConf.structured(FairseqConfig)
    for group, values in settings.items():
        schema = OmegaConf.structured(_schema(group, values.get("_name")))
        taken = {name: knobs[name] for name in schema if name in knobs}
        config[group] = OmegaConf.merge(schema, taken, values)
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True, enum_to_str=True))
    OmegaConf.set_struct(config, True)
    return config


def _schema(group: str, name: str | None) -> type:
    """The dataclass of a group's settings: of what is registered by ``name``, or fairseq's one."""
    if group == "task":
        return TASK_DATACLASS_REGISTRY[name]
    if group == "model":
        return MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY.get(name, name)]
    if group in REGISTRIES:
        return REGISTRIES[group]["dataclass_registry"][name]
    return FairseqConfig.__dataclass_fields__[group].default


def _is_finished(last: Path, config: DictConfig) -> bool:
    """Whether the run has come to its end: fairseq itself looks only after one more update."""
    if not last.exists():
        return False
    state = load_torch(last)  # also before fairseq reads it: it may be anything
    try:
        updates = int(state["optimizer_history"][-1]["num_updates"])
        epochs = int(state["extra_state"]["train_iterator"]["epoch"]) - 1
        without_gain = int(state["extra_state"].get("UnitPromptTask", {}).get("num_runs", 0))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{last}: not a run's last checkpoint; choose a new --date, or remove the folder"
        ) from None
    reached = updates, epochs, without_gain
    optimization = config.optimization
    limits = optimization.max_update, optimization.max_epoch, config.checkpoint.patience
    return any(count >= limit > 0 for count, limit in zip(reached, limits))


class LogFile(logging.FileHandler):
    """A log that learning curves are read from: a line that cannot be written is an error."""

    def __init__(self, path: Path) -> None:
        """Append to the log at ``path``, without a last line that was cut off."""
        self._path = path
        if path.exists():
            with naming(path), open(path, "r+b") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)
        super().__init__(path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        with naming(self._path):
            raise


def _show_the_essential(log: Path | None) -> None:
    """Log everything to ``log``. The console gets no settings, modules or third-party warnings; a
    rank without a log prints nothing.
    """
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if log is not None:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        console.addFilter(_is_essential)
        file = LogFile(log)
        file.setFormatter(logging.Formatter("%(asctime)s | %(name)s | %(message)s"))
        handlers = [console, file]
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for noise in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", noise)


def _is_essential(record: logging.LogRecord) -> bool:
    return (
        record.levelno > logging.WARNING
        or record.name in _LOGGERS
        or record.getMessage().startswith(_MESSAGES)
    )
