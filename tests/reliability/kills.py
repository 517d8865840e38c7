"""kill -9 at random moments: every stage goes on to what an uninterrupted run leaves.

python -m tests.reliability.kills --count 100 --seed 1 [--stage train sample]
"""

from __future__ import annotations

from tests.reliability.trials import Trial, command


def kill(trial: Trial) -> int:
    """Kill a run, and in a third of the trials the one after it too."""
    kills = 0
    for _ in range(trial.rng.choice((1, 1, 2))):
        if not trial.start().kill_after(trial.moment()):
            break
        kills += 1
        trial.check_kept()
    return kills


if __name__ == "__main__":
    command({"kill": kill}, __doc__)
