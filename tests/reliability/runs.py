"""A stage in a fork that can be killed, stopped and limited: importing torch and fairseq takes
seconds, killing a fork does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

LONGEST = 600  # seconds; a run that takes more hangs
_BUG = 70  # the exit code of a traceback
_ROOM = 1 << 20  # bytes of a pipe, more than a run ever says
_CAPABILITIES = 0x20080522  # the version of capget's and capset's structures
_ABOVE_MODES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


class Ended(NamedTuple):
    """How a run ended and what it said."""

    code: int
    out: str
    errors: str


class Run:
    """``module``'s stage with these words, begun when made; it leads a process group of its own.

    ``before`` is called in the fork, before the stage. What the stage says goes into pipes, which
    no limit on files stops.
    """

    def __init__(
        self, module: str, words: list[str], before: Callable[[], None] | None = None
    ) -> None:
        pipes = os.pipe(), os.pipe()
        self._ends, ends = zip(*pipes)
        for end in ends:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _ROOM)
        context = multiprocessing.get_context("fork")
        self._fork = context.Process(target=live, args=(module, words, ends, before))
        self._fork.start()
        self.process = self._fork.pid
        with contextlib.suppress(OSError):  # the fork does so too: whoever comes first
            os.setpgid(self.process, self.process)
        for end in ends:
            os.close(end)

    def kill_after(self, seconds: float) -> bool:
        """Kill it and its children after so long; False when it had ended before."""
        self._fork.join(seconds)
        if self._fork.exitcode is None:
            os.killpg(self.process, signal.SIGKILL)
        return self.wait().code == -signal.SIGKILL

    def stands_still(self) -> bool:
        """Wait until it has stopped itself, or False until it has ended."""
        how = os.waitid(os.P_PID, self.process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return how.si_code == os.CLD_STOPPED

    def go_on(self) -> None:
        os.killpg(self.process, signal.SIGCONT)

    def wait(self) -> Ended:
        """Its end. Raises ``RuntimeError`` for one that never comes."""
        self._fork.join(LONGEST)
        if self._fork.exitcode is None:
            os.killpg(self.process, signal.SIGKILL)
            raise RuntimeError(f"hangs: not done after {LONGEST} s")
        said = []
        for end in self._ends:
            os.set_blocking(end, False)
            with open(end, "rb", buffering=0) as pipe:
                said.append((pipe.read(_ROOM) or b"").decode())
        return Ended(self._fork.exitcode, *said)


def live(
    module: str, words: list[str], ends: Sequence[int], before: Callable[[], None] | None = None
) -> None:
    """A fork's whole life: ``module``'s stage, which says what it says into ``ends``."""
    from pipeline.errors import run

    code = _BUG
    try:
        os.setpgid(0, 0)
        for stream, end in enumerate(ends, start=1):
            os.dup2(end, stream)
        # pytest may have put its own in their place
        sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1) for n in (1, 2))
        sys.argv = [module, *words]
        os.chdir(Path("/"))
        if before:
            before()
        run(importlib.import_module(module).main)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def bow_to_modes() -> None:
    """Make root heed the modes of files, as the owner of the files that it is."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~_ABOVE_MODES
    sets[1] &= ~_ABOVE_MODES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
