"""What a bucket of keys keeps, for tests to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skep.dataflow.buckets import Buckets
from skep.dataflow.stage import unpack


class Values:
    """State of one key of a node, in memory."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self.values = dict(values)

    def state_get(self, name: str) -> bytes | None:
        return self.values.get(name)

    def state_put(self, name: str, value: bytes) -> None:
        assert len(value) <= 256 << 10
        self.values[name] = value
        assert len(self.values) <= 1000

    def state_delete(self, name: str) -> None:
        self.values.pop(name, None)


def keys_of(values: Mapping[str, bytes]) -> dict[str, Any]:
    """The state of each key of a bucket."""
    bucket = Buckets(Values(values), lambda key: None)
    bucket.begin("")
    return {key: unpack(bucket.load(key) or b"") for key in bucket.keys()}


def all_keys(state: Mapping[tuple[str, str], bytes]) -> dict[str, Any]:
    """The same of all buckets of a stage."""
    found: dict[str, Any] = {}
    for name in {name for name, _ in state}:
        more = keys_of({at: value for (owner, at), value in state.items() if owner == name})
        assert not found.keys() & more.keys()
        found |= more
    return found
