"""The ancestor's way to set up tracing, so that its scripts run.

A flow that runs in this process makes no spans: its steps are calls of Python functions, for which a profiler is the better tool. What is
asked for here is checked and written to the log, and nothing is sent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

__all__ = ["JaegerConfig", "OtlpTracingConfig", "TracingConfig", "setup_tracing"]

_LOG = logging.getLogger("skep.dataflow")


class TracingConfig:
    """Where spans go: one of the classes below."""


def _ratio(value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"sampling_ratio: from 0 to 1; got {value!r}")


@dataclass
class JaegerConfig(TracingConfig):
    """A Jaeger agent at ``host:port``."""

    service_name: str
    endpoint: str | None = None
    sampling_ratio: float = 1.0

    def __post_init__(self) -> None:
        _ratio(self.sampling_ratio)


@dataclass
class OtlpTracingConfig(TracingConfig):
    """A collector that speaks OTLP over gRPC."""

    service_name: str
    url: str | None = None
    sampling_ratio: float = 1.0

    def __post_init__(self) -> None:
        _ratio(self.sampling_ratio)


class BytewaxTracer:
    """What :func:`setup_tracing` returns, to be held while the flow runs."""


def setup_tracing(tracing_config: TracingConfig | None = None, log_level: str | None = None) -> BytewaxTracer:
    """Sets the level of the log ``skep.dataflow``, and says that the in-process runner sends no spans where they were asked for."""
    if tracing_config is not None and not isinstance(tracing_config, TracingConfig):
        raise TypeError(f"tracing_config: a JaegerConfig or an OtlpTracingConfig; got {tracing_config!r}")
    if log_level is not None:
        level = logging.getLevelName({"TRACE": "DEBUG", "WARN": "WARNING"}.get(log_level.upper(), log_level.upper()))
        if not isinstance(level, int):
            raise ValueError(f"log_level: ERROR, WARN, INFO, DEBUG or TRACE; got {log_level!r}")
        _LOG.setLevel(level)
    if tracing_config is not None:
        _LOG.warning("the in-process runner makes no spans, so nothing is sent to %r", tracing_config)
    return BytewaxTracer()
