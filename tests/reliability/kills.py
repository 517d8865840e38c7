"""kill -9 at random moments: every stage goes on to what an uninterrupted run leaves.

python -m tests.reliability.kills --count 100 --seed 1 [--stage train sample]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not inherit a pool of threads

from tests.reliability.contents import contents, temporaries
from tests.reliability.stages import STAGES, Stage, finish, killed, start, warm_up, write_corpus


class Outcome(NamedTuple):
    """What ``count`` trials of a stage came to."""

    stage: str
    trials: int
    kills: int  # some trials end before their moment has come, some are killed twice
    faults: list[str]
    seconds: float  # of an uninterrupted run


def trials(count: int, seed: int, only: Sequence[str] = ()) -> Iterator[Outcome]:
    """Kill each stage ``count`` times on its way; one stage after the other."""
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        work, before, log = (Path(folder) / name for name in ("work", "before", "log"))
        write_corpus(work)
        for stage in STAGES:
            shutil.rmtree(before, ignore_errors=True)
            shutil.copytree(work, before)
            begun = time.monotonic()
            finish(start(stage, work, log), log)
            seconds = time.monotonic() - begun
            expected = contents(work)
            if not only or stage.name in only:
                rng = random.Random(f"{seed} {stage.name}")
                yield _try(stage, count, rng, seconds, expected, work, before, log)


def _try(
    stage: Stage,
    count: int,
    rng: random.Random,
    seconds: float,
    expected: dict[str, str],
    work: Path,
    before: Path,
    log: Path,
) -> Outcome:
    earlier = contents(before)
    kills, faults = 0, []
    for trial in range(count):
        shutil.rmtree(work)
        shutil.copytree(before, work)
        log.unlink()
        try:
            for _ in range(rng.choice((1, 1, 2))):
                if not killed(start(stage, work, log), rng.uniform(0, seconds)):
                    break
                kills += 1
                changed = [name for name in earlier if name not in contents(work)]
                if changed:
                    faults.append(f"trial {trial}: the kill took {changed[0]}")
            finish(start(stage, work, log), log)
            found = contents(work)
        except Exception as error:
            faults.append(f"trial {trial}: {type(error).__name__}: {error}")
            continue
        if found != expected:
            names = [n for n in expected | found if expected.get(n) != found.get(n)]
            faults.append(f"trial {trial}: {', '.join(names)} differ")
        if left := temporaries(work):
            faults.append(f"trial {trial}: left {', '.join(path.name for path in left)}")
    if faults:  # the next stage goes on from a run that was not interrupted
        shutil.rmtree(work)
        shutil.copytree(before, work)
        finish(start(stage, work, log), log)
    return Outcome(stage.name, count, kills, faults, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="trials of each stage")
    parser.add_argument("--seed", type=int, default=1, help="draws the moments")
    parser.add_argument("--stage", nargs="+", default=[], choices=[s.name for s in STAGES])
    args = parser.parse_args()
    print(f"| stage | trials | kills | faults | a run, s |\n{'|---' * 5}|", flush=True)
    for outcome in trials(args.count, args.seed, args.stage):
        print(
            f"| {outcome.stage} | {outcome.trials} | {outcome.kills} | {len(outcome.faults)} "
            f"| {outcome.seconds:.2f} |",
            flush=True,
        )
        for fault in outcome.faults[:5]:
            print(f"  {fault}")


if __name__ == "__main__":
    main()
