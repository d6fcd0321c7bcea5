"""Bounds of the Kafka connectors, each with its reason."""

from __future__ import annotations

#: Messages that are read at once. The ancestor's.
BATCH_SIZE = 1_000
#: Seconds that a read may wait for messages: a source must not hold up the others of its worker.
POLL_SECONDS = 0.001
#: Seconds to wait for an answer about topics: a broker that can't be reached, or asks for a password, fails the start with its name.
METADATA_SECONDS = 10.0
#: Seconds in which a batch must have been acknowledged by the brokers. As long as librdkafka itself goes on trying by default.
FLUSH_SECONDS = 300.0
