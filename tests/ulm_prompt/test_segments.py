"""Recordings cut at pauses: the pieces, the samples to read, and the output of --segments."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.workspace import Workspace
from preprocess.speech2unit import audio
from preprocess.speech2unit.audio import BadAudio
from tests.preprocess import corpora
from tests.ulm_prompt.spoken import melody, predict
from ulm_prompt.using.predictor import Predictor
from ulm_prompt.using.speech import find_pieces, read_waveform

SOUNDS = [(0.5, 1.1), (1.5, 1.8), (2.6, 3.9), (4.3, 4.6)]  # seconds
LASTS = 5.0


def noise(seconds: float, level: float, rate: int = 16_000) -> np.ndarray:
    """Return (T,) white noise with a level in dB of full scale."""
    samples = np.random.default_rng(3).standard_normal(round(seconds * rate))
    return (10 ** (level / 20) * samples).astype(np.float32)


def recording(
    level: float, rate: int = 16_000, sounds: list[tuple[float, float]] = SOUNDS
) -> np.ndarray:
    """Return (T,) 5 s of noise with tones at ``sounds``."""
    samples = noise(LASTS, level, rate)
    for start, end in sounds:
        tone = corpora.tone(end - start, 200, rate).astype(np.float32)
        samples[round(start * rate) :][: len(tone)] += tone
    return samples


def times(pieces: list) -> list[tuple[float, float]]:
    return [(piece.start, piece.end) for piece in pieces]


def near(times: list[tuple[float, float]]) -> list:
    return [pytest.approx(pair, abs=0.05) for pair in times]


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100])
@pytest.mark.parametrize("level", [-120.0, -60.0, -36.0])
def test_tones_between_pauses(tmp_path: Path, rate: int, level: float) -> None:
    """Tones over silence and constant noise, at several rates, in two channels with an offset."""
    samples = recording(level, rate)
    path = tmp_path / "a.wav"
    corpora.write(path, np.stack([samples, 0.5 * samples + 0.1], axis=1), rate)
    pieces = find_pieces(path)
    assert times(pieces) == near(SOUNDS)
    read_times = [(piece.first / rate, piece.last / rate) for piece in pieces]
    expected = [(0.25, 1.3), (1.3, 2.05), (2.35, 4.1), (4.1, 4.85)]  # up to the middle of a pause
    assert read_times == near(expected)
    for piece, (start, end) in zip(pieces, expected):
        seconds = len(read_waveform(path, piece.first, piece.last).samples) / 16_000
        assert seconds == pytest.approx(end - start, abs=0.1)


WAVES = (1 + 0.4 * np.sin(np.arange(160_000) / 5000)).astype(np.float32)  # 7 dB up and down
NO_SOUND = {
    "silence": np.zeros(48_000, np.float32),
    "loud noise": noise(3, -20),
    "a minute of noise": noise(60, -50),
    "noise in waves": noise(10, -40) * WAVES,
    "dither after zeros": np.concatenate([np.zeros(48_000, np.float32), noise(1, -85)]),
}


@pytest.mark.parametrize("samples", NO_SOUND.values(), ids=NO_SOUND)
def test_no_sound(samples: np.ndarray) -> None:
    with pytest.raises(BadAudio, match="no sound that is louder than the noise floor"):
        find_pieces(samples)


@pytest.mark.parametrize(
    ("sounds", "breath", "expected"),
    [
        ([(1.0, 1.5)], True, [(1.0, 1.5)]),
        ([(1.0, 1.3), (1.5, 1.8)], False, [(1.0, 1.8)]),
        ([(1.0, 1.4), (3.0, 3.03)], False, [(1.0, 1.4)]),
    ],
    ids=["a breath in a clean recording", "the closure of a stop", "a click"],
)
def test_sounds_that_are_no_separate_word(sounds: list, breath: bool, expected: list) -> None:
    samples = recording(-120 if breath else -60, sounds=sounds)
    if breath:
        samples[40_000:48_000] += noise(0.5, -66)
    assert times(find_pieces(samples)) == near(expected)


@pytest.mark.parametrize(("longest", "window"), [(2.0, 1.0), (3.0, 1.5), (10.0, None)])
def test_sound_without_pauses_becomes_windows(longest: float, window: float | None) -> None:
    """Windows from the first sound to the last overlap by half."""
    samples = noise(10, -60)
    sound = np.concatenate([melody(seed) for seed in range(20)])[: 8 * 16_000]
    samples[16_000 : 9 * 16_000] += sound.astype(np.float32)
    pieces = times(find_pieces(samples, longest))
    assert [(pieces[0][0], pieces[-1][1])] == near([(1, 9)])
    assert len(pieces) == 1 if window is None else len(pieces) > 8 / window
    for (start, end), (next_start, _) in zip(pieces, pieces[1:]):
        assert end - start == pytest.approx(window)
        assert start < next_start <= end - window / 2 + 0.01


def test_the_noise_may_change() -> None:
    """A fan that starts after half of the recording does not become one long sound."""
    quiet, loud = recording(-70), recording(-32)
    samples = np.concatenate([np.tile(quiet, 8), np.tile(loud, 8)])
    pieces = times(find_pieces(samples))
    expected = [(a + LASTS * turn, b + LASTS * turn) for turn in range(16) for a, b in SOUNDS]
    right = sum(
        any(abs(a - start) + abs(b - end) < 0.1 for start, end in pieces) for a, b in expected
    )
    assert right >= len(expected) - 4, "except near the change"


def test_neither_memory_nor_a_drift_grows_with_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes are 26 MB of float32. A frame at 11,025 Hz is not exactly 10 ms. A recording that
    is too long to be read at once is still cut.
    """
    monkeypatch.setattr(audio, "MOST_IN_PIECES", 1_000_000)
    corpora.write(tmp_path / "long.wav", np.tile(recording(-60, 11_025), 120), 11_025)
    with pytest.raises(BadAudio, match="cut it"):
        audio.measured(tmp_path / "long.wav")
    tracemalloc.start()
    pieces = find_pieces(tmp_path / "long.wav")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pieces) == 120 * len(SOUNDS)
    assert peak < 6e6
    assert times(pieces[-1:]) == near([(119 * LASTS + 4.3, 119 * LASTS + 4.6)])


