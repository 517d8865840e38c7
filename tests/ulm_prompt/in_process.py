"""Stage scripts called in this process, where fairseq is imported already."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from pathlib import Path
from unittest import mock

from pipeline.workspace import Workspace
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
