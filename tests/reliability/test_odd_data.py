"""Splits with one class, with labels that train lacks, or with rows longer than any LM reads. Every
stage prints what it found and how often, and every row stays in the counts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.rows import Row, write_rows
from pipeline.workspace import Workspace
from tests.ulm_prompt import tiny
from tests.ulm_prompt.in_process import call, data_stages
from tests.ulm_prompt.spoken import UNIT_MODEL, write_prompt
from ulm_prompt.prompt_lm.model import PromptLanguageModel
from ulm_prompt.scoring.scores import valid_curve

LONG = " ".join(str(12 + n % 80) for n in range(100_000))
KNOBS = ("max_update=2", "warmup_updates=0", "batch_size=8", "max_tokens=512")


def write(root: Path, one_class: tuple[str, ...] = (), **first: list[Row]) -> Workspace:
    """Write a KS workspace. Each split has its ``first`` rows, then 12 usual rows of the classes 0
    and 1, or of class 0 only if the split is in ``one_class``.
    """
    workspace = Workspace(root)
    for seed, split in enumerate(("train", "valid", "test")):
        labels = ("0",) if split in one_class else ("0", "1")
        usual = [
            Row(f"{split}/{n}.wav", row.units, labels[n % len(labels)])
            for n, row in enumerate(tiny.rows("speech_commands", 12, seed))
        ]
        rows = workspace.rows("speech_commands", UNIT_MODEL, split)
        write_rows(rows, first.get(split, []) + usual)
    tiny.write_lm(workspace.lm(UNIT_MODEL))
    return workspace


def train(root: Path, *knobs: str) -> str:
    flags = ("--recipe", "fast", "--prefix_prompt_length", 2, "--set", *KNOBS, *knobs)
    return call("train", root, "--date", "d", *flags)


def sampled(root: Path, *flags: object) -> tuple[str, list[dict], dict[str, object]]:
    """Return the output of sample.py, the answers within the label set, and the scores."""
    printed = call("sample", root, "--model_date", "d", "--sample_date", "d", *flags)
    path = Workspace(root).samples("KS", UNIT_MODEL, "d", "d")
    within = json.loads(path.with_stem(path.stem + "_within_labels").read_text())
    scored = call("cal_acc", root, "--sample_date", "d", "--report", "--mistakes", 99, "--json")
    (scores,) = json.loads(scored).values()
    call("cal_acc", root, "--sample_date", "d", "--report")
    return printed, list(within.values()), scores


def test_rows_beyond_the_positions_of_the_lm(tmp_path: Path) -> None:
    """Training uses them, and prints their number and the LM's setting."""
    write(tmp_path, ("train",), train=[Row("long.wav", " ".join(LONG.split()[:600]), "0")])
    data_stages(tmp_path)
    printed = train(tmp_path, "max_tokens=1024")
    assert (
        "too long: train: 1 of 13 rows are longer than the LM's tokens_per_sample=512 "
        "(row 1 is the longest, 603 tokens); they are used, but"
    ) in printed
    assert "too long: valid" not in printed


def test_a_log_with_bytes_that_are_not_text(tmp_path: Path) -> None:
    line = b"a | valid on 'valid' subset | loss 2.5 | num_updates 7\n"
    damaged = line.replace(b"loss", b"\xff\xfe") + line.replace(b"num_up", b"num\xff")
    (tmp_path / "train.log").write_bytes(damaged + line.replace(b"7", b"9"))
    curve = valid_curve(tmp_path / "train.log")
    assert curve == {7: {"num_updates": 7.0}, 9: {"loss": 2.5, "num_updates": 9.0}}


def test_rows_of_100_000_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training prints their number and stops, or skips them. sample.py gives them no answer, which
    counts as wrong and invalid in every score. The usual rows, all of one class, are right.
    """
    long = [Row("long.wav", LONG, "0")]
    test = [*long, Row("2.wav", LONG, "0")]
    write(tmp_path, ("train", "valid", "test"), train=long, valid=long, test=test)
    data_stages(tmp_path)
    with pytest.raises(UserError, match=r"train: 1 of 13 rows are longer than max_tokens=512 "
                       r"\(row 1 is the longest, 100,003 tokens\).*skip_long=true"):  # fmt: skip
        train(tmp_path)
    printed = train(tmp_path, "skip_long=true")
    assert "too long: train: 1 of 13 rows" in printed and "too long: valid: 1 of 13" in printed
    lengths = []
    embed = PromptLanguageModel.embed

    def spy(self: PromptLanguageModel, tokens: torch.Tensor, *others: object) -> torch.Tensor:
        lengths.append(tokens.shape[1])
        return embed(self, tokens, *others)

    monkeypatch.setattr(PromptLanguageModel, "embed", spy)
    printed, within, scores = sampled(tmp_path, "--max_units", 400)
    assert max(lengths) < 20
    assert "2 rows have more than 400 units (100,000 at most)" in printed
    assert [answer["predict"] == "" for answer in within] == [True] * 2 + [False] * 12
    assert scores["utterances"] == 14 and scores["too long to answer"] == 2
    assert len({answer["label"] for answer in within}) == 1
    assert scores["accuracy within labels"] == pytest.approx(100 * 12 / 14)
    assert scores["invalid answers"] == pytest.approx(100 - scores["accuracy"])
    unanswered = [row for row in scores["mistakes"] if not row["predict"]]
    assert [row["probability"] for row in unanswered] == [0.0, 0.0]


def test_labels_that_train_lacks(tmp_path: Path) -> None:
    workspace = write(tmp_path, ("train",), test=[Row("new.wav", "12 13", "7")])
    call("make_data", tmp_path)
    call("gen_labelspace", tmp_path)
    printed = call("verbalizer", tmp_path)
    assert "valid: 6 rows have a label that train never has" in printed
    assert "test: 7 rows have a label that train never has" in printed
    assert "train:" not in printed
    verbal = json.loads((workspace.datasets(UNIT_MODEL) / "verbal.json").read_text())
    assert list(verbal["KS"]) == ["0", "1", "7"]
    write_prompt(workspace, "KS", "d", 0)
    printed, _, scores = sampled(tmp_path)
    assert "7 rows have a label that train never has" in printed
    assert scores["utterances"] == 13 and "too long to answer" not in scores
    assert scores["accuracy within labels"] == pytest.approx(100 * 6 / 13)
