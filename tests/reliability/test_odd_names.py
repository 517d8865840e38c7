"""Odd file names stay unchanged from the wav files to the scores, also after a Windows editor has
saved the files that people edit.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import soundfile

from pipeline.devices import Ranks
from pipeline.errors import UserError, run
from pipeline.rows import SPLITS, Row, read_rows, write_rows
from pipeline.workspace import Workspace
from preprocess.actions.manifest import Entry, write_manifest
from preprocess.actions.quantize import Quantizing, learn_kmeans
from tests.preprocess import corpora
from tests.preprocess.tasks import preprocessor
from tests.reliability.hostile import refused, windows
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from tests.ulm_prompt.spoken import UNIT_MODEL, write_prompt
from ulm_prompt.prompt_data.ulm_text import write_dict
from ulm_prompt.prompt_lm.lm import load_dictionary

NAMES = (
    "cafe\u0301.wav", "caf\u00e9.wav",  # decomposed and composed: two files
    "\U0001f469\u200d\U0001f680 go.wav", "\u0634\u063a\u0644 \u202eabc.wav",
    "a\tb.wav", "a|b|1 2|3.wav", " spaces  .wav", "-rf.wav", "--help", 'say "hi", x.wav', '"q".wav',
    "back\\slash\\n.wav", "\u2028line.wav", "{0} %s $HOME *?.wav", "#c;d&e.wav", "\x1b[2J.wav",
)  # fmt: skip
LABELS = (("start", "lamp", "none"), ("stop", "heat", "kitchen"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write Fluent Speech Commands with odd names and a spreadsheet's tables; run stage 1."""
    root = tmp_path_factory.mktemp("wörk space|1")
    corpus = root / "corpora" / "fluent_commands"
    (corpus / "data").mkdir(parents=True)
    for split in SPLITS:
        with open(corpus / "data" / f"{split}_data.csv", "w", newline="") as handle:
            table = csv.writer(handle)
            table.writerow(["path", "action", "object", "location"])
            for number, name in enumerate(NAMES):
                path = f"wavs/{split} \u00e9|x/{name}"
                samples = corpora.tone(0.3, 100 + 20 * number)
                (corpus / path).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(corpus / path, samples, 16_000, subtype="PCM_16", format="WAV")
                table.writerow([path, *LABELS[number % 2]])
        windows(corpus / "data" / f"{split}_data.csv")
    task = preprocessor("fluent_commands", root)
    task.generate_manifest()
    learn_kmeans([task])
    Quantizing(task).run(Ranks(), skip_bad=False)
    task.postprocess()
    return root


def test_names_survive_to_the_scores(root: Path) -> None:
    workspace = Workspace(root)
    for split in SPLITS:
        rows = workspace.rows("fluent_commands", UNIT_MODEL, split)
        expected = [f"wavs/{split} \u00e9|x/{name}" for name in NAMES]
        assert [row.file for row in read_rows(rows)] == expected
        windows(rows)
    lm = workspace.lm(UNIT_MODEL)
    tiny.write_lm(lm)
    windows(lm / "dict.txt")
    for name in ("make_data", "gen_labelspace", "verbalizer"):
        call(name, root)
    windows(workspace.datasets(UNIT_MODEL) / "verbal.json")
    call("fairseq_preprocess", root)
    write_prompt(workspace, "IC", "d", 0)
    call("sample", root, "--model_date", "d", "--sample_date", "d")
    samples = json.loads(workspace.samples("IC", UNIT_MODEL, "d", "d").read_text())
    assert [entry["file_name"] for entry in samples.values()] == expected
    printed = call("cal_acc", root, "--sample_date", "d", "--report", "--mistakes", 99)
    assert "utterances" in printed and f"{len(NAMES)}" in printed
    assert all(line.isprintable() for line in printed.split("\n"))


def test_a_dict_has_every_number_up_to_the_highest_unit(tmp_path: Path) -> None:
    """A mistyped unit is refused, because every number up to it would become a symbol."""
    (tmp_path / "train.txt").write_text("3 1 3\n0\n")
    write_dict(tmp_path / "dict.txt", {"train": tmp_path / "train.txt"})
    symbols = load_dictionary(tmp_path)
    assert (symbols.symbols[4:], symbols.count[4:]) == (["0", "1", "2", "3"], [1, 1, 0, 2])
    (tmp_path / "train.txt").write_text("1 2\n3 999999999\n")
    with pytest.raises(UserError, match="unit 999999999; expected a k-means cluster"):
        write_dict(tmp_path / "dict.txt", {"train": tmp_path / "train.txt"})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\nb", "line break"),
        ("a\rb", "line break"),
        ("\ufeffa", "byte order mark"),
        ("a\udcff", "not UTF-8"),
    ],
)
def test_names_that_no_row_can_contain(tmp_path: Path, name: str, reason: str) -> None:
    for write in (
        lambda: write_rows(tmp_path / "t", [Row(name, "1", "2")]),
        lambda: write_manifest(tmp_path / "t", Path("/"), [Entry(name, 1, 0, "b", "1")]),
    ):
        assert reason in refused(write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_manifest_refuses_a_name_that_is_not_utf8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    root = corpora.speech_commands(tmp_path / "corpora" / "speech_commands")
    folder = next(root.glob("*test_set*")) if split == "test" else root / "speech_commands_v0.01"
    clip = next((folder / "yes").glob("*.wav"))
    clip.rename(clip.parent / "caf\udce9.wav")
    task = preprocessor("speech_commands", tmp_path)
    with pytest.raises(SystemExit) as end:
        run(task.generate_manifest)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.count("\n") == 1
    assert "caf\\udce9.wav: a name that is not UTF-8 text; rename it" in printed
    assert not (tmp_path / "preprocess").exists()
