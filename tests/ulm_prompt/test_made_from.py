"""Results of other inputs are never reused. Hashes, not times, say what a file was made from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.rows import SPLITS
from pipeline.workspace import Workspace
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_data.prompt_record import read_record
from ulm_prompt.scoring.sample_file import origin_of

UNIT_MODEL = "tiny100"
KS = ("--prompt_task", "KS")
TRAIN = (*KS, "--date", "made", "--set", "max_update=1")
SAMPLE = (*KS, "--model_date", "made", "--sample_date", "made")
KEPT = "has these answers; nothing to decode"


@pytest.fixture(scope="module")
def made(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with prompts of both tasks, and KS's answers."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("made") / "w"))
    call("train", root, *TRAIN[2:])
    call("sample", root, *SAMPLE)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def run_folder(root: Path, task: str = "KS", date: str = "made") -> Path:
    return Workspace(root).checkpoints(task, UNIT_MODEL, date)


def replace(path: Path, content: bytes) -> None:
    """Replace a file as ``cp -p`` and tar do: the new file is older than the results of the old."""
    path.write_bytes(content)
    os.utime(path, (1, 1))


def reverse_lines(path: Path) -> None:
    replace(path, b"".join(reversed(path.read_bytes().splitlines(keepends=True))))


def take_from_ic(kind: str) -> Callable[[Path], None]:
    """Return a function that replaces KS's checkpoint or binaries by IC's."""

    def change(root: Path) -> None:
        ours, others = (run_folder(root, task) for task in ("KS", "IC"))
        if kind == "bins":
            ours, others = (Workspace(root).data_bin(UNIT_MODEL, task) for task in ("KS", "IC"))
        for file in others.glob("*.[bi]*" if kind == "bins" else f"*_{kind}.pt"):
            replace(ours / file.name, file.read_bytes())

    return change


def flip_bit(root: Path) -> None:
    path = run_folder(root) / "checkpoint_best.pt"
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 200] ^= 1  # in a tensor
    replace(path, bytes(content))


def change_dict(root: Path) -> None:
    reverse_lines(Workspace(root).lm(UNIT_MODEL) / "dict.txt")


def change_text(root: Path) -> None:
    reverse_lines(Workspace(root).prompt_text(UNIT_MODEL, "speech_commands", "data_freq", "test"))


OTHER_FILE = r"checkpoint_{}\.pt: not the file that prompt\.json beside it was written for"
OTHER_TEXT = "verbal.json: stale, the text in .*data_freq has changed"


@pytest.mark.parametrize(
    ("change", "script", "expected"),
    [
        (change_dict, "sample", r"dict\.txt: has fingerprint \w+, but the prompt in"),
        (change_dict, "train", "KS-data-bin: stale, the LM has another dict.txt"),
        (take_from_ic("best"), "sample", "length 6, but prompt.json beside it says 3"),
        (take_from_ic("best"), "train", OTHER_FILE.format("best")),
        (take_from_ic("last"), "train", OTHER_FILE.format("last")),
        (flip_bit, "sample", OTHER_FILE.format("best")),
        (take_from_ic("bins"), "train", r"KS-data-bin: not the files that sources\.json was"),
        (change_text, "sample", OTHER_TEXT),
        (change_text, "fairseq_preprocess", OTHER_TEXT),
    ],
)
def test_a_replaced_file_is_refused(
    root: Path, change: Callable[[Path], None], script: str, expected: str
) -> None:
    change(root)
    with pytest.raises(UserError, match=expected):
        call(script, root, *{"train": TRAIN, "sample": SAMPLE}.get(script, KS))


def test_a_finished_runs_record_loses_nothing(root: Path) -> None:
    """Also without its logs, without its last checkpoint, and for an old record, which names no
    files.
    """
    shutil.rmtree(root / "logs")
    folder = run_folder(root)
    before, record = read_record(folder), read_json(folder / "prompt.json", "")
    assert before.valid.keys() == {"loss", "label_loss", "accuracy"}
    printed = call("train", root, *TRAIN)
    assert "this run has finished" in printed and "label_loss in nats per label, acc" in printed
    assert read_record(folder) == before
    write_json(folder / "prompt.json", record | {"files": {}, "dict_fingerprint": ""})
    call("train", root, *TRAIN)
    after = read_record(folder)
    assert (after.valid, after.files, after.run) == (before.valid, before.files, before.run)
    (folder / "checkpoint_last.pt").unlink()  # as users do to save space
    assert "this run has finished" in call("train", root, *TRAIN)


def test_a_run_that_lasts_longer_names_no_files_until_it_ends(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill, sample.py prints that the run is unfinished, and export.py refuses it."""
    longer = (*KS, "--date", "long", "--set", "batch_size=64")
    call("train", root, *longer, "max_epoch=1")
    folder = run_folder(root, date="long")
    assert read_record(folder).files
    with monkeypatch.context() as patch:
        patch.setattr("ulm_prompt.prompt_lm.checkpoint.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call("train", root, *longer, "max_epoch=2")
    assert (read_record(folder).files, read_record(folder).trained_parameters) == ({}, 0)
    flags = (*KS, "--model_date", "long", "--sample_date", "long")
    assert "best.pt: its training has not finished" in call("sample", root, *flags)
    with pytest.raises(UserError, match="its training has not finished"):
        call("export", root, *flags[:4], "--unit_model", UNIT_MODEL, "--out", root / "shared")
    call("train", root, *longer, "max_epoch=2")
    assert read_record(folder).files["checkpoint_best.pt"] == sha256(folder / "checkpoint_best.pt")
    assert "not finished" not in call("sample", root, *flags)


def test_answers_are_kept_while_they_are_of_these_inputs(root: Path) -> None:
    path = Workspace(root).samples("KS", UNIT_MODEL, "made", "made")
    before = path.read_bytes()
    assert KEPT in call("sample", root, *SAMPLE)
    assert KEPT not in call("sample", root, *SAMPLE, "--max_units", 10)
    assert KEPT not in call("sample", root, *SAMPLE) and path.read_bytes() == before
    replace(path, before.replace(b'"predict": "', b'"predict": "1 ', 1))
    assert origin_of(path) == {}, "the answers were changed"
    assert KEPT not in call("sample", root, *SAMPLE) and path.read_bytes() == before
    rows = Workspace(root).rows("speech_commands", UNIT_MODEL, "test")
    replace(rows, rows.read_bytes().replace(b"2/0.wav", b"2/x.wav"))
    for script in ("make_data", "verbalizer", "fairseq_preprocess"):
        printed = call(script, root, *KS)
    assert "was made from this text and dict: kept" in printed
    assert KEPT not in call("sample", root, *SAMPLE) and b"2/x.wav" in path.read_bytes()


def test_the_next_command_has_the_flags_and_the_lm(root: Path) -> None:
    printed = call("verbalizer", root, *KS, "--verbalizer", "v")
    flags = f"--verbalizer v --prompt_task KS --workspace {root}"
    assert printed.endswith(f"next: python ulm_prompt/fairseq_preprocess.py {flags}\n")
    folder = Workspace(root).datasets(UNIT_MODEL) / "speech_commands" / "verbalizers" / "v"
    for method, again in {"freq": "v again", "kmeans": "v --method kmeans again"}.items():
        call("verbalizer", root, *KS, "--verbalizer", "v", "--method", method)
        replace(folder / "valid.txt", b"")
        with pytest.raises(UserError, match=rf"run ulm_prompt/verbalizer.py --verbalizer {again}$"):
            call("fairseq_preprocess", root, *KS, "--verbalizer", "v")
    shutil.rmtree(Workspace(root).lm(UNIT_MODEL))
    printed = call("verbalizer", root, *KS)
    assert f"{UNIT_MODEL}: no unit LM yet; run ulm_prompt/train_ulm.py, or" in printed


def test_rows_of_other_manifests_are_stale(root: Path) -> None:
    data = Workspace(root).downstream_data("speech_commands")
    hashes = {}
    for split in SPLITS:
        path = data / "manifest" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"/corpus\n{split}.wav\t1\n")
        hashes[split] = sha256(path)
    write_json(data / UNIT_MODEL / "provenance.json", {"manifest": hashes})
    call("make_data", root, *KS)
    replace(data / "manifest" / "valid.tsv", b"/corpus\n")
    with pytest.raises(UserError, match=r"tiny100: stale, .*valid\.tsv has changed .* --downstr"):
        call("make_data", root, *KS)
