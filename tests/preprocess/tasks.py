"""Build tasks as the runner does, in this process."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.devices import Ranks
from pipeline.rows import SPLITS
from preprocess.actions.downstreams import add_flags, load_downstream
from preprocess.actions.quantize import Quantizing, learn_kmeans
from preprocess.preprocessor import Preprocessor, Utterance


def runner_flags(*words: object) -> argparse.Namespace:
    """Return the runner's flags for this command line."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(list(map(str, words)))


def preprocessor(downstream: str, workspace: Path, *overrides: str) -> Preprocessor:
    """Return the task with its config.yaml, ``logmel100`` with 8 clusters, and corpora under
    ``<workspace>/corpora``.
    """
    small = ("taskrc.unit_model=logmel100", "fairseqrc.km_clusters=8", "fairseqrc.km_starts=2")
    flags = runner_flags("--workspace", workspace, "--set", *small, *overrides)
    return load_downstream(downstream, flags)


def read_tables(
    workspace: Path, files: dict[str, str], *overrides: str
) -> tuple[Preprocessor, dict[str, list[Utterance]]]:
    """Write ``files``; return the table task on them, and its utterances by split."""
    for name, content in files.items():
        path = workspace / "corpora" / "table" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    task = preprocessor("table", workspace, *(f"datarc.{override}" for override in overrides))
    return task, {split: task.utterances(split) for split in SPLITS}


def all_actions(task: Preprocessor) -> None:
    task.generate_manifest()
    learn_kmeans([task])
    Quantizing(task).run(Ranks(), skip_bad=False)
    task.postprocess()
