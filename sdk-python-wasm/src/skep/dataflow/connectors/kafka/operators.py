"""Kafka in a flow, with what goes wrong as a stream of its own.

Use it as ``import skep.dataflow.connectors.kafka.operators as kop``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ... import operators as op
from ...graph import Dataflow, Stream, operator
from .client import confluent
from .limits import BATCH_SIZE
from .messages import KafkaError, KafkaSinkMessage, KafkaSourceMessage
from .sink import KafkaSink
from .source import OFFSET_BEGINNING, KafkaSource, RawError, RawMessage

X = TypeVar("X")
E = TypeVar("E")
K = TypeVar("K")
V = TypeVar("V")

__all__ = [
    "KafkaError",
    "KafkaOpOut",
    "KafkaSinkMessage",
    "KafkaSourceMessage",
    "deserialize",
    "deserialize_key",
    "deserialize_value",
    "input",
    "output",
    "serialize",
    "serialize_key",
    "serialize_value",
]


@dataclass(frozen=True)
class KafkaOpOut(Generic[X, E]):
    """The streams of a Kafka operator."""

    #: Messages.
    oks: Stream[X]
    #: Those that could not be read or taken apart, with the error.
    errs: Stream[E]


def _is_error(item: Any) -> bool:
    return isinstance(item, KafkaError)


def _part(step_id: str, both: Stream[Any]) -> KafkaOpOut[Any, Any]:
    parted = op.branch(step_id, both, _is_error)
    return KafkaOpOut(parted.falses, parted.trues)


@operator
def input(
    step_id: str,
    flow: Dataflow,
    *,
    brokers: list[str],
    topics: list[str],
    tail: bool = True,
    starting_offset: int = OFFSET_BEGINNING,
    add_config: dict[str, str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> KafkaOpOut[RawMessage, RawError]:
    """Reads topics; errors are a stream. See :class:`KafkaSource`."""
    source = KafkaSource(brokers, topics, tail, starting_offset, add_config, batch_size, raise_on_errors=False)
    return _part("branch", op.input("kafka_input", flow, source))


def _to_sink(message: Any) -> KafkaSinkMessage[Any, Any]:
    if isinstance(message, KafkaSinkMessage):
        return message
    if isinstance(message, KafkaSourceMessage):
        return message.to_sink()
    raise TypeError(f"a message for Kafka must be a KafkaSinkMessage or KafkaSourceMessage; got {message!r} ({type(message).__name__})")


@operator
def output(
    step_id: str,
    up: Stream[KafkaSourceMessage[bytes | None, bytes | None] | KafkaSinkMessage[bytes | None, bytes | None]],
    *,
    brokers: list[str],
    topic: str,
    add_config: dict[str, str] | None = None,
) -> None:
    """Writes messages to a topic, those that were read too. See :class:`KafkaSink`."""
    op.output("kafka_output", op.map("to_sink", up, _to_sink), KafkaSink(brokers, topic, add_config))


def _context(message: Any, field: str) -> Any:
    from confluent_kafka.serialization import MessageField, SerializationContext

    return SerializationContext(message.topic, MessageField.KEY if field == "key" else MessageField.VALUE, message.headers)


def _read(message: KafkaSourceMessage[Any, Any], field: str, deserializer: Callable[[Any, Any], Any]) -> Any:
    """What the deserializer makes of a part, or the error."""
    if not isinstance(message, KafkaSourceMessage):
        raise TypeError(f"deserialize takes KafkaSourceMessage items; got {message!r} ({type(message).__name__}); take the `oks` of the input")
    try:
        return deserializer(getattr(message, field), _context(message, field))
    except Exception as e:
        kafka = confluent()
        code = kafka.KafkaError._KEY_DESERIALIZATION if field == "key" else kafka.KafkaError._VALUE_DESERIALIZATION
        return KafkaError(kafka.KafkaError(code, f"{type(e).__name__}: {e}"), message)


def _deserializer(step_id: str, *deserializers: object) -> None:
    for deserializer in deserializers:
        if not callable(deserializer):
            raise TypeError(f"step {step_id!r}: a (de)serializer is called with (value, context); got {deserializer!r}")
    confluent()


@operator
def deserialize_key(
    step_id: str, up: Stream[KafkaSourceMessage[bytes | None, V]], deserializer: Callable[[Any, Any], Any]
) -> KafkaOpOut[KafkaSourceMessage[object, V], KafkaError[bytes | None, V]]:
    """Takes keys apart; a message whose key can't be is an error, with the message as it was."""
    _deserializer(step_id, deserializer)

    def each(message: Any) -> Any:
        key = _read(message, "key", deserializer)
        return key if isinstance(key, KafkaError) else message._with_key(key)

    return _part("branch", op.map("map", up, each))


@operator
def deserialize_value(
    step_id: str, up: Stream[KafkaSourceMessage[K, bytes | None]], deserializer: Callable[[Any, Any], Any]
) -> KafkaOpOut[KafkaSourceMessage[K, object], KafkaError[K, bytes | None]]:
    """Takes values apart; a message whose value can't be is an error, with the message as it was."""
    _deserializer(step_id, deserializer)

    def each(message: Any) -> Any:
        value = _read(message, "value", deserializer)
        return value if isinstance(value, KafkaError) else message._with_value(value)

    return _part("branch", op.map("map", up, each))


@operator
def deserialize(
    step_id: str,
    up: Stream[KafkaSourceMessage[bytes | None, bytes | None]],
    *,
    key_deserializer: Callable[[Any, Any], Any],
    val_deserializer: Callable[[Any, Any], Any],
) -> KafkaOpOut[KafkaSourceMessage[object, object], KafkaError[bytes | None, bytes | None]]:
    """Takes keys and values apart; a message of which one can't be is an error, with the message as it was."""
    _deserializer(step_id, key_deserializer, val_deserializer)

    def each(message: Any) -> Any:
        key = _read(message, "key", key_deserializer)
        if isinstance(key, KafkaError):
            return key
        value = _read(message, "value", val_deserializer)
        return value if isinstance(value, KafkaError) else message._with_key_and_value(key, value)

    return _part("branch", op.map("map", up, each))


@operator
def serialize_key(step_id: str, up: Stream[Any], serializer: Callable[[Any, Any], Any]) -> Stream[KafkaSinkMessage[bytes, Any]]:
    """Makes bytes of keys. What can't be is an error of the flow."""
    _deserializer(step_id, serializer)

    def each(item: Any) -> Any:
        message = _to_sink(item)
        return message._with_key(serializer(message.key, _context(message, "key")))

    return op.map("map", up, each)


@operator
def serialize_value(step_id: str, up: Stream[Any], serializer: Callable[[Any, Any], Any]) -> Stream[KafkaSinkMessage[Any, bytes]]:
    """Makes bytes of values. What can't be is an error of the flow."""
    _deserializer(step_id, serializer)

    def each(item: Any) -> Any:
        message = _to_sink(item)
        return message._with_value(serializer(message.value, _context(message, "value")))

    return op.map("map", up, each)


@operator
def serialize(
    step_id: str, up: Stream[Any], *, key_serializer: Callable[[Any, Any], Any], val_serializer: Callable[[Any, Any], Any]
) -> Stream[KafkaSinkMessage[bytes, bytes]]:
    """Makes bytes of keys and values. What can't be is an error of the flow."""
    _deserializer(step_id, key_serializer, val_serializer)

    def each(item: Any) -> Any:
        message = _to_sink(item)
        key = key_serializer(message.key, _context(message, "key"))
        return message._with_key_and_value(key, val_serializer(message.value, _context(message, "value")))

    return op.map("map", up, each)
