"""Payloads: bytes on the wire, what a Bee says it takes inside.

A Bee whose payload parameter is ``str`` or ``bytes`` works on raw bytes, and the text that it publishes travels as it is. All others
speak JSON, where text is a JSON string, so that what one Bee publishes is what the next receives.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from typing import Any

from .errors import Reject

#: As a node bounds it.
PAYLOAD_BYTES_MAX = 256 << 10


class Text(str):
    """Text that travels as it is, also from a Bee that speaks JSON."""


class Form:
    """What a Bee takes: ``json``, ``text``, ``bytes``, or ``typed`` JSON for a class."""

    __slots__ = ("kind", "type", "where")

    def __init__(self, kind: str, type: Any = None, where: str = "") -> None:
        self.kind = kind
        self.type = type
        #: The Bee, for messages.
        self.where = where

    @classmethod
    def of(cls, annotation: Any, where: str) -> Form:
        if annotation is bytes:
            return cls("bytes", None, where)
        if annotation is str or annotation is Text:
            return cls("text", None, where)
        if _is_model(annotation):
            model: Any = annotation
            if dataclasses.is_dataclass(annotation):
                try:
                    _hints(model)
                except Exception as e:
                    raise TypeError(f"the Bee {where}: the types of {model.__name__} cannot be read: {e}") from None
            return cls("typed", annotation, where)
        return cls("json", None, where)

    @property
    def raw(self) -> bool:
        return self.kind in ("bytes", "text")


JSON = Form("json")


def _is_model(annotation: Any) -> bool:
    if not isinstance(annotation, type):
        return False
    return (
        dataclasses.is_dataclass(annotation) or hasattr(annotation, "model_validate") or hasattr(annotation, "parse_obj")
    )


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def loads(text: str) -> Any:
    """JSON. The scanner is asked itself first, for most values have nothing around them."""
    try:
        value, end = _decoder.scan_once(text, 0)  # type: ignore[attr-defined]
    except StopIteration:
        end = -1
    if end == len(text):
        return value
    return _decoder.decode(text)


def decode(data: bytes, form: Form) -> Any:
    """Raises :class:`Reject`, for the same bytes fail at each attempt."""
    kind = form.kind
    if kind == "bytes":
        return data
    where = f" (Bee {form.where})" if form.where else ""
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise Reject(f"the payload is not UTF-8 text{where}: {e.reason} at byte {e.start}") from None
    if kind == "text":
        return text
    try:
        value = loads(text)
    except RecursionError:
        raise Reject(f"the payload is JSON that is nested too deeply{where}") from None
    except ValueError as e:
        raise Reject(f"the payload is not JSON{where}: {e}") from None
    if kind == "json":
        return value
    try:
        return build(form.type, value)
    except Exception as e:  # A model's own validation may raise anything.
        raise Reject(f"the payload is not a {form.type.__name__}{where}: {e}") from None


@functools.lru_cache(256)
def _hints(wanted: Any) -> dict[str, Any]:
    """The types of a dataclass, looked up once."""
    return typing.get_type_hints(wanted)


def build(wanted: Any, value: Any, at: str = "") -> Any:
    """JSON as the type says: dataclasses with what they hold, models by their own validation. Unknown fields are left out."""
    validate = getattr(wanted, "model_validate", None) or getattr(wanted, "parse_obj", None)
    if validate is not None:
        return validate(value)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, dict):
            raise TypeError(f"{at or 'it'} is {_name(value)}, not an object")
        hints = _hints(wanted)
        given: dict[str, Any] = {}
        for field in dataclasses.fields(wanted):
            name = f"{at}.{field.name}" if at else field.name
            if field.name in value:
                given[field.name] = build(hints[field.name], value[field.name], name)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and field.init:
                raise TypeError(f"`{name}` is missing")
        return wanted(**given)
    return _plain(wanted, value, at)


def _plain(wanted: Any, value: Any, at: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (list, tuple, set, frozenset):
        if not isinstance(value, list):
            raise TypeError(f"`{at}` is {_name(value)}, not a list")
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
            if len(arguments) != len(value):
                raise TypeError(f"`{at}` has {len(value)} items, not {len(arguments)}")
            return tuple(build(t, v, f"{at}[{i}]") for i, (t, v) in enumerate(zip(arguments, value)))
        inner = arguments[0] if arguments else Any
        return origin(build(inner, v, f"{at}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"`{at}` is {_name(value)}, not an object")
        inner = arguments[1] if len(arguments) == 2 else Any
        return {k: build(inner, v, f"{at}.{k}") for k, v in value.items()}
    if arguments and type(None) in arguments or str(origin) in ("typing.Union", "<class 'types.UnionType'>"):
        if value is None and type(None) in arguments:
            return None
        error: Exception | None = None
        for choice in arguments:
            if choice is type(None):
                continue
            try:
                return build(choice, value, at)
            except (TypeError, ValueError) as e:
                error = error or e
        raise error or TypeError(f"`{at}` is {_name(value)}")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float, bool, list, dict):
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise TypeError(f"`{at}` is {_name(value)}, not {wanted.__name__}")
    return value


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _default(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json") if hasattr(value, "model_fields") else dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    old = getattr(value, "dict", None)
    if callable(old) and hasattr(value, "parse_obj"):
        return old()
    kind = type(value)
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} has no JSON form")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default)


def _dumps(value: Any) -> str:
    kind = type(value)
    # What most state is; an encoder is made anew for each value otherwise.
    if kind is int:
        return str(value)
    if kind is dict or kind is list:
        return "".join(_chunks(value, 0))
    return _encoder.encode(value)


def _made_once() -> Any:
    make = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:
        return lambda value, _: (_encoder.encode(value),)
    quote = json.encoder.encode_basestring
    return make(None, _default, quote, None, ":", ",", False, False, False)


_chunks = _made_once()


def encode(value: Any, form: Form) -> bytes:
    """The bytes of what a Bee publishes or responds."""
    data = to_bytes(value, form)
    if len(data) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a payload has at most {PAYLOAD_BYTES_MAX} bytes, this one {len(data)}: publish it in parts")
    return data


def to_bytes(value: Any, form: Form) -> bytes:
    """Of any size: bytes as they are, text as the form has it, the rest as JSON."""
    kind = type(value)
    if kind is bytes:
        data: bytes = value
    elif kind is Text or (kind is str and form.raw):
        data = value.encode()
    elif kind is bytearray or kind is memoryview:
        data = bytes(value)
    else:
        try:
            data = _dumps(value).encode()
        except TypeError as e:
            raise TypeError(f"{kind.__name__} is no JSON: {e}; give JSON values, bytes, text or a dataclass") from None
        except RecursionError:
            raise ValueError(f"this {kind.__name__} is no JSON: it is nested too deeply, or holds itself") from None
        except ValueError as e:
            raise ValueError(f"this {kind.__name__} is no JSON: {e}") from None
    return data
