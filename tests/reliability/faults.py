"""Kills, full disks, read-only folders, vanishing files, two runs at once, at random moments: every
stage says in a line what is wrong, keeps what exists, and the next run leaves what an undisturbed
one leaves.

python -m tests.reliability.faults --count 20 --seed 1 [--stage train] [--fault kill disk_full]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not inherit a pool of threads

from tests.reliability.runs import Ended, Run, bow_to_modes
from tests.reliability.stages import (
    STAGES,
    Mirror,
    Stage,
    contents,
    temporaries,
    warm_up,
    write_corpus,
)


class Wrong(Exception):
    """What a stage did that it must not do."""


def check_success(ended: Ended) -> None:
    """A run that nothing befell must succeed."""
    if ended.code:
        raise Wrong(f"exited with {ended.code}: {(ended.out + ended.errors)[-1500:]}")


def check_error(ended: Ended, *words: str) -> None:
    """A failure must be told in one line that holds one of ``words``."""
    line = ended.errors
    if ended.code not in (1, 2) or not line.startswith("error: ") or line.count("\n") != 1:
        raise Wrong(f"exited with {ended.code} and said: {line[-1500:]}")
    if not any(word in line for word in words):
        raise Wrong(f"expected {' or '.join(words)} in: {line}")


@dataclass
class Trial:
    """One trial of a stage in the folder ``work``, and what is known of an uninterrupted run:
    its ``seconds``, what ``work`` holds after it (``expected``), the bytes of what it ``made``.
    """

    stage: Stage
    work: Path
    mirror: str
    rng: random.Random
    seconds: float
    expected: dict[str, str]
    made: dict[str, int]

    def __post_init__(self) -> None:
        self.earlier = contents(self.work)

    def start(self, before: Callable[[], None] | None = None) -> Run:
        """Begin the stage."""
        return Run(self.stage.module, self.stage.command(self.work, self.mirror), before)

    def wait_a_while(self) -> None:
        """Half of the time until somewhere in an uninterrupted run."""
        time.sleep(self.rng.choice((0, 1)) * self.rng.uniform(0, self.seconds))

    def check_kept(self) -> None:
        """What existed is unchanged; what is new is whole."""
        present = contents(self.work)
        changed = [name for name in self.earlier if present.get(name) != self.earlier[name]]
        if changed:
            raise Wrong(f"took or changed {', '.join(changed)}")

    def check_complete(self) -> None:
        """What an uninterrupted run leaves, and nothing else."""
        present = contents(self.work)
        names = [n for n in self.expected | present if self.expected.get(n) != present.get(n)]
        if names:
            raise Wrong(f"{', '.join(names)} differ")
        if left := temporaries(self.work):
            raise Wrong(f"left {', '.join(path.name for path in left)}")


def kill(trial: Trial) -> int:
    """kill -9 a run, and in a third of the trials the run after it too."""
    kills = 0
    for _ in range(trial.rng.choice((1, 1, 2))):
        if not trial.start().kill_after(trial.rng.uniform(0, trial.seconds)):
            break
        kills += 1
        trial.check_kept()
    return kills


def disk_full(trial: Trial) -> int:
    """From a moment on no file may grow beyond a drawn length. It stands for a full disk and comes
    as an error of the write (EFBIG), whoever writes, in the middle of a buffer too.
    """
    limit = int(max(trial.made.values()) ** trial.rng.random())
    run = trial.start()
    trial.wait_a_while()
    resource.prlimit(run.process, resource.RLIMIT_FSIZE, (limit, limit))
    return _failed(trial, run.wait(), ("make room",))


def read_only(trial: Trial) -> int:
    """From a moment on a folder that the stage writes in is read-only."""
    folder = trial.rng.choice(_written(trial))
    run = trial.start(bow_to_modes)
    trial.wait_a_while()
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        ended = run.wait()
    finally:
        for path, mode in modes.items():
            if path.exists():  # a temporary of the run may have come and gone
                path.chmod(mode)
    return _failed(trial, ended, ("Permission denied", "is not writable"), leaves=True)


def vanishing(trial: Trial) -> int:
    """A file that the stage reads disappears, before it or at a moment; then it is put back."""
    files = [p for pattern in trial.stage.reads for p in sorted(trial.work.glob(pattern))]
    if not files:
        return 0
    path = trial.rng.choice([path for path in files if path.is_file()])
    away = trial.work.with_name("away")
    if early := trial.rng.random() < 0.5:
        path.rename(away)
    run = trial.start()
    if not early:
        trial.wait_a_while()
        path.rename(away)
    ended = run.wait()
    path.parent.mkdir(parents=True, exist_ok=True)
    away.rename(path)
    return _failed(trial, ended, (path.name, str(path.parent)))


def two_runs(trial: Trial) -> int:
    """While a run stands still at a file that it opens after it took its lock, another begins and
    ends: it is refused, where the first holds the output.
    """
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


def trials(
    faults: Sequence[str], count: int, seed: int, only: Sequence[str]
) -> Iterator[tuple[str, str, int, list[str], float]]:
    """Let every fault strike every stage ``count`` times, stage by stage: the stage, the fault, how
    often it struck (a run may end before its moment), what went wrong, an undisturbed run's time.

    Two trials of three begin where the stages before have ended, the third where this one has.
    """
    names = [stage.name for stage in STAGES]
    stages = STAGES[: max((names.index(name) + 1 for name in only), default=None)]
    warm_up(stages)
    mirror = Mirror()
    with tempfile.TemporaryDirectory() as folder:
        work, before, after = (Path(folder) / name for name in ("work", "before", "after"))
        write_corpus(work)
        for stage in stages:
            _copy(work, before)
            earlier = contents(work)
            begun = time.monotonic()
            check_success(Run(stage.module, stage.command(work, mirror.url)).wait())
            seconds = time.monotonic() - begun
            expected = contents(work)
            made = {n: (work / n).stat().st_size for n in expected if n not in earlier}
            _copy(work, after)
            for fault in faults if not only or stage.name in only else ():
                rng = random.Random(f"{seed} {stage.name} {fault}")
                struck, wrong = 0, []
                for number in range(count):
                    _copy(rng.choice((before, before, after)), work)
                    trial = Trial(stage, work, mirror.url, rng, seconds, expected, made)
                    try:
                        struck += STRIKES[fault](trial)
                        check_success(trial.start().wait())
                        trial.check_complete()
                    except Exception as error:
                        wrong.append(f"trial {number}: {type(error).__name__}: {error}")
                yield stage.name, fault, struck, wrong, seconds
            _copy(after, work)
    mirror.stop()


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def main() -> None:
    """Print a table, a line a stage and fault. Exit code 1 where a trial went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="trials of every stage and fault")
    parser.add_argument("--seed", type=int, default=1, help="draws the moments")
    parser.add_argument("--stage", nargs="+", default=[], choices=[s.name for s in STAGES])
    parser.add_argument("--fault", nargs="+", default=list(STRIKES), choices=list(STRIKES))
    args = parser.parse_args()
    print(f"| stage | fault | trials | struck | wrong | a run, s |\n{'|---' * 6}|", flush=True)
    failed = False
    for stage, fault, struck, wrong, seconds in trials(
        args.fault, args.count, args.seed, args.stage
    ):
        cells = (stage, fault, args.count, struck, len(wrong), f"{seconds:.2f}")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for message in wrong[:5]:
            print(f"  {message}", flush=True)
        failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
