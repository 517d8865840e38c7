"""The downstream in docs/own_task.md and the reader in docs/unit_models.md, as the pages print
them; and pieces of files.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.rows import read_rows
from pipeline.workspace import REPOSITORY
from preprocess.actions.manifest import read_manifest
from preprocess.preprocessor import Utterance
from preprocess.speech2unit.features import Source
from tests.conftest import stage
from tests.preprocess.corpora import tone, write
from tests.preprocess.tasks import preprocessor

PAGE = (REPOSITORY / "docs" / "own_task.md").read_text()
PAGE = PAGE.split("## With a preprocessor of your own")[1]


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_page_makes_a_downstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a copy of the packages, because a downstream is a folder of the repository. In the
    repository itself, a reader of the page may have created it.
    """
    for package in ("pipeline", "preprocess", "pretrained_models"):
        ignored = shutil.ignore_patterns("data", "*.pt", "__pycache__", "animals", "my_*.yaml")
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=ignored)
    folder = tmp_path / "preprocess" / "animals"
    folder.mkdir()
    root = re.search(r"root_path: (\S+)", block("yaml"))[1]
    (folder / "config.yaml").write_text(block("yaml"))
    (folder / "preprocessor.py").write_text(block("python"))
    for number, animal in enumerate(("owl", "cat")):
        for speaker in "abcdefghij":
            path = tmp_path / root / animal / f"{speaker}_0.wav"
            write(path, tone(0.3, 100 + 300 * number + ord(speaker)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # searched before the installed packages
    runner = tmp_path / "preprocess" / "runner.py"
    small = ("--unit_model", "logmel100", "--set", "fairseqrc.km_clusters=8",
             "fairseqrc.km_starts=1")  # fmt: skip
    for action in ("generate_manifest", "learn_kmeans", "quantized", "postprocess"):
        stage(str(runner), "--downstream", "animals", "--action", action, *small)
    rows = {split: list(read_rows(folder / "data" / "logmel100" / split))
            for split in ("train", "valid", "test")}  # fmt: skip
    assert [len(split) for split in rows.values()] == [12, 4, 4]
    speakers = [{Path(row.file).name[0] for row in split} for split in rows.values()]
    assert speakers == [set("abcfgh"), set("di"), set("ej")]
    assert {row.labels for row in rows["test"]} == {"0", "1"}


def test_a_piece_from_its_start_to_the_end_of_the_file(tmp_path, monkeypatch):
    """Samples count at the file's own rate, also without a number of samples."""
    task = preprocessor("table", tmp_path)
    write(task.root / "a.wav", tone(1.0, 100, 8_000), 8_000)
    pieces = [Utterance("a.wav", ("x",), 6_000, None, "end"), Utterance("a.wav", ("x",), 8_000)]
    monkeypatch.setattr(type(task), "slots", ("label",))
    monkeypatch.setattr(task, "utterances", lambda split: pieces[:1])
    task.generate_manifest()
    _, (entry,) = read_manifest(task.manifest / "test.tsv")
    assert entry == ("a.wav", 2_000, 6_000, "end", "0")
    monkeypatch.setattr(task, "utterances", lambda split: pieces[1:])
    with pytest.raises(UserError, match=r"a\.wav: start 8000, 0 samples: .* 8000 samples"):
        task.generate_manifest()


def test_the_page_on_unit_models_makes_a_reader():
    page, names = (REPOSITORY / "docs" / "unit_models.md").read_text(), {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    samples = torch.from_numpy(tone(1.0, 100)).float()
    long, short = names["Loudness"](Source())([samples, samples[:320]])
    assert long.shape == (50, 1) and long.dtype == torch.float32 and torch.equal(short, long[:1])
