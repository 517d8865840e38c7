"""Stage scripts in a fork of the tests' process: a process of their own, as a user's call is, with
torch and fairseq imported already.
"""

from __future__ import annotations

import os
import signal
import tempfile

from tests.reliability.runs import live


def stage(script: str, *args: object, code: int = 0) -> str:
    """As ``tests.conftest.stage``, for a script of ulm_prompt/: check its exit code, return what it
    printed.
    """
    import fairseq_cli.train  # noqa: F401

    import ulm_prompt.prompt_lm  # noqa: F401

    module = script.removesuffix(".py").replace("/", ".")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = os.fork()
        if not process:
            signal.alarm(300)  # a fork that hangs is killed
            live(module, list(map(str, args)), [out.fileno(), errors.fileno()])
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
