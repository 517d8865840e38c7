"""The choice and description of the device, and the flag --quiet."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pytest
import torch

from pipeline import runs
from pipeline.devices import choose_device, in_float64
from pipeline.errors import UserError
from preprocess.speech2unit.kmeans import KMeans


@pytest.mark.parametrize(
    ("gpu", "requested", "device", "reason"),
    [
        ("cuda", "auto", "cuda:1", "GPU G"),  # in other threads "cuda" would mean cuda:0
        ("cuda", "cuda", "cuda:1", "GPU G, as asked"),
        ("cuda", "cpu", "cpu", "CPU, as asked"),
        ("mps", "auto", "cpu", "CPU, --device mps uses Apple's GPU"),
        ("mps", "mps", "mps", "Apple GPU, as asked"),
        ("", "auto", "cpu", "CPU, no GPU found"),
        ("", "cuda", None, "expected cpu"),
        ("mps", "cuda", None, "expected cpu or mps"),
        ("cuda", "mps", None, "expected cpu or cuda"),
        ("cuda", "xpu", None, "expected cpu or cuda"),
    ],
)
def test_the_device_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, gpu: str, requested: str, device: str | None, reason: str
) -> None:
    """The machine has ``gpu`` in addition to the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu == "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "G")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: gpu == "mps")
    if device:
        assert choose_device(requested) == (torch.device(device), reason)
        return
    with pytest.raises(UserError) as raised:
        choose_device(requested)
    line = f"--device {requested}: torch {torch.__version__} finds no such device; {reason}"
    assert str(raised.value) == line


def test_float64_centres_stay_float64_with_apples_gpu() -> None:
    """In float32 both centres would be equally near, and the first would be chosen."""
    centres = np.array([[1.0 + 1e-6], [1.0]])
    assert KMeans(centres, torch.device("mps"))(torch.ones(1, 1)).tolist() == [1]
    assert in_float64(torch.ones(2, dtype=torch.float16)).dtype == torch.float64


@pytest.mark.parametrize(
    ("flags", "answers", "out", "err"),
    [
        ([], False, "line\n", "report\n"),
        (["--quiet"], False, "", ""),
        (["--quiet"], True, "line\n", ""),
    ],
)
def test_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], answers: bool, out: str, err: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(runs, "_quiet", False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored after the flag has replaced it
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    parser = argparse.ArgumentParser()
    runs.add_quiet(parser, prints_answers=answers)
    parser.parse_args(flags)
    print("line")
    runs.report("report")
    assert runs.progress_bar([1]).disable is (True if flags else None)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.replace("\r", "").split("  0%|")[0]) == (out, err)
