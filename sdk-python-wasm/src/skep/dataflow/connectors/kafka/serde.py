"""Avro without a schema registry's header. Needs the package fastavro."""

from __future__ import annotations

import io
import json
from typing import Any


def _schema(schema: Any, named_schemas: dict[str, Any] | None) -> Any:
    try:
        from fastavro.schema import parse_schema
    except ImportError as e:
        raise ImportError('plain Avro needs the package fastavro: pip install "skep[kafka]"') from e
    # A registry's Schema has its text in a field.
    text = getattr(schema, "schema_str", schema)
    return parse_schema(json.loads(text) if isinstance(text, str) else text, named_schemas=named_schemas)


class PlainAvroSerializer:
    """Values to Avro, without the bytes before it by which a schema registry's clients know the schema."""

    def __init__(self, schema: Any, named_schemas: dict[str, Any] | None = None) -> None:
        """``schema``: JSON text, a dict, or a ``Schema`` of a registry. ``named_schemas``: others that it refers to, by name."""
        self._schema = _schema(schema, named_schemas)

    def __call__(self, obj: Any, ctx: Any = None) -> bytes:
        from fastavro import schemaless_writer

        out = io.BytesIO()
        schemaless_writer(out, self._schema, obj)
        return out.getvalue()


class PlainAvroDeserializer:
    """Avro that :class:`PlainAvroSerializer`, or any other plain writer, wrote with this schema."""

    def __init__(self, schema: Any, named_schemas: dict[str, Any] | None = None) -> None:
        """See :class:`PlainAvroSerializer`."""
        self._schema = _schema(schema, named_schemas)

    def __call__(self, value: Any, ctx: Any = None) -> Any:
        from fastavro import schemaless_reader

        if value is None:
            return None
        source = io.BytesIO(value.encode() if isinstance(value, str) else value)
        read = schemaless_reader(source, self._schema, None)
        if source.read(1):
            raise ValueError("there is more behind the Avro value: it is of another schema, or has a schema registry's header")
        return read
