"""Topics as a sink."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...outputs import DynamicSink, StatelessSinkPartition
from .client import confluent, names
from .limits import FLUSH_SECONDS
from .messages import KafkaSinkMessage


class _Partition(StatelessSinkPartition[KafkaSinkMessage["bytes | None", "bytes | None"]]):
    """Writes a batch and waits until all of it is acknowledged."""

    def __init__(self, brokers: list[str], topic: str | None, add_config: dict[str, str]) -> None:
        self._brokers = brokers
        self._topic = topic
        self._failed: list[str] = []
        self._producer = confluent().Producer({**add_config, "bootstrap.servers": ",".join(brokers)})

    def _delivered(self, error: Any, msg: Any) -> None:
        if error is not None:
            self._failed.append(f"topic {msg.topic()!r}: {error.str()} ({error.name()})")

    def write_batch(self, items: list[KafkaSinkMessage[bytes | None, bytes | None]]) -> None:
        for item in items:
            if not isinstance(item, KafkaSinkMessage):
                raise TypeError(
                    f"KafkaSink takes KafkaSinkMessage items; got {item!r} ({type(item).__name__}); a message that was read has to_sink()"
                )
            topic = self._topic if item.topic is None else item.topic
            if topic is None:
                raise ValueError(f"the message {item!r} names no topic, and the KafkaSink has none")
            for name, part in (("key", item.key), ("value", item.value)):
                if part is not None and not isinstance(part, (bytes, str)):
                    raise TypeError(
                        f"the {name} of a message for Kafka must be bytes or None; got {part!r} ({type(part).__name__}); serialize it before"
                    )
            more: dict[str, Any] = {"headers": item.headers, "on_delivery": self._delivered}
            if item.partition is not None:
                more["partition"] = item.partition
            if item.timestamp:
                more["timestamp"] = item.timestamp
            while True:
                try:
                    self._producer.produce(topic, item.value, item.key, **more)
                    break
                except BufferError:
                    # The client's queue is full: it empties as brokers acknowledge.
                    self._producer.poll(0.1)
        left = self._producer.flush(FLUSH_SECONDS)
        failed, self._failed = self._failed, []
        if failed or left:
            raise RuntimeError(
                f"{len(failed) + left} of {len(items)} messages were not acknowledged by the Kafka brokers {', '.join(self._brokers)}: "
                f"{failed[0] if failed else f'no answer in {FLUSH_SECONDS:g} s'}"
            )

    def close(self) -> None:
        self._producer.flush(FLUSH_SECONDS)


class KafkaSink(DynamicSink[KafkaSinkMessage["bytes | None", "bytes | None"]]):
    """Writes :class:`KafkaSinkMessage` items, each at least once: after a crash, those since the last snapshot are written again.

    A batch counts as written when the brokers have acknowledged all of it; a delivery that failed stops the flow. Needs the package
    confluent-kafka: ``pip install "skep[kafka]"``.
    """

    def __init__(self, brokers: Iterable[str], topic: str | None, add_config: dict[str, str] | None = None) -> None:
        """``topic``: of messages that name none themselves. ``add_config``: settings of librdkafka."""
        self._brokers = names(brokers, "brokers", "localhost:9092")
        if topic is not None and (not isinstance(topic, str) or not topic):
            raise TypeError(f"`topic` must be text or None; got {topic!r}")
        self._topic = topic
        self._add_config = dict(add_config or {})
        confluent()

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Partition:
        return _Partition(self._brokers, self._topic, self._add_config)
