"""What predict.py and a Predictor say of the audio that they read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.workspace import Workspace
from tests.preprocess import corpora
from tests.ulm_prompt.spoken import melody
from tests.ulm_prompt.test_predict import predictor, run  # noqa: F401 (a fixture)
from ulm_prompt.using.predictor import BadAudio, Predictor


def test_an_array_is_answered_as_the_file_of_its_type(
    tmp_path: Path,
    predictor: Predictor,  # noqa: F811
) -> None:
    samples = melody(1)
    arrays = {
        "PCM_16": (samples * 2**15).astype(np.int16),
        "PCM_32": (samples * 2**31).astype(np.int32),
        "PCM_U8": (samples * 128 + 128).astype(np.uint8),
        "DOUBLE": samples,
    }
    for subtype, array in arrays.items():
        soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype=subtype)
        of_file, of_array, of_tensor = predictor([tmp_path / "a.wav", array, torch.tensor(array)])
        for answers in (of_array, of_tensor):
            for task, (best, *_) in answers.items():
                assert best.names == of_file[task][0].names, (subtype, task)
    for array, reason in (
        (samples * 2**15, "float peak"),
        (samples > 0, "found bool"),
        (np.stack([samples, samples]), "pass one channel"),
    ):
        (bad,) = predictor([array])
        assert isinstance(bad, BadAudio) and reason in str(bad)
        with pytest.raises(BadAudio, match=reason):
            list(predictor.segments(array))


@pytest.mark.parametrize("flags", [(), ("--segments",)])
def test_predict_py_counts_its_audio(
    spoken_workspace: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
) -> None:
    voice = np.concatenate([np.zeros(8000), melody(1), np.zeros(8000)])
    corpora.write(tmp_path / "opposite.wav", np.stack([voice, -voice], axis=1))
    corpora.write(tmp_path / "slow.wav", voice[::2], 8000)
    corpora.write(tmp_path / "cut.wav", voice)
    corpora.write(tmp_path / "cut2.wav", voice)
    for name in ("cut.wav", "cut2.wav"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:9_000])
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(SystemExit):
        run(spoken_workspace, "--prompt", "IC", *flags, "--format", "csv", tmp_path)
    errors = capsys.readouterr().err
    total = len(voice) / 16_000
    assert f"cut.wav: is cut short: 0.28 s of {total:.2f} s are there\n" in errors
    assert "pipe.wav: is not readable audio: it is a pipe; save it to a file first\n" in errors
    assert (
        "audio: 2 recordings read (the loudest of 2 channels taken, which cancel each other: 1; "
        "8000 Hz resampled to 16000 Hz: 1); 3 left out (is cut short: 2; is not readable audio: 1)"
    ) in errors
