"""fairseq's own training loop, called in this process, with output that a person can read."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from pipeline.errors import UserError
from pipeline.ranks import Ranks, on_main

LAST = "checkpoint_last.pt"
USER_DIR = Path(__file__).resolve().parents[1] / "prompt_lm"
# what a person watching wants to see; everything goes to the log file
_LOGGERS = ("train_inner", "valid")
_MESSAGES = ("num. shared model params", "early stop", "Loaded checkpoint", "done training",
             "few-shot", "too long")  # fmt: skip


def train(flags: Sequence[object], save_dir: Path, log_dir: Path, here: Ranks) -> None:
    """Run fairseq-train with ``flags``; resume when ``save_dir`` holds a last checkpoint.

    The whole log goes to ``log_dir``/train.log, curves to TensorBoard there. Uses the GPU if there
    is one. Every rank calls this, within ``pipeline.ranks.process_group``; the main one writes.
    """
    import fairseq.trainer
    import fairseq_cli.train
    from fairseq import checkpoint_utils, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed import utils as distributed_utils

    import ulm_prompt.prompt_lm  # noqa: F401  (before fairseq imports it by its folder's name)
    from ulm_prompt.training.fairseq_patches import close_curves, write_whole_files

    if here.main:
        if not (save_dir / LAST).exists():
            (log_dir / "train.log").unlink(missing_ok=True)  # of a run that was removed
        log_dir.mkdir(parents=True, exist_ok=True)
    write_whole_files()
    fairseq.trainer.Trainer._log_oom = _out_of_memory
    _show_the_essential(log_dir / "train.log" if here.main else None)
    common = [
        "--user-dir", USER_DIR,
        "--save-dir", save_dir,
        "--tensorboard-logdir", log_dir,
        "--no-epoch-checkpoints",
        "--num-workers", 0,
        "--data-buffer-size", 2,
        *_distributed(here),
    ]  # fmt: skip
    if not torch.cuda.is_available():
        common.append("--cpu")
    # ranks send each other a resumed state as a torch file with this, a number, for each tensor
    torch.serialization.add_safe_globals([distributed_utils._TensorPlaceholder])
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [str(flag) for flag in (*flags, *common)])
    cfg = convert_namespace_to_omegaconf(args)
    cfg.common.tpu = False  # it takes --bf16 for a wish to run on a TPU
    # fairseq keeps the best score and the patience in its functions: forget an earlier run's
    vars(checkpoint_utils.save_checkpoint).clear()
    vars(fairseq_cli.train.should_stop_early).clear()
    if on_main(here, lambda: _is_finished(save_dir / LAST, cfg)):
        print(f"{save_dir}: this run has finished; nothing to train")
        return
    try:
        with _weights_only():
            distributed_utils.call_main(cfg, fairseq_cli.train.main)
    except FloatingPointError as error:
        if not here.main:
            sys.exit(1)  # every rank has the same gradients: one of them tells
        raise UserError(f"training diverged ({error}); lower the learning rate") from None
    finally:
        close_curves()


def _out_of_memory(_trainer: object, error: RuntimeError) -> None:
    """In place of fairseq's note of it, after which it would go on without that batch."""
    raise UserError(
        f"a batch does not fit into the GPU's memory ({str(error).splitlines()[0][:120]}); take a "
        "smaller batch_size or max_tokens, and update_freq as much larger, or dtype=bfloat16"
    ) from None


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """fairseq's own ``torch.load`` reads tensors and settings alone, whatever the environment
    says.
    """
    forced = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in forced}
    os.environ.update(forced)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _distributed(here: Ranks) -> list[object]:
    """fairseq's flags for this rank. It would guess: one rank for each GPU, none without a GPU."""
    flags: list[object] = ["--distributed-world-size", here.world]
    if here.world == 1:
        return flags
    return [
        *flags,
        "--distributed-rank", here.rank,
        "--device-id", here.local,
        "--distributed-init-method", "env://",
        "--distributed-no-spawn",
        "--distributed-backend", "nccl" if torch.cuda.is_available() else "gloo",
        "--ddp-backend", "legacy_ddp",  # torch's own needs GPUs, and a gradient for every vector
    ]  # fmt: skip


def _is_finished(last: Path, cfg: DictConfig) -> bool:
    """Whether the run has come to its end: fairseq itself looks only after one more update."""
    from pipeline.torch_files import load_torch

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
    limits = cfg.optimization.max_update, cfg.optimization.max_epoch, cfg.checkpoint.patience
    return any(
        reached >= limit > 0 for reached, limit in zip((updates, epochs, without_gain), limits)
    )


def _show_the_essential(log: Path | None) -> None:
    """Everything to ``log``; to the console no dumps of settings and modules, no third-party
    warnings. A rank without a log speaks of nothing.
    """
    from ulm_prompt.training.fairseq_patches import LogFile

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
