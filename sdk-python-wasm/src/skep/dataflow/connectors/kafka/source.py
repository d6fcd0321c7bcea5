"""Topics as a source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from ...inputs import FixedPartitionedSource, StatefulSourcePartition
from .client import confluent, names
from .limits import BATCH_SIZE, METADATA_SECONDS, POLL_SECONDS
from .messages import KafkaError, KafkaSourceMessage

#: ``confluent_kafka.OFFSET_BEGINNING``.
OFFSET_BEGINNING = -2

RawMessage: TypeAlias = KafkaSourceMessage[bytes | None, bytes | None]
RawError: TypeAlias = KafkaError[bytes | None, bytes | None]


def _message(msg: Any) -> RawMessage:
    return KafkaSourceMessage(
        msg.key(), msg.value(), msg.topic(), msg.headers() or [], msg.latency(), msg.offset(), msg.partition(), msg.timestamp()
    )


class _Partition(StatefulSourcePartition["RawMessage | RawError", "int | None"]):
    """A partition of a topic. Its state is the offset of the next message; Kafka is told nothing of it."""

    def __init__(self, source: KafkaSource, topic: str, partition: int, resume_state: int | None) -> None:
        kafka = self._kafka = confluent()
        self._tail = source._tail
        self._batch_size = source._batch_size
        self._raise = source._raise_on_errors
        self._offset = resume_state
        self._ended = False
        start = source._starting_offset if resume_state is None else resume_state
        config = {
            # An offset that is gone is an error, not a reason to begin elsewhere in silence.
            "auto.offset.reset": "error",
            **source._add_config,
            # The client wants a group, but is in none: partitions are shared out and offsets kept by skep.
            "group.id": "skep-no-group",
            "enable.auto.commit": "false",
            "enable.partition.eof": "true",
            "bootstrap.servers": ",".join(source._brokers),
        }
        self._consumer = kafka.Consumer(config)
        self._consumer.assign([kafka.TopicPartition(topic, partition, start)])

    def next_batch(self) -> Iterable[RawMessage | RawError]:
        if self._ended:
            raise StopIteration
        batch: list[RawMessage | RawError] = []
        for msg in self._consumer.consume(self._batch_size, POLL_SECONDS):
            error = msg.error()
            if error is None:
                batch.append(_message(msg))
                self._offset = msg.offset() + 1
            elif error.code() == self._kafka.KafkaError._PARTITION_EOF:
                # What follows in the batch was appended since, and is read in a later run.
                if not self._tail:
                    self._ended = True
                    break
            elif self._raise:
                raise RuntimeError(f"reading partition {msg.partition()} of Kafka topic {msg.topic()!r}: {error.str()} ({error.name()})")
            else:
                batch.append(KafkaError(error, _message(msg)))
        return batch

    def snapshot(self) -> int | None:
        return self._offset

    def close(self) -> None:
        self._consumer.close()


class KafkaSource(FixedPartitionedSource["RawMessage | RawError", "int | None"]):
    """Reads Kafka topics, each partition from where the flow's own state says: exactly once, if what follows can do that.

    Items are :class:`KafkaSourceMessage` with keys and values of bytes or None. Needs the package confluent-kafka: ``pip install "skep[kafka]"``.
    """

    def __init__(
        self,
        brokers: Iterable[str],
        topics: Iterable[str],
        tail: bool = True,
        starting_offset: int = OFFSET_BEGINNING,
        add_config: dict[str, str] | None = None,
        batch_size: int = BATCH_SIZE,
        raise_on_errors: bool = True,
    ) -> None:
        """``tail``: go on waiting at the end of a partition. ``starting_offset``: where a partition without state begins, an offset or
        ``confluent_kafka.OFFSET_BEGINNING`` or ``OFFSET_END``. ``add_config``: settings of librdkafka. ``raise_on_errors``: stop at an error;
        else it is an item, a :class:`KafkaError`."""
        self._brokers = names(brokers, "brokers", "localhost:9092")
        self._topics = names(topics, "topics", "orders")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {batch_size!r}")
        self._tail = tail
        self._starting_offset = starting_offset
        self._add_config = dict(add_config or {})
        self._batch_size = batch_size
        self._raise_on_errors = raise_on_errors
        confluent()

    def list_parts(self) -> list[str]:
        from confluent_kafka.admin import AdminClient

        kafka = confluent()
        asks = {key: value for key, value in self._add_config.items() if not key.startswith(("auto.offset", "enable.auto", "fetch.", "group."))}
        client = AdminClient({**asks, "bootstrap.servers": ",".join(self._brokers)})
        client.poll(0)
        parts: list[str] = []
        for topic in self._topics:
            try:
                found = client.list_topics(topic, timeout=METADATA_SECONDS).topics.get(topic)
            except kafka.KafkaException as e:
                error = e.args[0]
                raise RuntimeError(
                    f"the Kafka brokers {', '.join(self._brokers)} did not say in {METADATA_SECONDS:g} s which partitions topic {topic!r} has: "
                    f"{error.str()}; check addresses, and `add_config` for what they ask of clients (security.protocol, sasl.…)"
                ) from e
            if found is None:
                raise RuntimeError(f"Kafka topic {topic!r} is not there")
            if found.error is not None:
                raise RuntimeError(f"Kafka topic {topic!r}: {found.error.str()}")
            parts.extend(f"{partition}-{topic}" for partition in sorted(found.partitions))
        return parts

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Partition:
        number, _, topic = for_part.partition("-")
        if topic not in self._topics or not number.isdecimal():
            raise ValueError(f"step {step_id!r}: {for_part!r} is no partition of the topics {self._topics}; the state may be of another flow")
        return _Partition(self, topic, int(number), resume_state)
