"""Stage scripts one after another in one process, for torchrun: fairseq takes seconds to import.

python -m tests.ulm_prompt.stages_in_a_row '[["train", "--date", ...], ...]' [killed after so many
updates of the last]
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
    """Let the last rank be killed when it begins the update after so many."""
    from fairseq.trainer import Trainer

    step = Trainer.train_step

    def counted(trainer: Trainer, *args: object, **others: object) -> object:
        if trainer.get_num_updates() == updates and here.rank == here.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, *args, **others)

    Trainer.train_step = counted


def main() -> None:
    commands = json.loads(sys.argv[1])
    updates = [int(word) for word in sys.argv[2:]]
    here = ranks()
    with process_group(here):
        for number, (name, *arguments) in enumerate(commands, start=1):
            if updates and number == len(commands):
                kill_after(updates[0], here)
            stage = importlib.import_module(f"ulm_prompt.{name}")
            stage.process_group = lambda here: contextlib.nullcontext()  # one for all of them
            sys.argv = [name, *arguments]
            stage.main()


if __name__ == "__main__":
    main()
