"""What is read from Kafka and written to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")
K_co = TypeVar("K_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)


@dataclass(frozen=True)
class KafkaSourceMessage(Generic[K, V]):
    """A message that was read."""

    key: K
    value: V
    topic: str | None = field(default=None)
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    #: Seconds that its production took, where the client knows.
    latency: float | None = field(default=None)
    offset: int | None = field(default=None)
    partition: int | None = field(default=None)
    #: Kind of the time (of creation 1, of appending 2), and milliseconds since 1970.
    timestamp: tuple[int, int] | None = field(default=None)

    def to_sink(self) -> KafkaSinkMessage[K, V]:
        """A message with the same key, value and headers, for the topic of the sink.

        >>> KafkaSourceMessage(b"k", b"v", topic="in", offset=3).to_sink()
        KafkaSinkMessage(key=b'k', value=b'v', topic=None, headers=[], partition=None, timestamp=0)
        """
        return KafkaSinkMessage(self.key, self.value, headers=self.headers)

    def _with_key(self, key: K2) -> KafkaSourceMessage[K2, V]:
        return self._with_key_and_value(key, self.value)

    def _with_value(self, value: V2) -> KafkaSourceMessage[K, V2]:
        return self._with_key_and_value(self.key, value)

    def _with_key_and_value(self, key: K2, value: V2) -> KafkaSourceMessage[K2, V2]:
        return KafkaSourceMessage(key, value, self.topic, self.headers, self.latency, self.offset, self.partition, self.timestamp)


@dataclass(frozen=True)
class KafkaSinkMessage(Generic[K_co, V_co]):
    """A message to write."""

    key: K_co
    value: V_co
    #: The sink's, if it is not said.
    topic: str | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    #: By the key, if it is not said.
    partition: int | None = None
    #: Milliseconds since 1970; 0 for now.
    timestamp: int = 0

    def _with_key(self, key: K2) -> KafkaSinkMessage[K2, V_co]:
        return KafkaSinkMessage(key, self.value, self.topic, self.headers, self.partition, self.timestamp)

    def _with_value(self, value: V2) -> KafkaSinkMessage[K_co, V2]:
        return KafkaSinkMessage(self.key, value, self.topic, self.headers, self.partition, self.timestamp)

    def _with_key_and_value(self, key: K2, value: V2) -> KafkaSinkMessage[K2, V2]:
        return KafkaSinkMessage(key, value, self.topic, self.headers, self.partition, self.timestamp)


@dataclass(frozen=True)
class KafkaError(Generic[K, V]):
    """A message that could not be read, or taken apart."""

    #: The client's ``confluent_kafka.KafkaError``.
    err: Any
    msg: KafkaSourceMessage[K, V]
