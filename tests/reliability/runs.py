"""Run a stage in a fork that can be killed, stopped and limited. A fork starts at once; a new
process takes seconds to import torch and fairseq.
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

LONGEST = 600  # seconds; a longer run counts as hanging
_BUG = 70  # the exit code after a traceback
_ROOM = 1 << 20  # bytes of a pipe, more than a run ever prints
_CAPABILITIES = 0x20080522  # the version of capget's and capset's structures
_ABOVE_MODES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


class Ended(NamedTuple):
    """The exit code and the output of a run."""

    code: int
    out: str
    errors: str


class Run:
    """A run of ``module``'s stage with ``arguments``, in its own process group. It starts at once.

    The fork calls ``before`` before the stage. The output goes into pipes, because limits on file
    sizes do not apply to pipes.
    """

    def __init__(
        self, module: str, arguments: list[str], before: Callable[[], None] | None = None
    ) -> None:
        pipes = os.pipe(), os.pipe()
        self._read_ends, write_ends = zip(*pipes)
        for end in write_ends:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _ROOM)
        context = multiprocessing.get_context("fork")
        self._fork = context.Process(
            target=run_and_exit, args=(module, arguments, write_ends, before)
        )
        self._fork.start()
        self.process = self._fork.pid
        with contextlib.suppress(OSError):  # the fork does this too; the first of the two counts
            os.setpgid(self.process, self.process)
        for end in write_ends:
            os.close(end)

    def kill_after(self, seconds: float) -> bool:
        """Kill the run and its children after ``seconds``; return False if it had ended before."""
        self._fork.join(seconds)
        if self._fork.exitcode is None:
            os.killpg(self.process, signal.SIGKILL)
        return self.wait().code == -signal.SIGKILL

    def wait_until_stopped(self) -> None:
        """Wait until the run has stopped itself or has ended."""
        os.waitid(os.P_PID, self.process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended before it could stop itself
            os.killpg(self.process, signal.SIGCONT)

    def wait(self) -> Ended:
        """Wait for the end of the run. Raises ``RuntimeError`` if the run hangs."""
        self._fork.join(LONGEST)
        if self._fork.exitcode is None:
            os.killpg(self.process, signal.SIGKILL)
            raise RuntimeError(f"hangs: not done after {LONGEST} s")
        texts = []
        for end in self._read_ends:
            os.set_blocking(end, False)
            with open(end, "rb", buffering=0) as pipe:
                texts.append((pipe.read(_ROOM) or b"").decode())
        return Ended(self._fork.exitcode, *texts)


def run_and_exit(
    module: str, arguments: list[str], outputs: Sequence[int],
    before: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Run ``module``'s stage in this fork, then exit. ``outputs``: stdout and stderr."""
    from pipeline.errors import run

    code = _BUG
    try:
        os.setpgid(0, 0)
        for stream, output in enumerate(outputs, start=1):
            os.dup2(output, stream)
        # pytest may have replaced these two
        sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1) for n in (1, 2))
        sys.argv = [module, *arguments]
        os.chdir(Path("/"))
        if before:
            before()
        run(importlib.import_module(module).main)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def bow_to_modes() -> None:
    """Make root obey the modes of files, like any other owner of the files."""
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
