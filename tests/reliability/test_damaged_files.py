"""Files that are cut short or something else: refused in one line."""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.torch_files import load_safetensors, load_torch
from tests.reliability.hostile import refused
from tests.ulm_prompt import tiny
from ulm_prompt.prompt_lm.data import open_rows


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old format"])
def test_a_checkpoint(tmp_path: Path, is_zip: bool, mapped: bool) -> None:
    """Tied weights, an old Namespace and an empty tensor are read; half of the file is not."""
    tied = torch.zeros(50, 8)
    model = {"a": tied, "b": tied, "c": torch.empty(0, 8)}
    state = {"args": argparse.Namespace(a=1), "model": model}
    path = tmp_path / "a.pt"
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    assert load_torch(path, mapped)["model"].keys() == model.keys()
    whole = path.read_bytes()
    for content in (b"", b"\x00" * 100, b"hello", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert str(path) in refused(lambda: load_torch(path, mapped))
    torch.save([1], path)
    assert "found list" in refused(lambda: load_torch(path, mapped))
    assert "not found" in refused(lambda: load_torch(tmp_path / "none.pt", mapped))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    whole = path.read_bytes()
    assert load_safetensors(path)["a"].shape == (9,)
    for content in (b"", b"hello", whole[:-1], struct.pack("<Q", 1 << 60) + whole[8:]):
        path.write_bytes(content)
        assert str(path) in refused(lambda: load_safetensors(path))


def index_file(count: int, sizes: list[int], offsets: list[int], code: int = 8) -> bytes:
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, count)
    return head + np.array(sizes, np.int32).tobytes() + np.array(offsets, np.int64).tobytes()


@pytest.mark.parametrize(
    ("index", "tokens", "message"),
    [
        (b"", [4, 2, 5, 2], "train.idx"),
        (b"TNTIDX\x00\x00" + bytes(40), [4, 2, 5, 2], "train.idx"),
        (index_file(2, [2, 2], [0, 4])[:-9], [4, 2, 5, 2], "train.idx"),
        (index_file(0, [], []), [4, 2, 5, 2], "train.idx"),
        (index_file(1, [2], [0]), [104, 2], "none of the 104 symbols"),
    ],
    ids=["empty", "another format", "cut short", "no rows", "no symbol"],
)
def test_binaries(tmp_path: Path, index: bytes, tokens: list[int], message: str) -> None:
    def write(index: bytes, tokens: list[int]) -> None:
        (tmp_path / "train.idx").write_bytes(index)
        (tmp_path / "train.bin").write_bytes(np.array(tokens, np.uint16).tobytes())

    write(index_file(2, [2, 2], [0, 4]), [4, 2, 5, 2])
    assert open_rows(tmp_path / "train", tiny.dictionary())[1].tolist() == [5, 2]
    write(index, tokens)
    assert message in refused(lambda: open_rows(tmp_path / "train", tiny.dictionary()))
