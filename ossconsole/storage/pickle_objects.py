"""What a checkpoint's pickle is made of, as data: tensors without elements, storages, names, and opaque objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

# dtype and bytes per element behind each storage class of torch.
STORAGES = {
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "UntypedStorage": ("bytes", 1),
}
DTYPE_BYTES = dict(STORAGES.values()) | {"float8_e4m3fn": 1, "float8_e5m2": 1}
_NUMPY_SCALARS = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}


class GlobalName(msgspec.Struct, frozen=True):
    """A name that the pickle would have imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(msgspec.Struct, frozen=True):
    """Where tensors keep their elements: the entry `data/<key>` of the zip."""

    dtype: str
    itemsize: int
    key: str


class Tensor(msgspec.Struct, frozen=True):
    """A tensor's place and shape; `offset` and `stride` in elements. No element was read."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    is_parameter: bool = False

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES.get(self.dtype, self.storage.itemsize)


class Opaque:
    """An object of a class that is not data: its name, what it was made with, and what it was filled with."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None


def is_data_name(module: str, name: str) -> bool:
    """Whether the name is one of torch's, Python's or NumPy's own ways to write plain data."""
    if module == "torch":
        return name in STORAGES or name in DTYPE_BYTES or name in {"Size", "device"} or name.startswith(("int", "uint"))
    return name in _DATA_NAMES.get(module, ())


_NUMPY_MULTIARRAY = frozenset({"scalar", "_reconstruct"})
_DATA_NAMES: dict[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict"}),
    "torch._utils": frozenset(
        {
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "_rebuild_sparse_tensor",
            "_rebuild_qtensor",
        }
    ),
    "torch.torch_version": frozenset({"TorchVersion"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.storage": frozenset({"UntypedStorage"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": _NUMPY_MULTIARRAY,
    "numpy._core.multiarray": _NUMPY_MULTIARRAY,
    "_codecs": frozenset({"encode"}),
    "builtins": frozenset({"set", "frozenset", "bytearray", "complex", "list", "dict", "tuple"}),
    "__builtin__": frozenset({"set", "frozenset", "bytearray", "complex", "list", "dict", "tuple"}),
}


def make(function: Any, arguments: Any) -> Any:
    """What calling `function` would have given, as data; an Opaque where that is code."""
    if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
        return Opaque(str(function) if isinstance(function, GlobalName) else "object", arguments)
    maker = _MAKERS.get(function.name) if is_data_name(function.module, function.name) else None
    return maker(arguments) if maker else Opaque(str(function), arguments)


def _first(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else []


def _make_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return {plain_key(pair[0]): pair[1] for pair in pairs if len(pair) == 2}


def _make_device(arguments: tuple[Any, ...]) -> str:
    return ":".join(str(part) for part in arguments if isinstance(part, (str, int)))


def _make_encoded(arguments: tuple[Any, ...]) -> Any:
    return arguments[0].encode("latin-1", "replace")


def _make_parameter(arguments: tuple[Any, ...]) -> Any:
    inner = arguments[0]
    return msgspec.structs.replace(inner, is_parameter=True) if isinstance(inner, Tensor) else inner


def _make_tensor(arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError
    # Only version 3 of the rebuilding function gives a dtype; before it, the storage has it.
    dtype = arguments[6] if len(arguments) > 6 and isinstance(arguments[6], GlobalName) else None
    return Tensor(
        storage=storage,
        dtype=dtype.name if dtype else storage.dtype,
        shape=_lengths(shape),
        stride=_lengths(stride),
        offset=_length(offset),
    )


def _lengths(values: Any) -> tuple[int, ...]:
    return tuple(_length(value) for value in values)


def _length(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise TypeError
    return value


def _numpy_scalar(arguments: tuple[Any, ...]) -> Any:
    dtype, raw = arguments[:2]
    kind = dtype.arguments[0] if isinstance(dtype, Opaque) and isinstance(dtype.arguments, tuple) else None
    if not isinstance(kind, str) or kind not in _NUMPY_SCALARS or not isinstance(raw, bytes):
        return Opaque("numpy scalar", arguments)
    import numpy as np

    return np.frombuffer(raw, np.dtype(kind).newbyteorder("<"), 1)[0].item()


def plain_key(key: Any) -> Any:
    """Only flat keys go into a dict: hashing what a hostile file nested deeply would end the process."""
    return key if key is None or isinstance(key, (str, int, float, bytes)) else f"<{type(key).__name__}>"


_MAKERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "OrderedDict": _make_dict,
    "dict": _make_dict,
    **dict.fromkeys(("set", "frozenset", "list", "tuple", "Size", "TorchVersion"), _first),
    "device": _make_device,
    "encode": _make_encoded,
    "scalar": _numpy_scalar,
    "_rebuild_parameter": _make_parameter,
    "_rebuild_parameter_with_state": _make_parameter,
    "_rebuild_tensor": _make_tensor,
    "_rebuild_tensor_v2": _make_tensor,
    "_rebuild_tensor_v3": _make_tensor,
}
