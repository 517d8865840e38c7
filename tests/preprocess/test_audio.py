"""Reading audio of any kind, and saying what is wrong with the rest."""

import numpy as np
import pytest
import soundfile

from pipeline.errors import UserError
from preprocess.speech2unit.audio import BadAudio, length_and_rate, read_audio, report_bad_audio
from tests.preprocess.corpora import tone, write

KINDS = {  # format and subtype, as people have them; the error that each may make
    "wav": (("WAV", "PCM_16"), 1e-4),
    "24bit.wav": (("WAV", "PCM_24"), 1e-6),
    "float.wav": (("WAV", "FLOAT"), 1e-7),
    "flac": (("FLAC", "PCM_16"), 1e-4),
    "ogg": (("OGG", "VORBIS"), 5e-2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(tmp_path, kind):
    (form, subtype), error = KINDS[kind]
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tone(1.0, 200), 16_000, format=form, subtype=subtype)
    read, notes = read_audio(path, 0, soundfile.info(path).frames)
    assert notes == () and read.dtype == np.float32
    assert np.abs(read - tone(1.0, 200)).max() < error


def test_rates_and_channels_are_converted_and_noted(tmp_path):
    samples = tone(1.0, 200, rate=8000)
    write(tmp_path / "8k.wav", np.stack([samples, samples], axis=1), rate=8000)
    read, notes = read_audio(tmp_path / "8k.wav", 0, 8000)
    assert read.shape == (16_000,) and read.dtype == np.float32
    expected = tone(1.0, 200)
    assert np.corrcoef(read[200:-200], expected[200:-200])[0, 1] > 0.99
    assert notes == ("2 channels mixed to one", "8000 Hz resampled to 16000 Hz")


def test_a_crop_is_that_part_of_the_file(tmp_path):
    write(tmp_path / "a.wav", tone(2.0, 100))
    whole = read_audio(tmp_path / "a.wav", 0, 32_000).samples
    crop = read_audio(tmp_path / "a.wav", 1234, 16_000).samples
    assert np.array_equal(crop, whole[1234 : 1234 + 16_000])


def test_bad_audio_is_said_why(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound")
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan), 16_000, subtype="FLOAT")
    write(tmp_path / "brief.wav", tone(0.1, 100))
    for name, reason in {
        "empty": "is an empty file",
        "text": "is not readable audio",
        "nan": "not finite",
        "brief": "ends early: expected 5000 samples, found 1600",
        "absent": "does not exist",
    }.items():
        with pytest.raises(BadAudio, match=reason):
            read_audio(tmp_path / f"{name}.wav", 0, 500 if name == "nan" else 5000)


def test_bad_audio_is_listed_and_an_old_list_removed(tmp_path):
    report = tmp_path / "bad.txt"
    bad = {tmp_path / f"{number}.wav": "is an empty file" for number in range(5)}
    with pytest.raises(UserError, match=r"^5 audio .*0\.wav \(is an empty file\).*and 2 more"):
        report_bad_audio(bad, report)
    assert len(report.read_text().splitlines()) == 5
    report_bad_audio({}, report)
    assert not report.exists()


@pytest.mark.parametrize("name", ["a.raw", "A.RAW"])
def test_samples_without_a_header(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(3200))
    for read in (lambda path: read_audio(path, 0, 1600), length_and_rate):
        with pytest.raises(BadAudio, match="has no header that says its rate"):
            read(tmp_path / name)
