"""Run scripts one after another in one process, for torchrun: importing fairseq takes seconds.

python -m tests.ulm_prompt.stages_in_a_row '[["train", "--date", ...], ...]' [UPDATES]
UPDATES: kill the last rank after this number of updates of the last script.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys

from pipeline.devices import Ranks, process_group, ranks


def kill_after(updates: int, here: Ranks) -> None:
    """Make the last rank kill itself when it begins the update after ``updates``."""
    from fairseq.trainer import Trainer

    step = Trainer.train_step

    def step_or_kill(trainer: Trainer, *args: object, **kwargs: object) -> object:
        if trainer.get_num_updates() == updates and here.rank == here.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, *args, **kwargs)

    Trainer.train_step = step_or_kill


def main() -> None:
    commands = json.loads(sys.argv[1])
    updates = [int(word) for word in sys.argv[2:]]
    here = ranks()
    with process_group(here):
        for number, (name, *arguments) in enumerate(commands, start=1):
            if updates and number == len(commands):
                kill_after(updates[0], here)
            stage = importlib.import_module(f"ulm_prompt.{name}")
            stage.process_group = lambda here: (
                contextlib.nullcontext()
            )  # all scripts share this one
            sys.argv = [name, *arguments]
            stage.main()


if __name__ == "__main__":
    main()
