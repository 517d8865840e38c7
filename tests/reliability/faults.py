"""Kill every stage, fill the disk, make folders read-only, remove files, or start a second run, all
at random moments. The stage must print one error line and keep existing files. The next run must
give the result of an undisturbed run.

python -m tests.reliability.faults --count 20 --seed 1 [--stage train] [--fault kill disk_full]
"""

from __future__ import annotations

import argparse
import contextlib
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

os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not inherit a thread pool

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


class BrokenPromise(Exception):
    """A stage did what it must not do."""


def check_success(ended: Ended) -> None:
    """Raise an error unless an undisturbed run succeeded."""
    if ended.code:
        raise BrokenPromise(f"exited with {ended.code}: {(ended.out + ended.errors)[-1500:]}")


def check_error(ended: Ended, *words: str) -> None:
    """Raise an error unless the run failed with one line that contains one of ``words``."""
    line = ended.errors
    if ended.code not in (1, 2) or not line.startswith("error: ") or line.count("\n") != 1:
        raise BrokenPromise(f"exited with {ended.code} and printed: {line[-1500:]}")
    if not any(word in line for word in words):
        raise BrokenPromise(f"expected {' or '.join(words)} in: {line}")


@dataclass
class Trial:
    """One trial of a stage in the folder ``work``. An undisturbed run takes ``seconds``, and then
    ``work`` contains the files and digests ``expected``. ``made``: the sizes of the new files.
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
        """Start the stage; the fork calls ``before`` first."""
        return Run(self.stage.module, self.stage.command(self.work, self.mirror), before)

    def wait_a_while(self) -> None:
        """Wait until a random moment of the run; in half of the trials do not wait."""
        time.sleep(self.rng.choice((0, 1)) * self.rng.uniform(0, self.seconds))

    def check_kept(self) -> None:
        """Raise an error if an earlier file has changed, or if a new one cannot be read."""
        present = contents(self.work)
        changed = [name for name in self.earlier if present.get(name) != self.earlier[name]]
        if changed:
            raise BrokenPromise(f"removed or changed {', '.join(changed)}")

    def check_complete(self) -> None:
        """Raise an error unless ``work`` contains exactly the files of an undisturbed run."""
        present = contents(self.work)
        names = [n for n in self.expected | present if self.expected.get(n) != present.get(n)]
        if names:
            raise BrokenPromise(f"{', '.join(names)} differ")
        if remaining := temporaries(self.work):
            raise BrokenPromise(f"left {', '.join(path.name for path in remaining)}")


def kill(trial: Trial) -> int:
    """Kill a run with ``kill -9``; in a third of the trials also kill the next run."""
    kills = 0
    for _ in range(trial.rng.choice((1, 1, 2))):
        if not trial.start().kill_after(trial.rng.uniform(0, trial.seconds)):
            break
        kills += 1
        trial.check_kept()
    return kills


def disk_full(trial: Trial) -> int:
    """Limit all files to a random length, from a random moment on. As on a full disk, any library's
    write then fails (EFBIG), also in the middle of a buffer.
    """
    limit = int(max(trial.made.values()) ** trial.rng.random())
    run = trial.start()
    trial.wait_a_while()
    resource.prlimit(run.process, resource.RLIMIT_FSIZE, (limit, limit))
    return _failed(trial, run.wait(), ("make room",))


def read_only(trial: Trial) -> int:
    """Make a folder that the stage writes to read-only, from a random moment on."""
    folder = trial.rng.choice(_output_folders(trial))
    run = trial.start(bow_to_modes)
    trial.wait_a_while()
    modes: dict[Path, int] = {}
    try:
        for path in (folder, *folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # a temporary of the run may vanish
                modes[path] = path.stat().st_mode
                path.chmod(modes[path] & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        ended = run.wait()
    finally:
        for path, mode in modes.items():
            if path.exists():  # a temporary of the run may have come and gone
                path.chmod(mode)
    return _failed(trial, ended, ("Permission denied", "is not writable"), may_leave=True)


def vanishing(trial: Trial) -> int:
    """Remove a file that the stage reads, before or during the run; then put it back."""
    files = [p for pattern in trial.stage.reads for p in sorted(trial.work.glob(pattern))]
    if not files:
        return 0
    path = trial.rng.choice([path for path in files if path.is_file()])
    hidden = trial.work.with_name("hidden")
    if early := trial.rng.random() < 0.5:
        path.rename(hidden)
    run = trial.start()
    if not early:
        trial.wait_a_while()
        path.rename(hidden)
    ended = run.wait()
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden.rename(path)
    return _failed(trial, ended, (path.name, str(path.parent)))


def two_runs(trial: Trial) -> int:
    """Stop a run when it opens a file after it took its lock, and start a second run. The second
    must be refused while the first holds the output.
    """
    number = trial.rng.randrange(4)
    first = trial.start(lambda: _stop_at_file(number))
    first.wait_until_stopped()
    try:
        second = trial.start().wait()
    finally:
        first.resume()
        ended = first.wait()
    check_success(ended)
    trial.check_complete()
    if second.code:
        check_error(second, "another process is")
    return int(second.code == 2)


def _failed(trial: Trial, ended: Ended, words: tuple[str, ...], may_leave: bool = False) -> int:
    """Return 1 if the run failed, else 0; check both. ``may_leave``: temporaries may remain."""
    if not ended.code:
        trial.check_complete()
        return 0
    check_error(ended, *words)
    trial.check_kept()
    resumable = (".part", ".part.json", ".tgz")  # the next run resumes from these
    remaining = [p.name for p in temporaries(trial.work) if not p.name.endswith(resumable)]
    if remaining and not may_leave:
        raise BrokenPromise(f"left {', '.join(remaining)}")
    return 1


def _output_folders(trial: Trial) -> list[Path]:
    """Return the folders in which the stage makes files, or their nearest existing parents."""
    folders = (trial.work.joinpath(name).parent for name in trial.made)
    existing = (next(path for path in (f, *f.parents) if path.exists()) for f in folders)
    return sorted(set(existing))


def _stop_at_file(number: int) -> None:
    """Stop this process when it opens file ``number``, counted from 0 after it requests a lock."""
    remaining: list[int] = []

    def hook(event: str, _: object) -> None:
        if event == "fcntl.flock" and not remaining:
            remaining.append(number)
        elif event == "open" and remaining and remaining[0] >= 0:
            remaining[0] -= 1
            if remaining[0] < 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(hook)


FAULTS = {fault.__name__: fault for fault in (kill, disk_full, read_only, vanishing, two_runs)}


def trials(
    faults: Sequence[str], count: int, seed: int, selected: Sequence[str]
) -> Iterator[tuple[str, str, int, list[str], float]]:
    """Inject every fault into every stage ``count`` times. Yield the stage, the fault, how often it
    struck (a run may end before), the error messages, and the seconds of an undisturbed run.

    Two trials of three start without the stage's output, the third with it.
    """
    names = [stage.name for stage in STAGES]
    stages = STAGES[: max((names.index(name) + 1 for name in selected), default=None)]
    warm_up(stages)
    mirror = Mirror()
    with tempfile.TemporaryDirectory() as folder:
        work, before, after = (Path(folder) / name for name in ("work", "before", "after"))
        write_corpus(work)
        for stage in stages:
            _copy(work, before)
            earlier = contents(work)
            start = time.monotonic()
            check_success(Run(stage.module, stage.command(work, mirror.url)).wait())
            seconds = time.monotonic() - start
            expected = contents(work)
            made = {n: (work / n).stat().st_size for n in expected if n not in earlier}
            _copy(work, after)
            for fault in faults if not selected or stage.name in selected else ():
                rng = random.Random(f"{seed} {stage.name} {fault}")
                struck, errors = 0, []
                for number in range(count):
                    _copy(rng.choice((before, before, after)), work)
                    trial = Trial(stage, work, mirror.url, rng, seconds, expected, made)
                    try:
                        struck += FAULTS[fault](trial)
                        check_success(trial.start().wait())
                        trial.check_complete()
                    except Exception as error:
                        errors.append(f"trial {number}: {type(error).__name__}: {error}")
                yield stage.name, fault, struck, errors, seconds
            _copy(after, work)
    mirror.stop()


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def main() -> None:
    """Print one table row per stage and fault. Exit with 1 if a trial went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="trials per row (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="for the random moments (default: 1)")
    parser.add_argument("--stage", nargs="+", default=[], choices=[s.name for s in STAGES])
    parser.add_argument("--fault", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    args = parser.parse_args()
    print(f"| stage | fault | trials | struck | wrong | a run, s |\n{'|---' * 6}|", flush=True)
    failed = False
    for stage, fault, struck, errors, seconds in trials(
        args.fault, args.count, args.seed, args.stage
    ):
        cells = (stage, fault, args.count, struck, len(errors), f"{seconds:.2f}")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for message in errors[:5]:
            print(f"  {message}", flush=True)
        failed |= bool(errors)
    sys.exit(failed)


if __name__ == "__main__":
    main()
