"""Files that a stranger may send, and a loader held in a child that may not take much memory."""

from __future__ import annotations

import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOM = 1 << 30  # of addresses, above what the parent has
MOST_GROWTH = 100 << 20  # of memory in use


class Runs:
    """Loading its pickle makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


class Calls:
    """Loading its pickle calls ``function``."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple:
        return self.made


def refused(load: Callable[[], object]) -> str:
    """The one line with which ``load`` refuses its file, in a fork with little room.

    Fails where the fork ends otherwise, or grew.
    """
    from pipeline.errors import UserError

    with tempfile.TemporaryFile("w+") as said:
        process = os.fork()
        if not process:
            code, before = 1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                room = pages * resource.getpagesize() + ROOM
                resource.setrlimit(resource.RLIMIT_AS, (room, room))
                load()
                said.write("it was taken")
            except UserError as error:
                code = 2
                said.write(str(error))
            except BaseException:
                traceback.print_exc(file=said)
            finally:
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
                if code == 2 and grown > MOST_GROWTH:
                    code = 3
                    said.write(f"; but it took {grown:,} bytes")
                said.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        message = said.read()
    assert code == 2, message
    assert "\n" not in message and message.isprintable() and len(message) < 800, message
    return message
