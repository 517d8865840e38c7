"""Run stage scripts in this process, which has imported fairseq already, or in a fork of it."""

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
from tests.reliability.runs import run_and_exit
from tests.ulm_prompt import tiny


def call(name: str, workspace: Path, *flags: object) -> str:
    """Run ulm_prompt/``name``.py with ``flags``; return what it printed."""
    module = importlib.import_module(f"ulm_prompt.{name}")
    arguments = [name, "--workspace", workspace, *flags]
    handlers = list(logging.root.handlers)  # training replaces them
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
    """Write a tiny LM and corpora, then run the data stages."""
    for downstream in downstreams:
        tiny.write_corpus(root, downstream=downstream)
    tiny.write_lm(Workspace(root).lm("tiny100"))
    data_stages(root)


def data_stages(root: Path) -> None:
    for name in ("make_data", "gen_labelspace", "verbalizer", "fairseq_preprocess"):
        call(name, root)


def stage(script: str, *args: object, code: int = 0) -> str:
    """Run a script in a fork, which is faster than the new process of ``tests.conftest.stage``.
    Check the exit code and return what the script printed.
    """
    import fairseq_cli.train  # noqa: F401

    import ulm_prompt.prompt_lm  # noqa: F401

    module = script.removesuffix(".py").replace("/", ".")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = os.fork()
        if not process:
            signal.alarm(300)  # a fork that hangs is killed
            run_and_exit(module, list(map(str, args)), [out.fileno(), errors.fileno()])
        exit_code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = []
        for stream in (out, errors):
            stream.seek(0)
            texts.append(stream.read().decode())
    printed = "".join(texts)
    assert exit_code == code, f"{script} exited with {exit_code}:\n{printed}"
    if code == 2:
        assert texts[1].count("\n") == 1 and "Traceback" not in printed, printed
    return printed
