"""Kafka: topics as sources and sinks, over the package confluent-kafka (``pip install "skep[kafka]"``).

:class:`KafkaSource` and :class:`KafkaSink` are for :func:`skep.dataflow.operators.input` and ``output``. ``operators`` has the same with what goes
wrong as a stream of its own, and operators that take messages apart and put them together; ``serde`` has plain Avro.
"""

from __future__ import annotations

from .messages import KafkaError, KafkaSinkMessage, KafkaSourceMessage
from .sink import KafkaSink
from .source import OFFSET_BEGINNING, KafkaSource

__all__ = ["OFFSET_BEGINNING", "KafkaError", "KafkaSink", "KafkaSinkMessage", "KafkaSource", "KafkaSourceMessage"]
