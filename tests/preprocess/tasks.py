"""The tasks as the runner builds them, in this process."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.config import load_config
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.actions.downstreams import add_flags
from preprocess.audio_snips.preprocessor import AudioSnips
from preprocess.fluent_commands.preprocessor import FluentCommands
from preprocess.librispeech.preprocessor import LibriSpeech
from preprocess.preprocessor import Preprocessor
from preprocess.speech_commands.preprocessor import SpeechCommands
from preprocess.table.preprocessor import Table

TASKS = {
    "speech_commands": SpeechCommands,
    "fluent_commands": FluentCommands,
    "librispeech": LibriSpeech,
    "audio_snips": AudioSnips,
    "table": Table,
}


def runner_flags(*words: object) -> argparse.Namespace:
    """What the runner makes of these words on its command line."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(list(map(str, words)))


def preprocessor(downstream: str, workspace: Path, *overrides: str) -> Preprocessor:
    """The task with its own config.yaml, ``logmel100`` with 8 clusters, corpora under
    ``<workspace>/corpora``.
    """
    reader = SpeechCommands if downstream.startswith("speech_commands") else Table
    task = TASKS.get(downstream, reader)
    path = REPOSITORY / "preprocess" / downstream / "config.yaml"
    small = ("taskrc.unit_model=logmel100", "fairseqrc.km_clusters=8", "fairseqrc.km_starts=2")
    config = load_config(task.config_class, path, [*small, *overrides])
    return task(downstream, config, Workspace(workspace))
