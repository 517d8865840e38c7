"""Audio of any kind is read; a file that cannot be used is refused with the reason."""

import numpy as np
import pytest
import soundfile
import torch

from pipeline.errors import UserError
from preprocess.speech2unit import audio
from preprocess.speech2unit.audio import (
    BadAudio,
    Tally,
    array_waveform,
    length_and_rate,
    measured,
    mono_blocks,
    read_audio,
)
from tests.preprocess.corpora import tone, write


def test_rates_and_channels_are_converted_and_noted(tmp_path):
    samples = tone(1.0, 200, rate=8000)
    write(tmp_path / "8k.wav", np.stack([samples, samples], axis=1), rate=8000)
    read, notes = read_audio(tmp_path / "8k.wav", 0, 8000)
    assert read.shape == (16_000,) and read.dtype == np.float32
    expected = tone(1.0, 200)
    assert np.corrcoef(read[200:-200], expected[200:-200])[0, 1] > 0.99
    assert notes == ("2 channels mixed to one", "8000 Hz resampled to 16000 Hz")


def test_bad_audio_is_refused_with_the_reason(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound")
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan), 16_000, subtype="FLOAT")
    write(tmp_path / "brief.wav", tone(0.1, 100))
    for name in ("samples.raw", "SAMPLES.RAW"):
        (tmp_path / name).write_bytes(bytes(3200))
    for name, reason in {
        "empty.wav": "is an empty file",
        "text.wav": "is not readable audio",
        "nan.wav": "not finite",
        "brief.wav": "ends early: expected 5000 samples, found 1600",
        "absent.wav": "does not exist",
        "samples.raw": "has no header that says its rate",
        "SAMPLES.RAW": "has no header that says its rate",
    }.items():
        with pytest.raises(BadAudio, match=reason):
            read_audio(tmp_path / name, 0, 500 if name == "nan.wav" else 5000)


def test_bad_audio_is_listed_and_an_old_list_removed(tmp_path):
    report = tmp_path / "bad.txt"
    tally = Tally()
    for number in range(5):
        tally.add(BadAudio("is an empty file"), tmp_path / f"{number}.wav")
    with pytest.raises(UserError, match=r"^5 audio .*0\.wav \(is an empty file\).*and 2 more"):
        tally.report(report)
    assert len(report.read_text().splitlines()) == 5
    Tally().report(report)
    assert not report.exists()


@pytest.mark.parametrize(("peak", "accepted"), [(1.5, True), (32_767, False), (-32_768, False)])
def test_a_float_file_may_exceed_one_a_little(tmp_path, peak, accepted):
    samples = tone(0.5, 200)
    samples *= peak / np.abs(samples).max()
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    if accepted:
        assert np.array_equal(read_audio(tmp_path / "a.wav", 0, 8000).samples, np.float32(samples))
        return
    for read in (lambda path: read_audio(path, 0, 8000), lambda path: [*mono_blocks(path, 80)]):
        with pytest.raises(BadAudio, match="float peak .*far above 1; divide the samples"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int32])
def test_arrays_of_integers_are_scaled_by_their_type(kind):
    samples = tone(0.5, 200)
    scale, middle = 2.0 ** (8 * np.dtype(kind).itemsize - 1), 128 if kind is np.uint8 else 0
    array = (samples * scale + middle).astype(kind)
    for given in (array, torch.from_numpy(array)):
        read = array_waveform(given).samples
        assert read.dtype == np.float32 and np.abs(read - samples).max() <= 2 / min(scale, 2**23)
    assert array_waveform(np.full(9, np.iinfo(kind).min, kind)).samples.tolist() == [-1.0] * 9


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(9, bool), "found bool"),
        (np.zeros(9, complex), "found complex128"),
        (np.zeros(9, np.int64), "found int64"),
        (torch.zeros(9, dtype=torch.complex64), "found complex64"),
        (np.array(["a"]), "found <U1"),
        (np.zeros((2, 9)), r"found \(2, 9\); pass one channel"),
        ([[0.0], [0.0, 1.0]], "expected samples"),
        (np.full(9, 32_767.0), "float peak 32,767, far above 1"),
        (np.full(9, np.nan), "not finite"),
    ],
)
def test_arrays_that_are_no_samples(array, reason):
    with pytest.raises(BadAudio, match=reason):
        array_waveform(array)


STEREO = {  # gains of a voice in the channels, and the expected note
    "the same": ((1, 1), "2 channels mixed to one"),
    "one is silent": ((0, 1), "2 channels mixed to one"),
    "opposite": ((1, -1), "the loudest of 2 channels taken, which cancel each other"),
    "nearly opposite": ((1, -0.8), "the loudest of 2 channels taken, which cancel each other"),
    "a half the other way": ((1, -0.5), "2 channels mixed to one"),
    "5.1, the voice in front": ((0, 0, 1, 0, 0, 0), "6 channels mixed to one, their mean"),
}


@pytest.mark.parametrize(("gains", "note"), STEREO.values(), ids=STEREO)
def test_channels_are_never_mixed_to_silence(tmp_path, gains, note):
    voice = tone(0.5, 200)
    write(tmp_path / "a.wav", voice[:, None] * gains + 0.1)
    samples, notes = read_audio(tmp_path / "a.wav", 0, 8000)
    expected = voice if "taken" in note else voice * np.mean(gains)
    assert notes == (note,) and np.abs(samples - expected - 0.1).max() < 1e-4
    assert np.array_equal(np.concatenate([*mono_blocks(tmp_path / "a.wav", 3000)]), samples)


def test_a_long_recording_is_read_in_blocks_or_refused(tmp_path, monkeypatch):
    """Memory holds one channel at 16 kHz. A recording over an hour is refused before reading."""
    write(tmp_path / "a.wav", np.stack(2 * [tone(3.0, 200, 48_000)], axis=1), 48_000)
    whole = read_audio(tmp_path / "a.wav", 0, 144_000).samples
    monkeypatch.setattr(audio, "AT_ONCE", 20_000)
    in_blocks = read_audio(tmp_path / "a.wav", 0, 144_000).samples
    assert np.array_equal(in_blocks, whole)
    monkeypatch.setattr(audio, "MOST_SAMPLES", 16_000)
    monkeypatch.setattr(audio, "MOST_IN_PIECES", 16_000)
    for read in (measured, lambda path: read_audio(path, 0, 144_000)):
        with pytest.raises(BadAudio, match="too long for one utterance: .* cut it"):
            read(tmp_path / "a.wav")
    assert length_and_rate(tmp_path / "a.wav") == (144_000, 48_000)
