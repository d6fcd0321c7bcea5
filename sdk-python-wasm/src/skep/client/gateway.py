"""Calls Swarms."""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from ..v1 import gateway_pb2 as pb
from ..v1.gateway_pb2_grpc import GatewayStub
from .errors import GatewayError, of_failure, of_rpc
from .parts import Parts
from .wire import (
    ABSENT,
    TIMEOUT_S_DEFAULT,
    Attempts,
    Headers,
    Response,
    Target,
    answered,
    both,
    bundles,
    request_call,
)

T = TypeVar("T")
#: Requests of one stream that are under way; a node takes 4,096.
WINDOW = 512


class Gateway:
    """A node's door::

        answer = Gateway("http://127.0.0.1:4020").request("hello-world", {"name": "Bee"})
        print(answer.payload)

    Without a URL, ``SKEP_NODE`` or a node on this machine. Threads may share one. What is safe to repeat is repeated, within the
    deadline: what was certainly not done, and with an idempotency key also what was perhaps done.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        timeout: float = TIMEOUT_S_DEFAULT,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.target = Target(url, token, ca, options)
        self.timeout = timeout
        if self.target.secure:
            self._channel = grpc.secure_channel(self.target.address, self.target.credentials(), self.target.options)
        else:
            self._channel = grpc.insecure_channel(self.target.address, self.target.options)
        self._stub = GatewayStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self,
        subject: Any,
        payload: Any = ABSENT,
        *,
        gateway: str | None = None,
        key: str | None = None,
        headers: Headers = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> Response:
        """Waits for the Swarm's first response."""
        subject, payload = both(subject, payload, gateway)
        attempts = Attempts(timeout or self.timeout, idempotency_key is not None)

        def once(left: float) -> Response:
            call = request_call(subject, payload, key, headers, left, idempotency_key, traceparent)
            return answered(self._stub.Request(call, timeout=left, metadata=self.target.metadata))

        return self._again(once, attempts)

    def stream(
        self,
        subject: Any,
        payload: Any = ABSENT,
        *,
        gateway: str | None = None,
        key: str | None = None,
        headers: Headers = None,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> Parts:
        """A request whose answer is taken in parts, as the Bee makes them::

            for part in gateway.stream("chat", {"prompt": "Tell me of bees"}):
                print(part.decode(), end="", flush=True)

        It is sent once: parts are not kept. A failure is raised behind the parts that came before it.
        """
        subject, payload = both(subject, payload, gateway)
        left = timeout or self.timeout
        call = request_call(subject, payload, key, headers, left, None, traceparent)
        return Parts(self._stub.RequestStream(call, timeout=left, metadata=self.target.metadata))

    def submit(
        self,
        subject: Any,
        *payloads: Any,
        gateway: str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> int:
        """Appends messages: payloads, or what :func:`skep.client.wire.out_message` makes. Gives back how many are durable now."""
        if gateway is not None:
            subject, payloads = gateway, (subject, *payloads)
        if not isinstance(subject, str) or not payloads:
            raise TypeError('give subject and payloads: submit("hello-world", {"name": "Bee"})')
        frames = list(bundles(payloads))
        if len(frames) > 1:
            return self.submit_stream(subject, payloads, timeout=timeout)
        # Without a key a repeat could append twice; ours is for this call alone.
        call = pb.SubmitCall(subject=subject, messages=frames[0], idempotency_key=idempotency_key or uuid.uuid4().hex)

        def once(left: float) -> int:
            reply = self._stub.Submit(call, timeout=left, metadata=self.target.metadata)
            return len(frames[0]) if reply.duplicate else int(reply.accepted)

        return self._again(once, Attempts(timeout or self.timeout, True))

    def requests(
        self, subject: str, payloads: Iterable[Any], *, timeout: float | None = None
    ) -> Iterator[Response | GatewayError]:
        """Many requests on one stream, answered in the order in which they were given; one that failed is its error.

        At most 512 are under way; a stream that breaks ends the iteration with its error.
        """
        each = timeout or self.timeout
        room: queue.Queue[Any] = queue.Queue(WINDOW)
        done: dict[int, Response | GatewayError] = {}
        sent = 0

        def calls() -> Iterator[pb.RequestCall]:
            nonlocal sent
            for number, payload in enumerate(payloads, 1):
                room.put(None)
                call = request_call(subject, payload, None, None, each, None, None)
                call.id = number
                sent = number
                yield call

        next_id = 1
        stream = self._stub.Requests(calls(), metadata=self.target.metadata)
        try:
            for reply in stream:
                room.get()
                done[reply.id] = of_failure(reply.failure) if reply.HasField("failure") else Response(reply)
                while next_id in done:
                    yield done.pop(next_id)
                    next_id += 1
        except grpc.RpcError as e:
            raise of_rpc(e) from e
        finally:
            stream.cancel()
            # The thread that sends may wait for room.
            while not room.empty():
                room.get_nowait()

    def submit_stream(self, subject: str, payloads: Iterable[Any], *, timeout: float | None = None) -> int:
        """Appends a long run of messages under one session, which is resumed after a break: nothing is appended twice. Gives back how
        many are durable."""
        session = uuid.uuid4().bytes
        attempts = Attempts(timeout or 10 * self.timeout, True, attempts=1_000)
        frames = bundles(payloads)
        # What is not known to be durable yet.
        waiting: list[tuple[int, list[Any]]] = []
        durable, first = 0, 1
        ended = False
        while True:

            def send() -> Iterator[pb.SubmitFrame]:
                nonlocal first, ended
                begun = False
                for at, frame in list(waiting):
                    yield _frame(subject, session, at, frame, begun)
                    begun = True
                while not ended:
                    while len(waiting) >= 64:
                        time.sleep(0.001)
                    taken = next(frames, None)
                    if taken is None:
                        ended = True
                        break
                    at, first = first, first + len(taken)
                    waiting.append((at, taken))
                    yield _frame(subject, session, at, taken, begun)
                    begun = True

            try:
                for ack in self._stub.SubmitStream(send(), metadata=self.target.metadata):
                    durable = max(durable, ack.durable)
                    while waiting and waiting[0][0] + len(waiting[0][1]) - 1 <= durable:
                        waiting.pop(0)
                    if ack.HasField("failure"):
                        raise of_failure(ack.failure)
                if ended and not waiting:
                    return durable
                raise GatewayError("the stream ended before everything was durable", passing=True)
            except (grpc.RpcError, GatewayError) as e:
                error = e if isinstance(e, GatewayError) else of_rpc(e)
                wait = attempts.again(error)
                if wait is None:
                    raise error from (e if e is not error else None)
                time.sleep(wait)

    def _again(self, once: Callable[[float], T], attempts: Attempts) -> T:
        while True:
            try:
                return once(attempts.left())
            except grpc.RpcError as e:
                error = of_rpc(e)
                wait = attempts.again(error)
                if wait is None:
                    raise error from e
            except GatewayError as e:
                wait = attempts.again(e)
                if wait is None:
                    raise
            time.sleep(wait)


def _frame(subject: str, session: bytes, at: int, frame: list[Any], begun: bool) -> pb.SubmitFrame:
    if begun:
        return pb.SubmitFrame(first=at, messages=frame)
    return pb.SubmitFrame(subject=subject, session=session, first=at, messages=frame)