def test_a_compressed_recording(tmp_path: Path) -> None:
    """Pieces are read at the right place, also if earlier samples must be decoded first."""
    for name, kind in (("a.opus", ("OGG", "OPUS")), ("a.mp3", ("MP3", "MPEG_LAYER_III"))):
        path = tmp_path / name
        soundfile.write(path, np.tile(recording(-50), 4), 16_000, format=kind[0], subtype=kind[1])
        pieces = find_pieces(path)
        assert len(pieces) == 4 * len(SOUNDS), name
        for piece in pieces[-4:]:
            samples = read_waveform(path, piece.first, piece.last).samples
            before = samples[: int(16_000 * (piece.start - piece.first / 16_000 - 0.05))]
            within = samples[len(before) + 1600 :][:2000]
            assert within.std() > 10 * before.std(), name


def test_a_segment_is_answered_as_its_samples_alone(predictor: Predictor) -> None:
    parts = [np.zeros(8000), melody(1), np.zeros(8000), melody(2), np.zeros(8000)]
    samples = np.hstack(parts).astype(np.float32)
    segments = list(predictor.segments(samples, top=2))
    pieces = find_pieces(samples)
    assert times(pieces) == times(segments) and len(pieces) == 2
    for piece, segment in zip(pieces, segments):
        (alone,) = predictor([samples[piece.first : piece.last]], top=2)
        for answer, expected in zip(segment.answers["IC"], alone["IC"], strict=True):
            assert answer.names == expected.names
        share = alone["KS"][0].probability
        assert segment.answers["KS"][0].probability == pytest.approx(share, rel=1e-4)


def test_the_output_of_predict_py(
    spoken_workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording that is too long for one utterance, and a silent recording, in every format."""
    corpora.write(tmp_path / "in" / "long.wav", np.tile(recording(-60), 25))
    corpora.write(tmp_path / "in" / "mute.wav", np.zeros(32_000))
    expected = [(a + LASTS * turn, b + LASTS * turn) for turn in range(25) for a, b in SOUNDS]
    printed = {}
    for form in ("jsonl", "csv", "table"):
        flags = ("--prompt", "IC", "--segments", "--format", form, tmp_path / "in")
        assert predict(spoken_workspace, *flags) == 1
        out, errors = capsys.readouterr()
        assert f"no answer: {tmp_path / 'in' / 'mute.wav'}: contains no sound that" in errors
        assert "100 segments in" in errors and "; 1 file without an answer" in errors
        printed[form] = out
    entries = [json.loads(line) for line in printed["jsonl"].splitlines()]
    segments = [(entry["start"], entry["end"]) for entry in entries]
    assert segments == near(expected)
    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    assert [(float(row["start"]), float(row["end"])) for row in rows] == segments
    assert [row["labels"].split("|") for row in rows] == [entry["labels"] for entry in entries]
    head, *lines = printed["table"].splitlines()
    assert head.split() == ["file", "start", "end", "task", "%", "answer"]
    starts = [float(line[: head.index("start") + len("start")].split()[-1]) for line in lines]
    assert starts == [pytest.approx(start, abs=0.006) for start, _ in segments]
