"""sample.py on a tiny random LM and prompt: its output, its flags, and resuming after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from pipeline.files import write_json
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call
from ulm_prompt.prompt_data.tasks import label_limit
from ulm_prompt.prompt_lm.search import Answer, Decoded
from ulm_prompt.scoring import sample_file
from ulm_prompt.scoring.sample_file import PartialAnswers, read_samples, within_path
from ulm_prompt.scoring.scores import score

PUBLISHED = ["file_name", "src", "label", "predict"]
SCORES = ["score", "label_scores"]


@pytest.fixture(scope="module")
def root(prepared: Path) -> Path:
    """A workspace with IC's text and a published checkpoint of random weights."""
    folder = Workspace(prepared).checkpoints("IC", "tiny100", "published")
    folder.mkdir(parents=True)
    state = {**tiny.lm().state_dict(), **tiny.prompted().prompt.published_state()}
    torch.save({"args": tiny.settings(3, 32, 4), "model": state}, folder / "checkpoint_best.pt")
    return prepared


def run(root: Path, date: str, *flags: object) -> Path:
    """Run sample.py in this process, which has imported fairseq. Return the path of the output."""
    command = ("--prompt_task", "IC", "--model_date", "published", "--sample_date", date,
               "--batch_size", 4, "--max_labels", 5, "--dtype", "float32")  # fmt: skip
    print(call("sample", root, *command, *flags), end="")
    return Workspace(root).samples("IC", "tiny100", "published", date)


def text_of(root: Path, split: str) -> list[str]:
    path = Workspace(root).prompt_text("tiny100", "fluent_commands", "data_freq", split)
    return path.read_text().splitlines()


def test_the_published_form(root: Path) -> None:
    """Greedy answers have four keys, as published. The second file has a score per label too."""
    path = run(root, "greedy")
    entries = read_samples(path)
    assert all(list(entry) == PUBLISHED for entry in entries)
    assert [f"{row['src']} {row['label']}" for row in entries] == text_of(root, "test")
    for entry in read_samples(within_path(path)):
        assert list(entry) == PUBLISHED + SCORES
        assert len(entry["label_scores"]) == len(entry["predict"].split()) == 3
        assert entry["score"] == pytest.approx(sum(entry["label_scores"]), abs=1e-4)
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("flags", [("--beam", 3), ("--sampling", "--topk", 9, "--seed", 5)])
def test_searches_give_scores(root: Path, flags: tuple[object, ...]) -> None:
    path = run(root, "search", *flags)
    assert all(list(entry) == PUBLISHED + SCORES for entry in read_samples(path))
    assert path.read_bytes() == run(root, "again", *flags).read_bytes()
    assert path.read_bytes() != run(root, "greedy").read_bytes()


def test_within_the_label_sequences_of_train(root: Path) -> None:
    within = read_samples(within_path(run(root, "t", "--within_labels", "trie")))
    train = {line.split(" <s> ")[1] for line in text_of(root, "train")}
    assert {entry["predict"] for entry in within} <= train


@pytest.mark.parametrize(("flags", "batches"), [((), 0), (("--sampling",), 3), (("--beam", 2), 3)])
def test_a_killed_run_resumes(
    root: Path, flags: tuple[str, ...], batches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a kill -9 within a line, the resumed run writes the bytes of an uninterrupted run."""
    whole = run(root, "whole", *flags)
    date = f"killed{batches}{''.join(map(str, flags))}"
    output = whole.parents[1] / f"samples_{date}" / whole.name

    def killed() -> None:
        add = PartialAnswers.add

        def counting(self: PartialAnswers, entries: dict) -> None:
            if len(self) >= 4 * batches:
                self._handle.write(b'{"row": 7, "free": {"pre')
                self._handle.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, entries)

        PartialAnswers.add = counting
        run(root, date, *flags)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not output.exists()
    capsys.readouterr()
    run(root, date, *flags)
    printed = capsys.readouterr().out
    assert (f"resumes after {4 * batches} of 29" in printed) == (batches > 0)
    for kind in (Path, within_path):
        assert kind(output).read_bytes() == kind(whole).read_bytes()
    assert not list(output.parent.glob("*.part"))


def test_a_batch_that_was_half_written_is_decoded_again(tmp_path: Path) -> None:
    """Cut at every byte: whole lines are kept, and the same file is completed."""
    path, made_from = tmp_path / "x.json.part", {"prompt": "abc"}
    answers = {3: {"free": {"predict": "5 6"}}, 1: {"free": {"predict": ""}}, 0: {"free": {}}}
    PartialAnswers(path, made_from).add(answers)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        partial = PartialAnswers(path, made_from)
        assert list(partial) == list(answers)[: max(0, whole[:cut].count(b"\n") - 1)]
        partial.add({row: answer for row, answer in answers.items() if row not in partial})
        assert path.read_bytes() == whole and partial == answers
    assert not PartialAnswers(path, {"prompt": "other"})
    assert not PartialAnswers(path, made_from), "the old answers are gone"


def test_the_label_limit() -> None:
    """The limit is 200, and longer for longer label sequences."""
    assert label_limit(None, 1) == label_limit(None, 3) == 200
    assert label_limit(None, 400) == 500
    assert label_limit(7, 400) == 7


def test_half_precision_from_the_command_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run keeps its dtype, whatever auto would choose, and ends with the same bytes."""
    full = read_samples(within_path(run(root, "f", "--dtype", "float32")))
    assert "computes on CPU, no GPU found, in torch.float32 (as asked)" in capsys.readouterr().out
    path = run(root, "b", "--dtype", "bfloat16")
    half = read_samples(within_path(path))
    assert sum(a["predict"] == b["predict"] for a, b in zip(full, half)) >= 24
    assert half != full, "the scores are not float32's"
    with monkeypatch.context() as patch:
        patch.setattr(sample_file, "write_samples", lambda *_: sys.exit(1))  # a kill at the end
        with pytest.raises(SystemExit):
            run(root, "cut", "--dtype", "bfloat16")
    resumed = run(root, "cut", "--dtype", "auto")
    assert resumed.read_bytes() == path.read_bytes()
    made_from = json.loads(sample_file.origin_path(resumed).read_text())
    assert made_from["machine"][0] == "torch.bfloat16"


def test_separators_are_removed_from_answers(tmp_path: Path) -> None:
    """As published, ``<s> 53`` counts as ``53`` and is right, also in files of old versions."""
    symbols = tiny.dictionary()
    free = Answer([symbols.bos(), symbols.index("53"), symbols.bos()], [-1.0, -0.5, -2.0])
    stored = sample_file.entry(Decoded(0, free, Answer([symbols.index("7")], [-0.25])), symbols)
    assert stored == {
        "symbols": 3,
        "free": {"predict": "53", "score": -0.5, "label_scores": [-0.5]},
        "within": {"predict": "7", "score": -0.25, "label_scores": [-0.25]},
    }
    path = tmp_path / "samples_KS_tiny100_d.json"
    row = {"file_name": "a.wav", "src": "71 12 <s>", "label": "53"}
    answers = ["<s> 53", "53", "<s>", "53 <s> <s>"]
    write_json(path, {str(n): {**row, "predict": text} for n, text in enumerate(answers)})
    write_json(within_path(path), {str(n): {**row, "predict": "53"} for n in range(4)})
    assert [entry["predict"] for entry in read_samples(path)] == ["53", "53", "", "53"]
    assert score(path)["accuracy"] == 75
