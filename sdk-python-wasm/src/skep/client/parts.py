"""Answers that come in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from ..v1 import gateway_pb2 as pb
from .errors import GatewayError, Outcome, of_rpc
from .wire import Response

BROKEN = "the stream ended before its answer was whole"


class _Ended:
    def __init__(self, call: Any) -> None:
        self._call = call
        self._whole = False
        #: What the Swarm responded behind the parts, once they are all there; None where the parts are all of it.
        self.response: Response | None = None

    def _take(self, message: Any) -> bytes | None:
        """A part, or None at the end."""
        if message.HasField("part"):
            return bytes(message.part)
        self._whole = True
        if message.end.HasField("response"):
            end = message.end
            trace_id = end.trace_id if end.HasField("trace_id") else None
            self.response = Response(pb.Reply(response=end.response, hops=end.hops, trace_id=trace_id))
        return None

    def _stop(self) -> None:
        if not self._whole:
            raise GatewayError(BROKEN, outcome=Outcome.UNKNOWN)


class Parts(_Ended):
    """Iterate over the parts. A part that is not taken holds up the Bee; :meth:`close`, or leaving a ``with``, cancels the request."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            for message in self._call:
                part = self._take(message)
                if part is not None:
                    return part
        except grpc.RpcError as e:
            raise of_rpc(e) from e
        self._stop()
        raise StopIteration

    def close(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


class AsyncParts(_Ended):
    """As :class:`Parts`, for asyncio."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                part = self._take(message)
                if part is not None:
                    return part
        except grpc.RpcError as e:
            raise of_rpc(e) from e
        self._stop()
        raise StopAsyncIteration

    def close(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> AsyncParts:
        return self

    async def __aexit__(self, *ended: object) -> None:
        self.close()
