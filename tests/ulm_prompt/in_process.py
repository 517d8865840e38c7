"""Stage scripts called in this process, where fairseq is imported already, or in a fork of it."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

from pipeline.workspace import Workspace
from tests.reliability.runs import live
from tests.ulm_prompt import tiny


def call(name: str, workspace: Path, *flags: object) -> str:
    """Run ulm_prompt/``name``.py with ``flags``; returns what it printed."""
    module = importlib.import_module(f"ulm_prompt.{name}")
    arguments = [name, "--workspace", workspace, *flags]
    handlers = list(logging.root.handlers)  # training sets its own
    printed = io.StringIO()
    try:
        with (
            mock.patch.object(sys, "argv", [str(word) for word in arguments]),
            contextlib.redirect_stdout(printed),
        ):
            module.main()
    finally:
        logging.root.handlers[:] = handlers
    return printed.getvalue()


def prepare(root: Path, *downstreams: str) -> None:
    """A tiny LM and the corpora, after the data stages."""
    for downstream in downstreams:
        tiny.write_corpus(root, downstream=downstream)
    tiny.write_lm(Workspace(root).lm("tiny100"))
    data_stages(root)


def data_stages(root: Path) -> None:
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        call(name, root)


def stage(script: str, *args: object, code: int = 0) -> str:
    """As ``tests.conftest.stage``, for a script of ulm_prompt/: a process of its own, as a user's
    call is. Checks its exit code, returns what it printed.
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
