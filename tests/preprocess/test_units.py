"""k-means, the quantising loop, merging, and reading audio."""

from itertools import groupby

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from preprocess.manifest import Entry
from preprocess.speech2unit.audio import AudioReader, BadAudio, fail_on_bad_audio
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.kmeans import KMeans, fit_kmeans, load_kmeans, save_kmeans
from preprocess.speech2unit.logmel import LogMel
from preprocess.speech2unit.quantize import Encoder, merge_runs, quantize
from tests.preprocess.corpora import tone, write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(N, 80) log-mel frames of tones."""
    waveforms = [torch.from_numpy(tone(0.5, hertz)).float() for hertz in range(80, 400, 20)]
    return torch.cat(LogMel(Source())(waveforms)).numpy()


def test_units_equal_scikit_learn(frames):
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(20, random_state=0, n_init=1).fit(frames)
    units = KMeans(model.cluster_centers_, CPU)(torch.from_numpy(frames))
    assert np.array_equal(units.numpy(), model.predict(frames))
    assert len(set(units.tolist())) > 10


def test_units_are_nearest_centres(frames):
    centres = frames[:: len(frames) // 30]
    distances = ((frames[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2)
    units = KMeans(centres, CPU)(torch.from_numpy(frames))
    assert np.array_equal(units.numpy(), distances.argmin(axis=1))


def test_learning_repeats_and_survives_the_disk(frames, tmp_path):
    centres = fit_kmeans(frames, 10, 2, seed=3)
    assert centres.shape == (10, 80)
    assert np.array_equal(centres, fit_kmeans(frames, 10, 2, seed=3))
    assert not np.array_equal(centres, fit_kmeans(frames, 10, 2, seed=4))
    save_kmeans(tmp_path / "km.npz", centres)
    assert np.array_equal(load_kmeans(tmp_path / "km.npz"), centres)


def test_kmeans_files_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="not found; learn it"):
        load_kmeans(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(UserError, match="expected an .npz"):
        load_kmeans(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", means=np.zeros((2, 2)))
    with pytest.raises(UserError, match="'centres'"):
        load_kmeans(tmp_path / "other.npz")
    with pytest.raises(UserError, match="3 feature frames for 5 clusters"):
        fit_kmeans(np.zeros((3, 80), np.float32), 5, 2, seed=0)


@pytest.mark.parametrize("batch_seconds", [0.01, 1.0, 100.0])
def test_order_and_units_do_not_depend_on_the_batch(frames, tmp_path, batch_seconds):
    lengths = np.random.default_rng(0).uniform(0.1, 0.9, 30)
    entries = []
    for number, seconds in enumerate(lengths):
        write(tmp_path / f"{number}.wav", tone(seconds, 80 + 10 * number))
        entries.append(Entry(f"{number}.wav", int(seconds * 16_000), 0, f"{number}.wav", "0"))
    kmeans = KMeans(fit_kmeans(frames, 30, 2, seed=0), CPU)

    def lines(some: list[Entry]) -> list[tuple[str, str]]:
        encoder = Encoder(LogMel(Source()), CPU, batch_seconds)
        return list(quantize(encoder, kmeans, tmp_path, some, ""))

    together = lines(entries)
    assert [file for file, _ in together] == [entry.file for entry in entries]
    assert together == [line for entry in entries for line in lines([entry])]


@given(st.lists(st.integers(0, 5), min_size=1))
def test_merging_collapses_runs(units):
    merged = merge_runs(" ".join(map(str, units)))
    assert merged.split(" ") == [str(unit) for unit, _ in groupby(units)]
    assert merge_runs(merged) == merged


def test_rates_and_channels_are_converted_and_noted(tmp_path):
    samples = tone(1.0, 200, rate=8000)
    write(tmp_path / "8k.wav", np.stack([samples, samples], axis=1), rate=8000)
    reader = AudioReader()
    read = reader.read(tmp_path / "8k.wav", 0, 8000)
    assert read.shape == (16_000,) and read.dtype == np.float32
    expected = tone(1.0, 200)
    assert np.corrcoef(read[200:-200], expected[200:-200])[0, 1] > 0.99
    assert dict(reader.notes) == {
        "2 channels mixed to one": 1,
        "8000 Hz resampled to 16000 Hz": 1,
    }


def test_a_crop_is_that_part_of_the_file(tmp_path):
    write(tmp_path / "a.wav", tone(2.0, 100))
    whole = AudioReader().read(tmp_path / "a.wav", 0, 32_000)
    crop = AudioReader().read(tmp_path / "a.wav", 1234, 16_000)
    assert np.array_equal(crop, whole[1234 : 1234 + 16_000])


def test_bad_audio_is_said_why(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound")
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan), 16_000, subtype="FLOAT")
    write(tmp_path / "brief.wav", tone(0.1, 100))
    reader = AudioReader()
    for name, reason in {
        "empty": "is an empty file",
        "text": "is not readable audio",
        "nan": "not finite",
        "brief": "ends early: the manifest says 5000 samples, found 1600",
        "absent": "does not exist",
    }.items():
        with pytest.raises(BadAudio, match=reason):
            reader.read(tmp_path / f"{name}.wav", 0, 500 if name == "nan" else 5000)


def test_bad_audio_is_listed_and_an_old_list_removed(tmp_path):
    report = tmp_path / "bad.txt"
    bad = {tmp_path / f"{number}.wav": "is an empty file" for number in range(5)}
    with pytest.raises(UserError, match=r"^5 audio .*0\.wav \(is an empty file\).*and 2 more"):
        fail_on_bad_audio(bad, report)
    assert len(report.read_text().splitlines()) == 5
    fail_on_bad_audio({}, report)
    assert not report.exists()
