"""Models that the manifest grants with ``models: [NAME]``.

    digits = model("digits")

    @register_bee(name="classify")
    def classify(swarm: Swarm, payload, context):
        answer = digits.predict({"image": [payload["pixels"]]})
        swarm.respond({"label": answer["label"].item()})

A list becomes what the model takes; :class:`Tensor`, ``array.array`` and everything else with a buffer keep their type. A prediction has no
effects: an attempt that runs again asks again.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

from .errors import BeeError, Reject
from .host import current


class _Type(NamedTuple):
    #: Of `array`; none where it has none.
    code: str | None
    #: Bytes of one element; none where they differ.
    size: int
    #: As numpy writes it.
    numpy: str


#: Types of elements by their names in the Open Inference Protocol v2.
_TYPES = {
    "FP32": _Type("f", 4, "<f4"),
    "INT64": _Type("q", 8, "<i8"),
    "BOOL": _Type("B", 1, "|b1"),
    "BYTES": _Type(None, 0, ""),
    "FP64": _Type("d", 8, "<f8"),
    "INT32": _Type("i", 4, "<i4"),
    "UINT8": _Type("B", 1, "|u1"),
    "INT8": _Type("b", 1, "|i1"),
    "INT16": _Type("h", 2, "<i2"),
    "UINT16": _Type("H", 2, "<u2"),
    "UINT32": _Type("I", 4, "<u4"),
    "UINT64": _Type("Q", 8, "<u8"),
    "FP16": _Type(None, 2, "<f2"),
    "BF16": _Type(None, 2, "<u2"),
}
_OF_BUFFERS = {"f": "FP32", "d": "FP64", "e": "FP16", "?": "BOOL"}
_WHOLE = {"b": "INT", "h": "INT", "i": "INT", "l": "INT", "q": "INT", "B": "UINT", "H": "UINT", "I": "UINT", "L": "UINT", "Q": "UINT"}
#: What one call hands over: a node takes 4 MiB at once.
INPUT_BYTES_MAX = (4 << 20) - (64 << 10)


class ModelError(BeeError):
    """There is no prediction. The message fails, and the stage's policy decides."""

    def __init__(self, kind: str, text: str) -> None:
        Exception.__init__(self, text)
        #: ``not-granted``, ``not-found``, ``invalid``, ``busy``, ``timeout``, ``unavailable``, ``failed`` or ``no-step``.
        self.kind = kind


class ModelBusy(ModelError):
    """The same call may succeed a little later: it was busy, too slow, or could not be had."""


class BadInput(ModelError, Reject):
    """What was given does not fit the model. It stays wrong, so the message is rejected: a dead letter at once."""

    def __init__(self, text: str) -> None:
        ModelError.__init__(self, "invalid", text)
        self.reason = text


def model_error(kind: str, text: str) -> ModelError:
    if kind == "invalid":
        return BadInput(text)
    return (ModelBusy if kind in ("busy", "timeout", "unavailable") else ModelError)(kind, text)


class Port(NamedTuple):
    """An input or output of a model."""

    name: str
    dtype: str
    #: None: any size.
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if dim is None else str(dim) for dim in self.shape)}]"


class Signature(NamedTuple):
    """What a model takes and gives, in its order. Empty where that is not known: a function that stands for a model in a test."""

    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()


#: A tensor on its way: name, type, shape, bytes.
Wire = tuple[str, str, Sequence[int], bytes]


class Host(Protocol):
    """The node's models, or those of a :class:`skep.DevSwarm`."""

    def describe(self, name: str) -> Signature: ...
    def predict(self, name: str, inputs: list[Wire]) -> list[Wire]: ...


