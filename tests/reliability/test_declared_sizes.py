"""Files that declare more than they hold: refused in one line, before memory is taken for it."""

from __future__ import annotations

import argparse
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from pipeline.config import load_yaml
from pipeline.files import read_json
from pipeline.torch_files import load_safetensors, load_torch
from preprocess.speech2unit.audio import BadAudio, length_and_rate, read_audio
from preprocess.speech2unit.kmeans import load_kmeans
from tests.reliability.hostile import Calls, refused
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.data import open_rows
from ulm_prompt.prompt_lm.prompt import Prompt

HUGE = 25 * 10**12  # float32: 100 TB


def in_each_other() -> list:
    """A page that stands for 10^20 values where it is copied."""
    found: list = [0] * 10
    for _ in range(20):
        found = [found] * 10
    return found


def itself() -> list:
    found: list = []
    found.append(found)
    return found


def many_views() -> list[torch.Tensor]:
    whole = torch.zeros(1 << 18)
    return [whole[:] for _ in range(100)]


CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "one number, 100 TB": lambda: torch.zeros(1).expand(HUGE),
    "one number, 40 GB": lambda: torch.zeros(1).expand(10**10),
    "many views": many_views,
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), [1.0], (HUGE,)),
    "no storage": lambda: torch.empty(HUGE, device="meta"),
    "numpy": lambda: Calls(np.core.multiarray._reconstruct, np.ndarray, (4 * HUGE,), b"b"),
    "numpy, 100 GB": lambda: Calls(np.core.multiarray._reconstruct, np.ndarray, (10**11,), b"b"),
    "objects": lambda: np.array([None, 1], dtype=object),
    "in each other": in_each_other,
    "itself": itself,
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_checkpoint(tmp_path: Path, what: str, is_zip: bool) -> None:
    path = tmp_path / "a.pt"
    value = {"model": {"a": CHECKPOINTS[what]()}}
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    assert path.stat().st_size < 3 << 20
    refused(lambda: load_torch(path))


