"""Kills, full disks, read-only folders, vanishing files, two runs at once, at random moments: every
stage says in a line what is wrong, keeps what exists, and then does what an undisturbed run does.

python -m tests.reliability.faults --count 20 --seed 1 [--stage train] [--fault kill disk_full]
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import time
from pathlib import Path

from tests.reliability.contents import temporaries
from tests.reliability.modes import bow_to_modes
from tests.reliability.runs import Ended
from tests.reliability.trials import Trial, Wrong, check_error, check_success, command

_FULL = ("make room",)
_FORBIDDEN = ("Permission denied", "is not writable")


def kill(trial: Trial) -> int:
    """kill -9 a run, and in a third of the trials the run after it too."""
    kills = 0
    for _ in range(trial.rng.choice((1, 1, 2))):
        if not trial.start().kill_after(trial.moment()):
            break
        kills += 1
        trial.check_kept()
    return kills


def disk_full(trial: Trial) -> int:
    """No file may grow beyond a drawn length, from the start, or at all from a drawn moment on.

    Stands for a full disk: a limit on the size of files (RLIMIT_FSIZE), which Python lets come as
    an error of the write (EFBIG). It stops every write of the process to a file, whoever calls it,
    in the middle of a buffer too.
    """
    if trial.rng.random() < 0.5:
        limit = int(max(trial.made.values()) ** trial.rng.random())
        run = trial.start(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    else:
        run = trial.start()
        time.sleep(trial.moment())
        resource.prlimit(run.process, resource.RLIMIT_FSIZE, (0, 0))
    return _failed(trial, run.wait(), _FULL)


def read_only(trial: Trial) -> int:
    """A folder that the stage writes in becomes read-only, at the start or at a drawn moment."""
    folder = trial.rng.choice(_written(trial))
    run = trial.start(bow_to_modes)
    if trial.rng.random() < 0.5:
        time.sleep(trial.moment())
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        ended = run.wait()
    finally:
        for path, mode in modes.items():
            if path.exists():  # a temporary of the run may have come and gone
                path.chmod(mode)
    return _failed(trial, ended, _FORBIDDEN, leaves=True)


def vanishing(trial: Trial) -> int:
    """A file that the stage reads disappears, at the start or at a drawn moment; then it is put
    back.
    """
    files = [p for pattern in trial.stage.reads for p in sorted(trial.work.glob(pattern))]
    if not files:
        return 0
    path = trial.rng.choice([path for path in files if path.is_file()])
    away = trial.work.with_name("away")
    early = trial.rng.random() < 0.5
    if early:
        path.rename(away)
    run = trial.start()
    if not early:
        time.sleep(trial.moment())
        path.rename(away)
    ended = run.wait()
    path.parent.mkdir(parents=True, exist_ok=True)
    away.rename(path)
    return _failed(trial, ended, (path.name, str(path.parent)))


def two_runs(trial: Trial) -> int:
    """While a run stands still, at a drawn moment or at a drawn file that it opens after it took
    its lock, another begins and ends: it is refused, where the first holds the output. Then the
    first resumes.
    """
    if trial.rng.random() < 0.5:
        first = trial.start()
        first.stop_after(trial.moment())
    else:
        file = trial.rng.randrange(4)
        first = trial.start(lambda: _stop_at(file))
        first.stands_still()
    try:
        second = trial.start().wait()
    finally:
        first.go_on()
        ended = first.wait()
    check_success(ended)
    trial.check_complete()
    if second.code:
        check_error(second, "another process is")
    return int(second.code == 2)


def _failed(trial: Trial, ended: Ended, words: tuple[str, ...], leaves: bool = False) -> int:
    """Whether the run failed, which it must have done well. ``leaves``: it could not tidy up."""
    if not ended.code:
        trial.check_complete()
        return 0
    check_error(ended, *words)
    trial.check_kept()
    resumed = (".part", ".part.json", ".tgz")  # what the next run resumes from
    left = [p.name for p in temporaries(trial.work) if not p.name.endswith(resumed)]
    if left and not leaves:
        raise Wrong(f"left {', '.join(left)}")
    return 1


def _written(trial: Trial) -> list[Path]:
    """The folders in which the stage makes something, or the nearest existing ones above."""
    folders = (trial.work.joinpath(name).parent for name in trial.made)
    existing = (next(path for path in (f, *f.parents) if path.exists()) for f in folders)
    return sorted(set(existing))


def _stop_at(number: int) -> None:
    """Stop this process at so many files that it opens after it asked for a lock."""
    left: list[int] = []

    def hook(event: str, _: object) -> None:
        if event == "fcntl.flock" and not left:
            left.append(number)
        elif event == "open" and left and left[0] >= 0:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(hook)


STRIKES = {strike.__name__: strike for strike in (kill, disk_full, read_only, vanishing, two_runs)}

if __name__ == "__main__":
    command(STRIKES, __doc__)