class Tensor:
    """Elements of one type in a shape, row by row.

    ``Tensor([[1.0, 2.0]])`` is FP32, of ints INT64, of bools BOOL, of text BYTES; ``dtype=`` says another. Of what has a buffer
    (``array.array``, bytes, numpy) the type is its own, and so is the shape unless ``shape=`` says another.
    """

    __slots__ = ("_data", "dtype", "shape")
    _data: bytes

    def __init__(self, data: Any, shape: Sequence[int] | None = None, dtype: str | None = None) -> None:
        if dtype is not None and dtype not in _TYPES:
            raise BadInput(f"unknown tensor type {dtype!r}: use one of {', '.join(_TYPES)}")
        if isinstance(data, Tensor):
            found, own, packed = data.shape, data.dtype, data._data
        elif (view := _view(data)) is None:
            found, flat = _flat(data)
            own = dtype or _dtype(flat)
            packed = _pack(flat, own)
        else:
            packed = data if type(data) is bytes else view.tobytes()
            # Bytes are what they are said to be.
            raw = dtype is not None and isinstance(data, (bytes, bytearray, memoryview)) and view.format == "B"
            own = dtype if raw and dtype else _dtype_of(view)
            if raw:
                found = (sum(1 for _ in _contents(packed)),) if own == "BYTES" else _bare(len(packed), own)
            else:
                found = tuple(view.shape or ())
        if dtype is not None and own != dtype:
            raise BadInput(f"it is {own} and was said to be {dtype}: a list is converted, and nothing else")
        #: The type's name in the Open Inference Protocol: ``FP32``, ``INT64``, ``BYTES``…
        self.dtype: str = own
        self.shape: tuple[int, ...] = found if shape is None else tuple(shape)
        self._data = packed
        size = _TYPES[own].size
        if size and len(packed) != _product(self.shape) * size:
            raise BadInput(
                f"a tensor of type {own} and shape {list(self.shape)} has {_product(self.shape) * size} bytes, but {len(packed)} were given"
            )

    @classmethod
    def _of(cls, dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
        """As a model gave it."""
        tensor = cls.__new__(cls)
        tensor.dtype, tensor.shape, tensor._data = dtype, tuple(shape), data
        return tensor

    @property
    def data(self) -> memoryview:
        """Its elements, flat, without a copy; of FP16 and BF16 their bits, of BYTES the wire's form."""
        if self.dtype in ("FP16", "BF16"):
            return memoryview(self._data).cast("H")
        code: Any = "?" if self.dtype == "BOOL" else _TYPES[self.dtype].code or "B"
        view: memoryview = memoryview(self._data).cast(code)
        return view

    def flat(self) -> list[Any]:
        """Its elements, row by row, as a list: numbers, bools, or text (bytes where it is not UTF-8)."""
        if self.dtype == "FP16":
            return list(struct.unpack(f"<{len(self._data) // 2}e", self._data))
        if self.dtype == "BF16":
            return array("f", b"".join(b"\0\0" + self._data[at : at + 2] for at in range(0, len(self._data), 2))).tolist()
        if self.dtype == "BYTES":
            return list(_contents(self._data))
        return self.data.tolist()

    def tolist(self) -> Any:
        """Its elements as lists in lists, as the shape says; of no dimensions the element alone."""
        if not self.shape:
            return self.item()
        found = self.flat()
        if 0 in self.shape:
            return _empty(self.shape)
        for dim in self.shape[:0:-1]:
            found = [found[at : at + dim] for at in range(0, len(found), dim)]
        return found

    def item(self) -> Any:
        """Its only element."""
        found = self.flat()
        if len(found) != 1:
            raise ValueError(f"a tensor of shape {list(self.shape)} has {len(found)} elements, not one: use tolist()")
        return found[0]

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """For numpy, without a copy; of BF16 the bits."""
        kind = _TYPES[self.dtype].numpy
        if not kind:
            raise AttributeError("a tensor of BYTES is no array of numbers: use tolist()")
        return {"version": 3, "shape": self.shape, "typestr": kind, "data": self._data}

    def __buffer__(self, flags: int) -> memoryview:
        view = self.data
        if self.dtype == "BYTES" or len(self.shape) < 2 or 0 in self.shape:
            return view
        code: Any = view.format
        shaped: memoryview = view.cast("B").cast(code, self.shape)
        return shaped

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without dimensions has no length")
        return self.shape[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape, self._data) == (other.dtype, other.shape, other._data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Tensor({self.dtype} {list(self.shape)})"


class Outputs(dict[str, Tensor]):
    """What a model answered, by name, in its order."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(f"the model has no output `{name}`: it has {', '.join(self)}")


class Model:
    """A model by its name in the manifest. It is asked for by that name at each call: when its tag moves, the next call meets the newer version."""

    __slots__ = ("_signature", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        """What it takes and gives now."""
        self._signature = _node(self.name).describe(self.name)
        return self._signature

    def predict(self, inputs: Any) -> Outputs:
        """Calls the model: inputs by name in any order, or the only one's value alone.

        One call hands over 4 MiB at most: give more rows in parts. :class:`BadInput` says what would fit.
        """
        node = _node(self.name)
        known = self._signature
        try:
            return self._call(node, inputs)
        except BadInput:
            # It may fit what the name means by now.
            if known is None or self.signature == known:
                raise
        return self._call(node, inputs)

    def _call(self, node: Host, inputs: Any) -> Outputs:
        # Asking an abstract class takes longer than the rest of this.
        if type(inputs) is dict or isinstance(inputs, Mapping):
            wires = [self._wire(name, value) for name, value in inputs.items()]
        else:
            wires = [self._wire(self._only(), inputs)]
        size = 0
        for wire in wires:
            size += len(wire[3])
        if size > INPUT_BYTES_MAX:
            raise BadInput(
                f"model `{self.name}` is given {size} bytes at once, and one call hands over {INPUT_BYTES_MAX} at most: give the rows in parts"
            )
        outputs, made = Outputs(), Tensor._of
        for name, dtype, shape, data in node.predict(self.name, wires):
            outputs[name] = made(dtype, shape, data)
        return outputs

    def _wire(self, name: str, value: Any) -> Wire:
        if not isinstance(name, str):
            raise BadInput(f"an input's name is text, not {type(name).__name__}")
        if not isinstance(value, Tensor):
            known = self._signature or self.signature
            port = next((port for port in known.inputs if port.name == name), None)
            try:
                value = _fitted(value, port)
            except BadInput as e:
                raise BadInput(f"input {name!r}{f' ({port})' if port else ''}: {e}") from None
        return name, value.dtype, value.shape, value._data

    def _only(self) -> str:
        known = self._signature or self.signature
        if len(known.inputs) > 1:
            names = ", ".join(port.name for port in known.inputs)
            raise BadInput(f"model `{self.name}` has the inputs {names}: give a dict with each")
        # A function in a test says nothing of its inputs.
        return known.inputs[0].name if known.inputs else "input"

    def __repr__(self) -> str:
        return f"Model({self.name!r})"


def model(name: str) -> Model:
    """The model that the manifest grants by this name: an entry of ``models:`` as it is written there, or the bare name of its only entry of
    that model. It is looked for when it is called, so this may stand at the top of the file."""
    if not isinstance(name, str):
        raise TypeError(f"a model's name is text, not {type(name).__name__}")
    return Model(name)


def _node(name: str) -> Host:
    host: Host | None = current()
    if host is None:
        raise ModelError(
            "no-step",
            f"model `{name}` is called while a message is handled, not when the file is read; in a test make a DevSwarm(models=...) first",
        )
    return host


# --- from Python's values to bytes ---------------------------------------------------------------------------------------


def _fitted(value: Any, port: Port | None) -> Tensor:
    """A value as the model takes it, where it leaves that open."""
    if port is None:
        return Tensor(value)
    if isinstance(value, (bytes, bytearray)):
        return Tensor(value, _shape_for(_bare(len(value), port.dtype), port), port.dtype)
    if isinstance(value, array):
        return Tensor(value, _shape_for((len(value),), port))
    if isinstance(value, (list, tuple, int, float)):
        return Tensor(value, dtype=port.dtype)
    return Tensor(value)


def _shape_for(found: tuple[int, ...], port: Port) -> tuple[int, ...]:
    """Of elements in a row, the model's shape, where only its rows are open."""
    fixed = _product(dim for dim in port.shape if dim is not None)
    if port.shape.count(None) > 1 or not fixed:
        return found
    rows, rest = divmod(found[0], fixed)
    if rest or (None not in port.shape and rows != 1):
        return found
    return tuple(rows if dim is None else dim for dim in port.shape)


def _bare(size: int, dtype: str) -> tuple[int, ...]:
    each = _TYPES[dtype].size
    if not each:
        raise BadInput("of BYTES give a list of texts or bytes")
    if size % each:
        raise BadInput(f"{size} bytes are no whole number of {dtype}, which has {each} each")
    return (size // each,)


def _product(dims: Any) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product


def _view(value: Any) -> memoryview | None:
    """What has a buffer."""
    if isinstance(value, (list, tuple, int, float)):
        return None
    if isinstance(value, str):
        raise BadInput("a text is no tensor: give a list of texts")
    try:
        return memoryview(value)
    except TypeError:
        raise BadInput(f"{type(value).__name__} is no tensor: give lists of numbers, an array or a Tensor") from None


def _flat(value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of lists in lists, and their elements."""
    if not isinstance(value, (list, tuple)):
        return (), [value]
    shape = [len(value)]
    level: Any = value
    while level and isinstance(level[0], (list, tuple)):
        if len(shape) == 64:
            raise BadInput("lists more than 64 deep")
        try:
            lengths = set(map(len, level))
        except TypeError:
            raise BadInput("elements and lists beside each other") from None
        if len(lengths) > 1:
            raise BadInput(f"lists of {' and '.join(str(n) for n in sorted(lengths)[:3])} elements beside each other: all are of one length")
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    return tuple(shape), level if isinstance(level, list) else list(level)


def _dtype(flat: list[Any]) -> str:
    kinds = set(map(type, flat))
    if kinds <= {bool}:
        return "BOOL" if kinds else "FP32"
    if kinds <= {int, bool}:
        return "INT64"
    if kinds <= {int, bool, float}:
        return "FP32"
    if kinds <= {str, bytes}:
        return "BYTES"
    strange = kinds - {int, bool, float, str, bytes}
    if strange:
        raise BadInput(f"elements of the type {strange.pop().__name__}: a tensor is of numbers, bools or texts")
    raise BadInput("numbers and texts beside each other: a tensor has elements of one type")


def _dtype_of(view: memoryview) -> str:
    code = view.format.lstrip("@=<") if view.format else "B"
    found = _OF_BUFFERS.get(code) or (f"{_WHOLE[code]}{8 * view.itemsize}" if code in _WHOLE else None)
    if found is None:
        raise BadInput(f"a buffer of the format {view.format!r}: give one of numbers in the machine's order, or a list")
    return found


def _pack(flat: list[Any], dtype: str) -> bytes:
    code = _TYPES[dtype].code
    try:
        if dtype == "BYTES":
            return b"".join(_content(one) for one in flat)
        if dtype == "BOOL" and not set(flat) <= {0, 1}:
            raise ValueError("another value than True and False")
        if dtype == "FP16":
            return struct.pack(f"<{len(flat)}e", *flat)
        if dtype == "BF16":
            return b"".join(_bf16(bits) for bits in array("I", struct.pack(f"<{len(flat)}f", *flat)))
        if dtype == "BOOL":
            return bytes(map(int, flat))
        # Three times as quick as `array`, and a number that is too large for the type is an error as it is in JSON.
        return struct.pack(f"<{len(flat)}{code}", *flat)
    except (TypeError, ValueError, OverflowError, struct.error) as e:
        raise BadInput(_which(flat, dtype, e)) from None


def _which(flat: list[Any], dtype: str, error: Exception) -> str:
    """The first element that is wrong."""
    for at, one in enumerate(flat):
        if isinstance(one, (list, tuple)):
            return "elements and lists beside each other"
        try:
            if dtype == "BYTES":
                _content(one)
            elif dtype == "FP16":
                struct.pack("<e", one)
            elif dtype == "BOOL":
                if one not in (0, 1):
                    raise ValueError
            else:
                struct.pack(f"<{_TYPES[dtype].code or 'f'}", one)
        except (TypeError, ValueError, OverflowError, struct.error):
            shown = repr(one)
            return f"element {at}, {shown if len(shown) <= 32 else shown[:31] + '…'}, is no {dtype}"
    return f"{dtype}: {error}"


def _bf16(bits: int) -> bytes:
    """The upper half of an FP32, rounded to the nearest, to even where two are; NaN stays one."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return ((bits >> 16) | 0x40).to_bytes(2, "little")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).to_bytes(2, "little")


def _content(one: Any) -> bytes:
    if not isinstance(one, (str, bytes)):
        raise TypeError(f"{type(one).__name__} is no text")
    data = one.encode() if isinstance(one, str) else one
    return len(data).to_bytes(4, "little") + data


def _contents(data: bytes) -> Any:
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        content = data[at + 4 : end]
        try:
            yield content.decode()
        except UnicodeDecodeError:
            yield content
        at = end


def _empty(shape: tuple[int, ...]) -> list[Any]:
    return [_empty(shape[1:]) for _ in range(shape[0])] if len(shape) > 1 else []
