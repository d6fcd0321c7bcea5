"""The asynchronous twin of :class:`skep.Gateway`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from ..v1 import gateway_pb2 as pb
from ..v1.gateway_pb2_grpc import GatewayStub
from .errors import GatewayError, of_failure, of_rpc
from .gateway import WINDOW
from .parts import AsyncParts
from .wire import ABSENT, TIMEOUT_S_DEFAULT, Attempts, Headers, Response, Target, answered, both, bundles, request_call

T = TypeVar("T")


class AsyncGateway:
    """As :class:`skep.Gateway`, for asyncio::

        async with AsyncGateway() as gateway:
            answer = await gateway.request("hello-world", {"name": "Bee"})
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
            self._channel = grpc.aio.secure_channel(self.target.address, self.target.credentials(), self.target.options)
        else:
            self._channel = grpc.aio.insecure_channel(self.target.address, self.target.options)
        self._stub: Any = GatewayStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncGateway:
        return self

    async def __aexit__(self, *ended: object) -> None:
        await self.close()

    async def request(
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
        subject, payload = both(subject, payload, gateway)
        attempts = Attempts(timeout or self.timeout, idempotency_key is not None)

        async def once(left: float) -> Response:
            call = request_call(subject, payload, key, headers, left, idempotency_key, traceparent)
            return answered(await self._stub.Request(call, timeout=left, metadata=self.target.metadata))

        return await self._again(once, attempts)

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
    ) -> AsyncParts:
        """A request whose answer is taken in parts, as the Bee makes them::

            async for part in gateway.stream("chat", {"prompt": "Tell me of bees"}):
                print(part.decode(), end="", flush=True)

        It is sent once: parts are not kept. A failure is raised behind the parts that came before it.
        """
        subject, payload = both(subject, payload, gateway)
        left = timeout or self.timeout
        call = request_call(subject, payload, key, headers, left, None, traceparent)
        return AsyncParts(self._stub.RequestStream(call, timeout=left, metadata=self.target.metadata))

    async def submit(
        self,
        subject: Any,
        *payloads: Any,
        gateway: str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> int:
        if gateway is not None:
            subject, payloads = gateway, (subject, *payloads)
        if not isinstance(subject, str) or not payloads:
            raise TypeError('give subject and payloads: submit("hello-world", {"name": "Bee"})')
        accepted = 0
        for part, frame in enumerate(bundles(payloads)):
            unique = f"{idempotency_key}/{part}" if idempotency_key and part else idempotency_key or uuid.uuid4().hex
            call = pb.SubmitCall(subject=subject, messages=frame, idempotency_key=unique)

            async def once(left: float, call: pb.SubmitCall = call, count: int = len(frame)) -> int:
                reply = await self._stub.Submit(call, timeout=left, metadata=self.target.metadata)
                return count if reply.duplicate else int(reply.accepted)

            accepted += await self._again(once, Attempts(timeout or self.timeout, True))
        return accepted

    async def requests(
        self, subject: str, payloads: Iterable[Any] | AsyncIterable[Any], *, timeout: float | None = None
    ) -> AsyncIterator[Response | GatewayError]:
        """As :meth:`skep.Gateway.requests`: many on one stream, in order; one that failed is its error."""
        each = timeout or self.timeout
        room = asyncio.Semaphore(WINDOW)

        async def calls() -> AsyncIterator[pb.RequestCall]:
            number = 0
            async for payload in _each(payloads):
                number += 1
                await room.acquire()
                call = request_call(subject, payload, None, None, each, None, None)
                call.id = number
                yield call

        done: dict[int, Response | GatewayError] = {}
        next_id = 1
        stream = self._stub.Requests(calls(), metadata=self.target.metadata)
        try:
            async for reply in stream:
                room.release()
                done[reply.id] = of_failure(reply.failure) if reply.HasField("failure") else Response(reply)
                while next_id in done:
                    yield done.pop(next_id)
                    next_id += 1
        except grpc.RpcError as e:
            raise of_rpc(e) from e
        finally:
            stream.cancel()

    async def _again(self, once: Callable[[float], Awaitable[T]], attempts: Attempts) -> T:
        while True:
            try:
                return await once(attempts.left())
            except grpc.RpcError as e:
                error = of_rpc(e)
                wait = attempts.again(error)
                if wait is None:
                    raise error from e
            except GatewayError as e:
                wait = attempts.again(e)
                if wait is None:
                    raise
            await asyncio.sleep(wait)


async def _each(payloads: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(payloads, AsyncIterable):
        async for payload in payloads:
            yield payload
    else:
        for payload in payloads:
            yield payload
