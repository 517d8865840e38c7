"""The length of a recording is what can be decoded, whatever the header declares."""

import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from preprocess.speech2unit.audio import (
    BadAudio,
    length_and_rate,
    measured,
    mono_blocks,
    read_audio,
)
from preprocess.speech2unit.lengths import NO_END, NO_LENGTH
from tests.preprocess.corpora import tone, write

RATE, SECONDS = 16_000, 3
FORMS = {
    "wav": ("WAV", "PCM_16"),
    "24bit.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "gsm.wav": ("WAV", "GSM610"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def recorded(folder: Path, kind: str, **options: str) -> tuple[Path, bytes]:
    """Write a file of three seconds. Return the path and the bytes."""
    path = folder / f"a.{kind}"
    form, subtype = FORMS[kind]
    soundfile.write(path, tone(SECONDS, 200), RATE, format=form, subtype=subtype, **options)
    return path, path.read_bytes()


@pytest.mark.parametrize("kind", FORMS)
def test_whole_files(tmp_path, kind):
    path, _ = recorded(tmp_path, kind)
    assert measured(path) == (SECONDS * RATE, RATE, ())
    whole, notes = read_audio(path, 0, SECONDS * RATE)
    assert notes == () and whole.dtype == np.float32
    if FORMS[kind][1] in ("PCM_16", "PCM_24", "FLOAT"):
        assert np.abs(whole - tone(SECONDS, 200)).max() < 1e-4
    crop = read_audio(path, 20_000, 9_000).samples
    np.testing.assert_allclose(crop, whole[20_000:29_000], atol=0.02)


@pytest.mark.parametrize("kind", [kind for kind in FORMS if FORMS[kind][0] != "OGG"])
def test_a_file_cut_in_its_middle(tmp_path, kind):
    path, content = recorded(tmp_path, kind)
    path.write_bytes(content[: len(content) // 2])
    reason = r"is cut short: found (1\.\d\d s of (3\.\d\d)|0\.3\d s of 3\.00) s$"
    for read in (measured, length_and_rate, lambda path: list(mono_blocks(path, RATE))):
        with pytest.raises(BadAudio, match=reason):
            read(path)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_an_ogg_declares_no_length_and_its_end_is_marked(tmp_path, kind):
    path, content = recorded(tmp_path, kind)
    path.write_bytes(content[: len(content) // 2])
    frames, _, notes = measured(path)
    assert notes == (NO_END,) and RATE / 2 < frames < 2 * RATE
    assert read_audio(path, 0, frames).notes == (NO_END,)


@pytest.mark.parametrize(
    ("of_riff", "of_data"),
    [(36, 0), (0, 0), (8, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000)],
)
@pytest.mark.parametrize("chunk", [b"", b"LIST\x04\0\0\0INFO"])
def test_a_wav_that_was_never_closed_is_read_to_its_end(tmp_path, of_riff, of_data, chunk):
    path, content = recorded(tmp_path, "wav")
    sizes = struct.pack("<I", of_riff + len(chunk) * (of_riff == 36)), struct.pack("<I", of_data)
    path.write_bytes(b"RIFF" + sizes[0] + content[8:36] + chunk + b"data" + sizes[1] + content[44:])
    assert measured(path) == (SECONDS * RATE, RATE, (NO_LENGTH,))
    samples, notes = read_audio(path, 0, SECONDS * RATE)
    assert notes == (NO_LENGTH,) and np.abs(samples - tone(SECONDS, 200)).max() < 1e-4


def test_an_aiff_that_was_never_closed_and_a_wav_without_samples(tmp_path):
    path, content = recorded(tmp_path, "aiff")
    at = content.index(b"SSND") + 4
    path.write_bytes(content[:at] + bytes(4) + content[at + 4 :])
    assert measured(path) == (SECONDS * RATE, RATE, (NO_LENGTH,))
    write(path.with_suffix(".wav"), np.zeros(0))
    with pytest.raises(BadAudio, match="contains no samples"):
        measured(path.with_suffix(".wav"))


def test_a_flac_of_unknown_length(tmp_path):
    path, content = recorded(tmp_path, "flac")
    header = bytearray(content)
    header[21] &= 0xF0  # the total is 36 bits of STREAMINFO
    header[22:26] = bytes(4)
    path.write_bytes(header)
    assert measured(path) == (SECONDS * RATE, RATE, (NO_LENGTH,))
    assert len(read_audio(path, RATE, RATE).samples) == RATE
    assert sum(map(len, mono_blocks(path, 7_000))) == SECONDS * RATE
    path.write_bytes(header[: len(header) // 2])
    with pytest.raises(BadAudio, match=r"is cut short: found [01]\.\d\d s$"):
        measured(path)


@pytest.mark.parametrize("kind", ["alone", "after a tag", "inside a WAV"])
def test_an_mp3_of_variable_bit_rate_without_its_header(tmp_path, kind):
    """Without the frame count and with a loud start, libsndfile guesses too few frames."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([0.5 * rng.standard_normal(3 * RATE), np.zeros(6 * RATE)])
    path = tmp_path / "a.mp3"
    soundfile.write(path, samples, RATE, bitrate_mode="VARIABLE", compression_level=0.2)
    content = path.read_bytes()
    frames = content[content.index(content[:2], 4) :]
    if kind == "inside a WAV":
        form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 16_000, 1, 0, 12, 1, 2, 417, 1, 1393)
        chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form
        chunks += b"data" + struct.pack("<I", len(frames)) + frames
        path = tmp_path / "a.wav"
        path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    else:
        tag = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)
        path.write_bytes((tag if kind == "after a tag" else b"") + frames)
        assert soundfile.info(path).frames < 0.6 * len(samples), "or libsndfile has learned it"
    length, _, notes = measured(path)
    assert notes == (NO_LENGTH,) and len(samples) <= length < len(samples) + 3_000
    read = read_audio(path, 0, length).samples
    assert len(read) == length and np.abs(read[: 2 * RATE]).max() > 0.5 > np.abs(read[-RATE:]).max()


def test_what_is_no_regular_file_is_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "device.wav").symlink_to(os.devnull)
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.wav")
    for name, reason in {
        "pipe": "it is a pipe; save it to a file first",
        "folder": "it is a folder",
        "socket": "it is a socket",
        "device": "it is a socket or a device",
        "gone": "does not exist",
    }.items():
        for read in (measured, lambda path: read_audio(path, 0, 9), lambda p: [*mono_blocks(p, 9)]):
            with pytest.raises(BadAudio, match=reason):
                read(tmp_path / f"{name}.wav")
