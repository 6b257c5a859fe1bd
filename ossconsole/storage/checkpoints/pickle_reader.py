"""Reads a checkpoint's pickle as data: interprets the opcodes on its own stack; imports and calls nothing."""

from __future__ import annotations

import io
import itertools
import math
import pickletools
from collections.abc import Callable
from typing import Any

import msgspec

from ossconsole.config.errors import ConsoleError

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
    """Where elements are: the entry `data/<key>` of the zip, or the byte of a safetensors file where they begin."""

    dtype: str
    itemsize: int
    key: str


class Tensor(msgspec.Struct, frozen=True):
    """A tensor's location and shape; `offset` and `stride` in elements. Its elements are not read."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    is_parameter: bool = False

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes of all elements."""
        return self.elements * DTYPE_BYTES.get(self.dtype, self.storage.itemsize)


class Opaque:
    """An object of a class that is not data: its name, its constructor's arguments, and its state."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<{self.name}>"


def is_data_name(module: str, name: str) -> bool:
    """Whether torch, Python or NumPy use the name to pickle plain data."""
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
    """The result of calling `function`, as data; an Opaque where that would run code."""
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
    """A key for a dict. Only flat keys are hashed: hashing a hostile file's deeply nested key would end the process.

    An Opaque is hashed by its identity.
    """
    return key if key is None or isinstance(key, (str, int, float, bytes, Opaque)) else f"<{type(key).__name__}>"


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


MAX_PICKLE_BYTES = 8 << 20
_MAX_OPCODES = 2_000_000


class NotAPickleError(ConsoleError):
    """The bytes are not a pickle that can be read as data."""


class Walked(msgspec.Struct, frozen=True):
    """The pickled value, and the names of code that unpickling would import (`os.system`)."""

    value: Any
    foreign: tuple[str, ...]


def walk_pickle(data: bytes) -> Walked:
    """Reads a pickle as data. Raises NotAPickleError when it is malformed, too large, or uses other opcodes."""
    if len(data) > MAX_PICKLE_BYTES:
        raise NotAPickleError(f"The pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB.")
    walker = _Walker()
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(io.BytesIO(data)), _MAX_OPCODES):
            walker.step(opcode.name, argument)
        return Walked(walker.stop(), tuple(sorted(walker.foreign)))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotAPickleError(f"The pickle is malformed ({type(error).__name__}).") from error


class _Mark:
    """Marks the beginning of a run of items on the stack."""


class _Walker:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.foreign: set[str] = set()
        self._memo: dict[int, Any] = {}
        self._stopped = False

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name == "STOP":
            self._stopped = True
        elif name not in {"PROTO", "FRAME"}:
            raise NotAPickleError(f"The pickle uses {name}, which no checkpoint needs.")

    def stop(self) -> Any:
        """The value. Raises NotAPickleError when the pickle has no STOP."""
        if not self._stopped:
            raise NotAPickleError(f"The pickle has no end within {_MAX_OPCODES:,} instructions.")
        return self.stack.pop()

    # Stack

    def take_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        items.reverse()
        return items

    def put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else int(index)] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self._memo[int(index)])

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self.take_to_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    # Containers

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        if len(items) != count or any(isinstance(item, _Mark) for item in items):
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.take_to_mark()))

    def list_to_mark(self, _: Any) -> None:
        self.stack.append(self.take_to_mark())

    def dict_to_mark(self, _: Any) -> None:
        items = self.take_to_mark()
        self.stack.append({})
        self._fill(items)

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.take_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise TypeError

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self, _: Any) -> None:
        self._fill(self.take_to_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    # Names and objects

    def global_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if not is_data_name(module, name):
            self.foreign.add(f"{module}.{name}")
        self.stack.append(GlobalName(module, name))

    def instance(self, argument: str) -> None:
        arguments = tuple(self.take_to_mark())
        self.global_name(argument)
        self.stack.append(make(self.stack.pop(), arguments))

    def object_to_mark(self, _: Any) -> None:
        cls, *arguments = self.take_to_mark()
        self.stack.append(make(cls, tuple(arguments)))

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(make(function, arguments))

    def new_object_ex(self, _: Any) -> None:
        self.stack.pop()
        self.reduce(None)

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state

    def persistent_id(self, _: Any) -> None:
        kind, cls, key, _location, _count = self.stack.pop()
        if kind != "storage" or not isinstance(cls, GlobalName) or not isinstance(key, str):
            raise TypeError
        dtype, itemsize = STORAGES.get(cls.name, (cls.name, 1))
        self.stack.append(Storage(dtype, itemsize, key))


_PUSHES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_STEPS: dict[str, Callable[[_Walker, Any], None]] = {
    "MARK": lambda walker, _: walker.stack.append(_Mark()),
    "POP": _Walker.pop,
    "POP_MARK": _Walker.pop_mark,
    "DUP": _Walker.duplicate,
    "PUT": _Walker.put,
    "BINPUT": _Walker.put,
    "LONG_BINPUT": _Walker.put,
    "MEMOIZE": _Walker.put,
    "GET": _Walker.get,
    "BINGET": _Walker.get,
    "LONG_BINGET": _Walker.get,
    "TUPLE": _Walker.tuple_to_mark,
    "TUPLE1": lambda walker, _: walker.tuple_of(1),
    "TUPLE2": lambda walker, _: walker.tuple_of(2),
    "TUPLE3": lambda walker, _: walker.tuple_of(3),
    "LIST": _Walker.list_to_mark,
    "FROZENSET": _Walker.list_to_mark,
    "DICT": _Walker.dict_to_mark,
    "APPEND": _Walker.append,
    "APPENDS": _Walker.appends,
    "ADDITEMS": _Walker.appends,
    "SETITEM": _Walker.set_item,
    "SETITEMS": _Walker.set_items,
    "GLOBAL": _Walker.global_name,
    "STACK_GLOBAL": _Walker.stack_global,
    "INST": _Walker.instance,
    "OBJ": _Walker.object_to_mark,
    "REDUCE": _Walker.reduce,
    "NEWOBJ": _Walker.reduce,
    "NEWOBJ_EX": _Walker.new_object_ex,
    "BUILD": _Walker.build,
    "BINPERSID": _Walker.persistent_id,
}
