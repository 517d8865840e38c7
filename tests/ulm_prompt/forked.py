"""Stage scripts in a fork of the tests' process: a process of their own, as a user's call is, with
torch and fairseq imported already.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path


def stage(script: str, *args: object, code: int = 0) -> str:
    """As ``tests.conftest.stage``, for a script of ulm_prompt/: check its exit code, return what it
    printed.
    """
    import fairseq_cli.train  # noqa: F401

    import ulm_prompt.prompt_lm  # noqa: F401

    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = os.fork()
        if not process:
            _run(module.main, [script, *map(str, args)], out.fileno(), errors.fileno())
        found = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said = []
        for stream in (out, errors):
            stream.seek(0)
            said.append(stream.read().decode())
    printed = "".join(said)
    assert found == code, f"{script} exited with {found}:\n{printed}"
    if code == 2:
        assert said[1].count("\n") == 1 and "Traceback" not in printed, printed
    return printed


def _run(main: object, words: list[str], out: int, errors: int) -> None:
    """The fork's whole life."""
    from pipeline.errors import run

    code = 1
    signal.alarm(300)  # a fork that hangs is killed
    try:
        os.dup2(out, 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1) for n in (1, 2))
        sys.argv = words
        os.chdir(Path("/"))
        run(main)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
