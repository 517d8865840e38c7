"""Trials of every stage: a fault strikes a run, and the next run must leave what an uninterrupted
run leaves.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not inherit a pool of threads

from tests.reliability.contents import contents, temporaries
from tests.reliability.runs import Ended, Run
from tests.reliability.stages import STAGES, Mirror, Stage, warm_up, write_corpus


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

    def moment(self) -> float:
        """Seconds after the start, somewhere in an uninterrupted run."""
        return self.rng.uniform(0, self.seconds)

    def finish(self) -> None:
        """Run the stage, which must succeed, to what an uninterrupted run leaves."""
        check_success(self.start().wait())
        self.check_complete()

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


Strike = Callable[[Trial], int]  # how often it struck: a run may end before its moment has come


class Outcome(NamedTuple):
    """What the trials of a stage came to."""

    stage: str
    fault: str
    trials: int
    struck: int
    wrong: list[str]
    seconds: float  # of an uninterrupted run


def trials(
    strikes: Mapping[str, Strike], count: int, seed: int, only: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Let every one of ``strikes`` strike every stage ``count`` times, stage by stage.

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
            for fault, strike in strikes.items() if not only or stage.name in only else ():
                rng = random.Random(f"{seed} {stage.name} {fault}")
                struck, wrong = 0, []
                for number in range(count):
                    _copy(rng.choice((before, before, after)), work)
                    trial = Trial(stage, work, mirror.url, rng, seconds, expected, made)
                    try:
                        struck += strike(trial)
                        trial.finish()
                    except Exception as error:
                        wrong.append(f"trial {number}: {type(error).__name__}: {error}")
                yield Outcome(stage.name, fault, count, struck, wrong, seconds)
            _copy(after, work)
    mirror.stop()


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def command(strikes: Mapping[str, Strike], description: str) -> None:
    """The command line of faults.py: a table, a line a stage and fault. Exit code 1 where a trial
    went wrong.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="trials of every stage and fault")
    parser.add_argument("--seed", type=int, default=1, help="draws the moments")
    parser.add_argument("--stage", nargs="+", default=[], choices=[s.name for s in STAGES])
    parser.add_argument("--fault", nargs="+", default=list(strikes), choices=list(strikes))
    args = parser.parse_args()
    print(f"| stage | fault | trials | struck | wrong | a run, s |\n{'|---' * 6}|", flush=True)
    chosen = {name: strikes[name] for name in args.fault}
    wrongs = 0
    for outcome in trials(chosen, args.count, args.seed, args.stage):
        cells = (*outcome[:4], len(outcome.wrong), f"{outcome.seconds:.2f}")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for wrong in outcome.wrong[:5]:
            print(f"  {wrong}", flush=True)
        wrongs += len(outcome.wrong)
    sys.exit(wrongs > 0)
