"""Write a tiny ONNX model byte by byte, so that the tests do not need the package onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_FLOAT, _INT64 = 1, 7  # TensorProto.DataType


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _field(number: int, value: int | str | bytes) -> bytes:
    """Return a field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = _FLOAT if values.dtype == np.float32 else _INT64
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


def _value(name: str, kind: int, *dims: int | str) -> bytes:
    shape = b"".join(_field(1, _field(1 if isinstance(dim, int) else 2, dim)) for dim in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _node(kind: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    named = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind)
    return named + (_field(5, attribute) if attribute else b"")


def _ints(name: str, *values: int) -> bytes:
    return _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7)


def write_encoder(path: Path, dim: int = 4, mask: str = "attention_mask") -> np.ndarray:
    """Write a model with Moonshine's inputs, output and frames: a convolution of 895 samples with
    stride 384. Return the weight (dim, 895).
    """
    weight = np.random.default_rng(0).standard_normal((dim, 895)).astype(np.float32)
    nodes = [
        _node("Unsqueeze", ["input_values", "axis"], "channel"),  # (B, 1, N)
        _node("Conv", ["channel", "weight"], "frames", _ints("strides", 384)),  # (B, D, T)
        _node("Transpose", ["frames"], "last_hidden_state", _ints("perm", 0, 2, 1)),
    ]
    graph = (
        b"".join(_field(1, node) for node in nodes)
        + _field(2, "encoder")
        + _field(5, _tensor("weight", weight[:, None]))
        + _field(5, _tensor("axis", np.array([1])))
        + _field(11, _value("input_values", _FLOAT, "B", "N"))
        + _field(11, _value(mask, _INT64, "B", "N"))
        + _field(12, _value("last_hidden_state", _FLOAT, "B", "T", dim))
    )
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return weight
