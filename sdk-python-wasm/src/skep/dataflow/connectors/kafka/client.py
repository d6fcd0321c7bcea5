"""The Kafka client, which is not skep's own: the package confluent-kafka, asked for when it is needed."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType


def confluent() -> ModuleType:
    """The package, or an ImportError that says how to get it."""
    try:
        import confluent_kafka
    except ImportError as e:
        raise ImportError(
            'the Kafka connectors need the package confluent-kafka: pip install "skep[kafka]". It is not there inside a WebAssembly component, '
            "which has no sockets: run such a flow with python -m skep.run, or put a Kafka gateway before it"
        ) from e
    module: ModuleType = confluent_kafka
    return module


def names(value: Iterable[str], what: str, example: str) -> list[str]:
    """Several names, once it is sure that they are not one text."""
    found = [] if isinstance(value, str) else list(value)
    if not found or not all(isinstance(name, str) and name for name in found):
        raise TypeError(f"`{what}` must be a list of text, as [{example!r}]; got {value!r}")
    return found
