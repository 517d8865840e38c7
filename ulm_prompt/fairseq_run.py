"""fairseq's own training loop, called in this process, with output that a person can read."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

USER_DIR = Path(__file__).resolve().parent / "prompt_lm"
# what a person watching wants to see; everything goes to the log file
_LOGGERS = ("train_inner", "valid")
_MESSAGES = ("num. shared model params", "early stop", "Loaded checkpoint", "done training")


def train(flags: Sequence[str], save_dir: Path, log_dir: Path) -> None:
    """Run fairseq-train with ``flags``; resume when ``save_dir`` holds a last checkpoint.

    The whole log goes to ``log_dir``/train.log, curves to TensorBoard there. Uses the GPU if there
    is one; several by ``torchrun``.
    """
    import fairseq_cli.train
    from fairseq import checkpoint_utils, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed import utils as distributed_utils

    from ulm_prompt.prompt_lm.safe_load import allow_list

    _show_the_essential()
    log_dir.mkdir(parents=True, exist_ok=True)
    common = [
        "--user-dir", USER_DIR,
        "--save-dir", save_dir,
        "--tensorboard-logdir", log_dir,
        "--log-file", log_dir / "train.log",
        "--no-epoch-checkpoints",
        "--num-workers", 0,
        "--data-buffer-size", 2,
    ]  # fmt: skip
    if not torch.cuda.is_available():
        common.append("--cpu")
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [str(flag) for flag in (*flags, *common)])
    # fairseq keeps the best score and the patience in its functions: forget an earlier run's
    vars(checkpoint_utils.save_checkpoint).clear()
    vars(fairseq_cli.train.should_stop_early).clear()
    try:
        with allow_list():
            cfg = convert_namespace_to_omegaconf(args)
            distributed_utils.call_main(cfg, fairseq_cli.train.main)
    except RuntimeError as error:
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
            raise OSError(
                errno.ENOSPC, "cannot write a checkpoint (disk full?)", str(save_dir)
            ) from None
        raise


def _show_the_essential() -> None:
    """One console handler, without fairseq's dumps of settings and modules; no third-party
    warnings.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
    logging.getLogger().handlers[0].addFilter(_is_essential)
    for noise in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", noise)


def _is_essential(record: logging.LogRecord) -> bool:
    return (
        record.levelno > logging.WARNING
        or record.name in _LOGGERS
        or record.getMessage().startswith(_MESSAGES)
    )
