"""The stream from audio to features: order, blocks, batches, threads, memory."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from preprocess.actions import stream
from preprocess.actions.manifest import Entry
from preprocess.actions.stream import AudioStream, Block, cut_blocks
from preprocess.speech2unit.audio import read_audio
from preprocess.speech2unit.features import Source
from preprocess.speech2unit.spectral import LogMel
from tests.preprocess.corpora import tone, write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple:
    """Return a folder of 30 tones of different lengths, and their entries."""
    root = tmp_path_factory.mktemp("tones")
    entries = []
    for number, seconds in enumerate(np.random.default_rng(0).uniform(0.1, 0.9, 30)):
        write(root / f"{number}.wav", tone(seconds, 80 + 10 * number))
        entries.append(Entry(f"{number}.wav", int(seconds * 16_000), 0, f"{number}.wav", "0"))
    return root, entries


@pytest.fixture
def threads():
    """Set the number of torch's threads, which is the number of computing threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def encode(reader, root, entries: Sequence[Entry], batch_seconds: float) -> list:
    audio_stream = AudioStream(reader, lambda features: features, CPU, batch_seconds)
    blocks = cut_blocks("all", root, entries, batch_seconds)
    return [result for encoded in audio_stream(blocks) for result in encoded.results]


@pytest.mark.parametrize("batch_seconds", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("count", [1, 3])
def test_every_entry_gets_its_own_features_in_order(corpus, threads, batch_seconds, count):
    root, entries = corpus
    threads(count)
    reader = LogMel(Source())
    together = encode(reader, root, entries, batch_seconds)
    for entry, features in zip(entries, together, strict=True):
        (alone,) = encode(reader, root, [entry], batch_seconds)
        torch.testing.assert_close(features, alone, atol=1e-4, rtol=0)


def test_every_stream_of_a_process_has_all_threads(corpus, threads):
    """It computes in several threads. Afterwards torch has as many threads as before."""
    threads(3)
    for _ in range(2):
        workers = set()

        def finish(features, workers=workers):
            workers.add(threading.get_ident())
            time.sleep(0.01)
            assert torch.get_num_threads() == 1

        list(AudioStream(LogMel(Source()), finish, CPU, 0.05)(cut_blocks("all", *corpus, 0.05)))
        assert len(workers) == 3 == torch.get_num_threads()


@pytest.mark.parametrize(("seconds", "ahead"), [(1.0, 8), (3000.0, 0)])
def test_memory_does_not_grow_with_the_corpus(tmp_path, threads, seconds, ahead):
    """Audio is read only a few blocks ahead; long recordings are read one at a time."""
    threads(6)
    submitted = []

    class Entries(list):
        def __iter__(self):
            submitted.append(1)
            return super().__iter__()

    write(tmp_path / "a.wav", tone(0.5, 100))
    entries = Entries([Entry("a.wav", 8_000, 0, "a.wav", "0")])
    blocks = [Block(f"all-{number}", tmp_path, entries, seconds) for number in range(50)]
    for taken, _ in enumerate(AudioStream(LogMel(Source()), len, CPU, 1.0)(blocks), start=1):
        assert len(submitted) <= taken + ahead
    assert len(submitted) == 50


def test_a_long_recording_is_computed_in_pieces(tmp_path, monkeypatch):
    """The features are the same, but never all in memory. A reader without pieces refuses it."""
    monkeypatch.setattr(stream, "LONG", 10_000)
    monkeypatch.setattr(stream, "MOST_SAMPLES", 16_000)
    write(tmp_path / "a.wav", tone(4.0, 100))
    entry = Entry("a.wav", 64_000, 0, "a.wav", "0")
    reader = LogMel(Source())
    (expected,) = reader([torch.from_numpy(read_audio(tmp_path / "a.wav", 0, 64_000).samples)])
    for size in (160 * 7, 160 * 399, 160 * 500):
        reader.pieces = size, 240
        lengths = []

        def finish(features, lengths=lengths):
            lengths.append(len(features))
            return features

        audio_stream = AudioStream(reader, finish, CPU, 1.0, torch.cat)
        ((_, (features,), *_),) = audio_stream(cut_blocks("all", tmp_path, [entry], 1.0))
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
        assert max(lengths) <= size // 160
    ((_, (bad,), *_),) = AudioStream(reader, len, CPU, 1.0)(cut_blocks("a", tmp_path, [entry], 1.0))
    assert "too long for one utterance: 0.00 h" in str(bad)