def test_a_storage_of_the_old_format(tmp_path: Path) -> None:
    path, length = tmp_path / "a.pt", 123_457
    torch.save({"a": torch.zeros(length)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(struct.pack("<I", length)) > 1
    path.write_bytes(content.replace(struct.pack("<I", length), struct.pack("<I", (1 << 31) - 1)))
    refused(lambda: load_torch(path))


@pytest.mark.parametrize("nested", [False, True])
def test_zip_bombs(tmp_path: Path, nested: bool) -> None:
    """A pickle of zeros, compressed; and a checkpoint inside a checkpoint's place."""
    plain, path = tmp_path / "plain.pt", tmp_path / "a.pt"
    torch.save({"model": {}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = plain.read_bytes() if nested else content + bytes(120 << 20)
            out.writestr(entry.filename, content)
    assert path.stat().st_size < 1 << 20
    refused(lambda: load_torch(path))


def test_a_prompt_without_numbers(tmp_path: Path) -> None:
    """No bytes are missing from a tensor of no rows, however wide it says it is."""
    state = {
        "decoder.prefix_embed_prompts.weight": torch.empty(0, HUGE),
        "decoder.sep_embed.weight": torch.empty(0, HUGE),
    }
    save_file(state, tmp_path / "prompt.safetensors")
    found = load_safetensors(tmp_path / "prompt.safetensors")
    refused(lambda: Prompt.from_published_state(found, 3, "prompt.safetensors"))
    wide = {**state, "decoder.prefix_embed_prompts.weight": torch.zeros(5, 8)}
    assert "sep_embed" in refused(lambda: Prompt.from_published_state(wide, 3, "it"))


@pytest.mark.parametrize("offsets", [[0, 4], [0, 4 * HUGE], [-4, 0], [4, 0]])
def test_safetensors(tmp_path: Path, offsets: list[int]) -> None:
    head = json.dumps({"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": offsets}}).encode()
    path = tmp_path / "a.safetensors"
    for length in (len(head), 1 << 60):
        path.write_bytes(struct.pack("<Q", length) + head + bytes(4))
        refused(lambda: load_safetensors(path))


def npy(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = bytes(16)) -> bytes:
    out = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + data


@pytest.mark.parametrize(
    "content",
    [
        npy((HUGE,)),
        npy((HUGE, 2)),
        npy((2, 3)),
        npy((0, HUGE)),
        npy((-2, -2)),
        npy((2, 1), "|O"),
        npy((2, 2), "<U4"),
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 60_000,
    ],
    ids=lambda content: ascii(content[60:110])[2:-1],
)
def test_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "km.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("centres.npy", content)
    assert path.stat().st_size < 1 << 20
    refused(lambda: load_kmeans(path))
    path.write_bytes(content[:1000])  # no zip at all
    refused(lambda: load_kmeans(path))


def index_file(count: int, sizes: list[int], places: list[int], code: int = 8) -> bytes:
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, count)
    return head + np.array(sizes, np.int32).tobytes() + np.array(places, np.int64).tobytes()


@pytest.mark.parametrize(
    "index",
    [
        index_file(1 << 60, [2, 2], [0, 4]),
        index_file((1 << 64) - 1, [2, 2], [0, 4]),
        index_file(2, [2**31 - 1, 2**31 - 1], [0, 2**32 - 2]),
        index_file(2, [2, 2], [0, 1 << 50]),
        index_file(2, [2, 2], [0, -4]),
        index_file(2, [-1, 5], [0, -2]),
        index_file(2, [2, 2], [0, 4], code=7),
        index_file(2, [2, 2], [0, 4], code=77),
        index_file(0, [], []),
        b"TNTIDX\x00\x00" + struct.pack("<QQQQQ", 1, 4, 4, 1 << 60, 1 << 60),
        b"",
    ],
    ids=lambda index: index[9:40].hex(),
)
def test_an_index(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "train.bin").write_bytes(np.array([4, 2, 5, 2], np.uint16).tobytes())
    (tmp_path / "train.idx").write_bytes(index_file(2, [2, 2], [0, 4]))
    assert open_rows(tmp_path / "train", tiny.dictionary())[1].tolist() == [5, 2]
    (tmp_path / "train.idx").write_bytes(index)
    assert "train.idx" in refused(lambda: open_rows(tmp_path / "train", tiny.dictionary()))


def test_a_token_that_is_no_symbol(tmp_path: Path) -> None:
    (tmp_path / "train.idx").write_bytes(index_file(1, [2], [0]))
    (tmp_path / "train.bin").write_bytes(np.array([104, 2], np.uint16).tobytes())
    message = refused(lambda: open_rows(tmp_path / "train", tiny.dictionary()))
    assert "none of the 104 symbols" in message


def test_audio(tmp_path: Path) -> None:
    """Each declares what would fill the memory; the reason says so."""
    second = np.zeros(16_000, np.float32)
    slow, fast, wide = (tmp_path / f"{name}.wav" for name in ("slow", "fast", "wide"))
    soundfile.write(slow, second, 1)
    soundfile.write(fast, second, 2_000_000)
    for path, reason in ((slow, "declares 1 Hz"), (fast, "declares 2000000 Hz")):
        with pytest.raises(BadAudio, match=reason):
            length_and_rate(path)
        with pytest.raises(BadAudio, match=reason):
            read_audio(path, 0, 16_000)
    bomb = tmp_path / "bomb.flac"
    with soundfile.SoundFile(bomb, "w", 16_000, 8, "PCM_16") as file:
        for _ in range(2):
            file.write(np.zeros((16_000, 8), np.int16))
    content = bytearray(bomb.read_bytes())
    content[21:26] = bytes([content[21] | 0x0F, 255, 255, 255, 255])  # its number of samples
    bomb.write_bytes(content)
    with pytest.raises(BadAudio, match="declares 68,719,476,735 samples of 8 channels"):
        length_and_rate(bomb)
    with pytest.raises(BadAudio, match="declares"):
        read_audio(bomb, 0, 10**15)


def test_texts(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    for content in (laughs, "a: " + "{b: " * 3000, "a: [" + "1, " * 500_000):
        (tmp_path / "a.yaml").write_text(content)
        refused(lambda: load_yaml(tmp_path / "a.yaml"))
    for content in ("[" * 100_000, "1" * 5000, '{"a": ' * 50_000, "nul\x00", "\udcff"):
        (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
        refused(lambda: read_json(tmp_path / "a.json", "it"))


def test_what_is_whole_is_taken(tmp_path: Path) -> None:
    """Tied weights, an old Namespace, a table of a Fortran order: none of them lies."""
    tied = torch.zeros(50, 8)
    state = {
        "args": argparse.Namespace(a=1),
        "model": {"a": tied, "b": tied, "c": torch.empty(0, 8)},
    }
    for is_zip in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
        assert load_torch(tmp_path / "a.pt")["model"].keys() == {"a", "b", "c"}
    centres = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez_compressed(tmp_path / "km.npz", centres=centres)
    assert np.array_equal(load_kmeans(tmp_path / "km.npz"), centres)
