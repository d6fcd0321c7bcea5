"""Calls as they travel; what the synchronous and the asynchronous client have in common."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from .. import payload as payloads
from ..v1 import gateway_pb2 as pb
from .errors import GatewayError, Outcome, of_failure

NODE_DEFAULT = "http://127.0.0.1:4020"
TIMEOUT_S_DEFAULT = 30.0
#: In all, the first included.
ATTEMPTS_MAX = 5
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 5.0
#: Messages of one submit, and their bytes: the node takes no more at once.
SUBMIT_MESSAGES_MAX = 10_000
SUBMIT_BYTES_MAX = 2 << 20
#: A node takes that much in one gRPC message.
MESSAGE_BYTES_MAX = 4 << 20

Headers = Mapping[str, str] | Sequence[tuple[str, str]] | None


class Response:
    """The Swarm's answer."""

    __slots__ = ("data", "hops", "id", "trace_id")

    def __init__(self, reply: Any) -> None:
        #: Its very bytes.
        self.data: bytes = reply.response
        self.id: int = reply.id
        #: The stages passed, where the call was traced.
        self.hops: list[Any] = list(reply.hops)
        self.trace_id: str | None = reply.trace_id if reply.HasField("trace_id") else None

    @property
    def payload(self) -> Any:
        """Its JSON value; its text, where it is no JSON; its bytes, where it is no text."""
        try:
            text = self.data.decode()
        except UnicodeDecodeError:
            return self.data
        try:
            return json.loads(text)
        except ValueError:
            return text

    @property
    def text(self) -> str:
        return self.data.decode()

    def json(self) -> Any:
        return json.loads(self.data)

    def __repr__(self) -> str:
        return f"Response({self.data[:80]!r})"


class Target:
    """Where a node is and how to come in: the URL, ``SKEP_NODE`` or this machine; the token, or ``SKEP_TOKEN``; who signed its certificate, or
    ``SKEP_CA``."""

    def __init__(self, url: str | None, token: str | None, ca: str | Path | None, options: Sequence[tuple[str, Any]]) -> None:
        self.url = url or os.environ.get("SKEP_NODE") or NODE_DEFAULT
        parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"`{self.url}` is no address of a node: write http://HOST:PORT or https://HOST:PORT")
        self.secure = parts.scheme == "https"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.address = f"{host}:{parts.port or (443 if self.secure else 80)}"
        token = token or os.environ.get("SKEP_TOKEN")
        self.metadata: list[tuple[str, str]] = [("authorization", f"Bearer {token}")] if token else []
        ca = ca or os.environ.get("SKEP_CA") or None
        self.ca = Path(ca).read_bytes() if ca is not None else None
        near = parts.hostname in ("127.0.0.1", "localhost", "::1") or os.environ.get("SKEP_TOKEN_IN_THE_CLEAR") in ("1", "true")
        if token and not self.secure and not near:
            raise ValueError("a token would be sent in the clear: use https://, or a node on this machine")
        self.options = [
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX * 4),
            # The retries are ours, which know outcomes.
            ("grpc.enable_retries", 0),
            *options,
        ]

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca)


def encode(value: Any) -> bytes:
    """Bytes as they are, text as text, anything else as JSON."""
    return payloads.encode(payloads.Text(value) if type(value) is str else value, payloads.JSON)


def pairs(headers: Headers) -> list[Any]:
    given = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [pb.Header(name=name, value=value) for name, value in given]


def request_call(
    subject: str, payload: Any, key: str | None, headers: Headers, timeout: float, idempotency_key: str | None, traceparent: str | None
) -> pb.RequestCall:
    return pb.RequestCall(
        subject=subject,
        payload=encode(payload),
        headers=pairs(headers),
        key=key,
        timeout_ms=max(1, round(timeout * 1000)),
        idempotency_key=idempotency_key,
        traceparent=traceparent,
    )


def out_message(payload: Any, key: str | None = None, headers: Headers = None) -> pb.OutMessage:
    return pb.OutMessage(payload=encode(payload), key=key, headers=pairs(headers))


def both(first: Any, second: Any, gateway: str | None) -> tuple[str, Any]:
    """``(subject, payload)``; or the ancestor's order, ``(payload, gateway="subject")``."""
    if gateway is not None:
        if second is not ABSENT:
            raise TypeError("give the subject once: request(subject, payload), or request(payload, gateway=subject)")
        return gateway, first
    if second is ABSENT or not isinstance(first, str):
        raise TypeError('give subject and payload: request("hello-world", {"name": "Bee"})')
    return first, second


ABSENT: Any = object()


def answered(reply: Any) -> Response:
    if reply.HasField("failure"):
        raise of_failure(reply.failure)
    return Response(reply)


class Attempts:
    """When to repeat a call: only what is safe, only within the deadline, never in step with others."""

    def __init__(self, timeout: float, keyed: bool, attempts: int = ATTEMPTS_MAX) -> None:
        self.ends = time.monotonic() + timeout
        self.keyed = keyed
        self.left_attempts = attempts - 1
        self.pause = PAUSE_FIRST_S
        self.unknown = False

    def left(self) -> float:
        return max(0.001, self.ends - time.monotonic())

    def again(self, error: GatewayError) -> float | None:
        """How long to wait before the next attempt; None when there is none. The error then says what all attempts together did."""
        safe = error.outcome is Outcome.NOT_DONE or (self.keyed and error.outcome is Outcome.UNKNOWN)
        self.unknown |= error.outcome is Outcome.UNKNOWN
        wait = random.uniform(0, self.pause) + (error.retry_after or 0)
        self.pause = min(2 * self.pause, PAUSE_MAX_S)
        if error.passing and safe and self.left_attempts > 0 and wait < self.left():
            self.left_attempts -= 1
            return wait
        if self.unknown and error.outcome is Outcome.NOT_DONE:
            error.outcome = Outcome.UNKNOWN
        return None


def bundles(messages: Any, first: int = 0) -> Any:
    """Messages in frames that a node takes whole."""
    frame: list[Any] = []
    size = 0
    for message in messages:
        one = message if isinstance(message, pb.OutMessage) else out_message(message)
        bytes_of = one.ByteSize()
        if frame and (len(frame) >= SUBMIT_MESSAGES_MAX or size + bytes_of > SUBMIT_BYTES_MAX):
            yield frame
            frame, size = [], 0
        frame.append(one)
        size += bytes_of
    if frame:
        yield frame
