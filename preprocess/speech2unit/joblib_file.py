"""The centres of a k-means in a joblib file of a scikit-learn model, read without running any code.

A pickle is a program: loading one can run anything. Here its operations only build plain values;
what would import or call becomes a ``_Made`` that remembers names and arguments, and only names
that such files hold are accepted. joblib puts an array's bytes right after its description
(``NumpyArrayWrapper``, joblib/numpy_pickle.py).
"""

from __future__ import annotations

import math
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import UserError
from preprocess.speech2unit.byte_stream import ByteStream

_MOST_OPERATIONS = 20_000  # real files have some hundred
_REMEDY = "get the k-means again from its source"


class _Global(NamedTuple):
    module: str
    name: str


_MODELS = {
    _Global(f"sklearn.cluster.{module}", name)
    for module in ("k_means_", "_kmeans")  # before and since scikit-learn 0.22
    for name in ("KMeans", "MiniBatchKMeans")
}
_WRAPPERS = {
    _Global(f"{package}joblib.numpy_pickle", "NumpyArrayWrapper")
    for package in ("", "sklearn.externals.")
}
_NUMPY = {
    _Global(f"numpy.{package}.multiarray", name)
    for package in ("core", "_core")
    for name in ("_reconstruct", "scalar")
} | {_Global("numpy", name) for name in ("dtype", "ndarray")}
_RANDOM_STATES = {
    _Global("numpy.random", "__RandomState_ctor"),
    _Global("numpy.random._pickle", "__randomstate_ctor"),
    _Global("numpy.random._pickle", "__bit_generator_ctor"),
    _Global("numpy.random._mt19937", "MT19937"),
    _Global("_codecs", "encode"),  # bytes, in protocol 2
}
_KNOWN = _MODELS | _WRAPPERS | _NUMPY | _RANDOM_STATES

_PLAIN = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CALLS = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Made:
    """What the file would make by calling ``maker``; nothing is called."""

    def __init__(self, maker: _Global, arguments: Any) -> None:
        self.maker = maker
        self.arguments = arguments
        self.state: Any = None
        self.array: np.ndarray | None = None


class _WouldRun(Exception):
    """Loading the file would run what the text names."""


def read_centres(path: Path) -> np.ndarray:
    """Return the (K, D) ``cluster_centers_``, float32 or float64 as the file has them.

    Raises ``UserError``: a file that would run code, is damaged, too large, or no k-means.
    """
    try:
        with open(path, "rb") as handle:
            model = _Machine(ByteStream(handle)).run()
        return _centres(model)
    except _WouldRun as error:
        raise UserError(
            f"{path}: refused, loading it would run code ({error}); expected a scikit-learn "
            f"k-means saved by joblib; {_REMEDY}"
        ) from None
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(
            f"{path}: expected a scikit-learn k-means saved by joblib, found something else or a "
            f"damaged file ({' '.join(str(error).split())[:200]}); {_REMEDY}"
        ) from None


class _Machine:
    """Follows the operations of one pickle. Raises ``ValueError``, ``IndexError``, ``KeyError``
    where they make no sense.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the value at the top when the pickle stops."""
        for count, (operation, argument, _) in enumerate(pickletools.genops(self._stream)):
            if count == _MOST_OPERATIONS:
                raise ValueError(f"more than {count} pickle operations")
            self._do(operation.name, argument)
        return self._stack.pop()

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack.append(tuple([stack.pop() for _ in range(size)][::-1]))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("TUPLE", "LIST"):
            items = self._since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self._since_mark()
            stack.append({})
            self._set(items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._since_mark()
            self._set(items)
        elif name == "POP":
            stack.pop()
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(_known(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            last, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
            stack.append(_known(module, last))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = _expect(stack.pop(), tuple)
            stack.append(_Made(_expect(stack.pop(), _Global), arguments))
        elif name == "BUILD":
            self._build()
        elif name in _CALLS:
            raise _WouldRun(f"pickle operation {name}")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"pickle operation {name}")

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _set(self, items: list[Any]) -> None:
        target = _expect(self._stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, str)] = value  # strings only: hashing deep tuples can crash Python

    def _build(self) -> None:
        state = self._stack.pop()
        made = _expect(self._stack[-1], _Made)
        made.state = state
        if made.maker in _WRAPPERS:
            made.array = self._read_array(_expect(state, dict))

    def _read_array(self, wrapper: dict[str, Any]) -> np.ndarray | None:
        """Read the array that follows; None, passed over, for what cannot be centres (labels may
        be large).
        """
        dtype, shape = _dtype(wrapper["dtype"]), _shape(wrapper["shape"])
        if wrapper.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            self._stream.skip(self._stream.exactly(1)[0])
        size = dtype.itemsize * math.prod(shape)
        if size > self._stream.left:
            raise ValueError(f"an array of {size} bytes where {self._stream.left} can be left")
        if dtype.kind != "f" or len(shape) != 2:
            return self._stream.skip(size)
        return _array(self._stream.exactly(size), dtype, shape, wrapper.get("order") == "F")


def _known(module: str, name: str = "") -> _Global:
    found = _Global(module, name)
    if found not in _KNOWN:
        raise _WouldRun(ascii(f"{module}.{name}")[1:-1][:100])
    return found


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _dtype(made: Any) -> np.dtype:
    """Rebuild a numpy number type from its name and byte order."""
    _expect(made, _Made)
    code = made.arguments[0] if made.arguments else None
    if made.maker != _Global("numpy", "dtype") or type(code) is not str or code not in _PLAIN:
        raise ValueError("an array of something other than numbers")
    order = made.state[1] if type(made.state) is tuple else "="
    return np.dtype(code).newbyteorder("=" if order not in ("<", ">") else order)


def _shape(shape: Any) -> tuple[int, ...]:
    for length in _expect(shape, tuple):
        if _expect(length, int) < 0 or length > 1 << 40:
            raise ValueError("an array of impossible shape")
    return shape


def _array(data: bytes, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _centres(model: Any) -> np.ndarray:
    if _expect(model, _Made).maker not in _MODELS:
        raise ValueError(f"a {model.maker.name}")
    centres = _expect(_expect(model.state, dict)["cluster_centers_"], _Made)
    array = centres.array
    if array is None and centres.maker.name == "_reconstruct":  # pickled without joblib
        _, shape, dtype, fortran, data = _expect(centres.state, tuple)
        array = _array(_expect(data, bytes), _dtype(dtype), _shape(shape), fortran is True)
    if array is None or array.ndim != 2 or array.dtype not in (np.float32, np.float64):
        raise ValueError("its cluster_centers_ are no (K, D) array of float32 or float64")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("its cluster_centers_ are empty or not finite")
    return np.ascontiguousarray(array)
