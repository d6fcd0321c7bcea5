"""Looks after a node: modules, Swarms, logs, dead letters."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from ..v1 import beekeeper_pb2 as pb
from ..v1.beekeeper_pb2_grpc import BeekeeperStub
from .errors import GatewayError, Outcome, ResourceNotFound, SwarmCreationError, SwarmDeletionError, SwarmNotFound, of_rpc
from .wire import Target

CHUNK_BYTES = 256 << 10


class Admin:
    """The Beekeeper of a node::

        admin = Admin()
        admin.push("hello.py")
        admin.apply("swarm.yaml")

    What comes back are the messages of ``proto/skep/v1/beekeeper.proto``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.target = Target(url, token, ca, options)
        if self.target.secure:
            self._channel = grpc.secure_channel(self.target.address, self.target.credentials(), self.target.options)
        else:
            self._channel = grpc.insecure_channel(self.target.address, self.target.options)
        self._stub: Any = BeekeeperStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def push(self, file: str | Path, *, name: str | None = None, tag: str = "") -> Any:
        """Uploads a component, or builds one of a ``.py`` file and uploads that."""
        path = Path(file)
        if path.suffix == ".py":
            from ..tool.build import build

            with tempfile.TemporaryDirectory() as room:
                made = Path(room) / "bee.wasm"
                build(path, made, quiet=True)
                data = made.read_bytes()
        else:
            data = path.read_bytes()
        return self.push_bytes(name or re.sub(r"[^a-z0-9-]+", "-", path.stem.lower()), data, tag=tag)

    def push_bytes(self, name: str, data: bytes, *, tag: str = "") -> Any:
        def parts() -> Iterator[pb.PushModuleRequest]:
            header = pb.PushHeader(name=name, tag=tag, digest=hashlib.sha256(data).hexdigest(), size=len(data))
            yield pb.PushModuleRequest(header=header)
            for at in range(0, len(data), CHUNK_BYTES):
                yield pb.PushModuleRequest(chunk=data[at : at + CHUNK_BYTES])

        return self._call(self._stub.PushModule, parts(), None)

    def modules(self) -> list[Any]:
        return list(self._call(self._stub.ListModules, pb.ListModulesRequest(), None).modules)

    def delete_module(self, name: str, tag: str = "") -> list[str]:
        request = pb.DeleteModuleRequest(name=name, tag=tag)
        return list(self._call(self._stub.DeleteModule, request, ResourceNotFound).removed_tags)

    def apply(
        self, manifest: str | Path, *, dry_run: bool = False, discard_state: bool = False, rescale: bool = False
    ) -> Any:
        """Makes a Swarm as a manifest says: its YAML, or the path of its file."""
        text = manifest if isinstance(manifest, str) and "\n" in manifest else Path(manifest).read_text()
        request = pb.ApplySwarmRequest(manifest=text, dry_run=dry_run, discard_state=discard_state, rescale=rescale)
        return self._call(self._stub.ApplySwarm, request, SwarmCreationError)

    def swarms(self) -> list[Any]:
        return list(self._call(self._stub.ListSwarms, pb.ListSwarmsRequest(), None).swarms)

    def describe(self, swarm: str) -> Any:
        return self._call(self._stub.DescribeSwarm, pb.DescribeSwarmRequest(name=swarm), SwarmNotFound)

    def delete(self, swarm: str, *, discard: bool = False, timeout: float = 30.0) -> None:
        """Drains and removes a Swarm. One that keeps something is not deleted without ``discard``."""
        request = pb.DeleteSwarmRequest(name=swarm, timeout_ms=round(timeout * 1000), discard=discard)
        last = None
        try:
            for last in self._stub.DeleteSwarm(request, metadata=self.target.metadata):
                pass
        except grpc.RpcError as e:
            missing = e.code() is grpc.StatusCode.NOT_FOUND
            raise of_rpc(e, SwarmNotFound if missing else SwarmDeletionError) from e
        if last is None or not last.done:
            why = last.note if last is not None else "the node said nothing"
            raise SwarmDeletionError(f"`{swarm}` was not deleted and serves on: {why}", outcome=Outcome.NOT_DONE)

    def logs(self, swarm: str, stage: str = "", *, follow: bool = False, tail: int = 0) -> Iterator[Any]:
        """The kept log lines; with ``follow`` new ones as they come."""
        request = pb.LogsRequest(swarm=swarm, stage=stage, follow=follow, tail=tail)
        stream = self._stub.Logs(request, metadata=self.target.metadata)
        try:
            yield from stream
        except grpc.RpcError as e:
            raise of_rpc(e, SwarmNotFound) from e
        finally:
            stream.cancel()

    def dead_letters(self, swarm: str, stage: str = "", *, limit: int = 0) -> list[Any]:
        request = pb.ListDeadLettersRequest(swarm=swarm, stage=stage, limit=limit)
        return list(self._call(self._stub.ListDeadLetters, request, SwarmNotFound).letters)

    def state(self, swarm: str, stage: str, key: str) -> dict[str, bytes]:
        """One key's state of a stage."""
        found: dict[str, bytes] = {}
        after = ""
        while True:
            request = pb.GetStateRequest(swarm=swarm, stage=stage, key=key, after=after)
            reply = self._call(self._stub.GetState, request, ResourceNotFound)
            found.update((value.name, value.value) for value in reply.values)
            if not reply.more or not reply.values:
                return found
            after = reply.values[-1].name

    def node(self) -> Any:
        return self._call(self._stub.Node, pb.NodeRequest(), None)

    def _call(self, method: Any, request: Any, of: type[GatewayError] | None) -> Any:
        try:
            return method(request, metadata=self.target.metadata)
        except grpc.RpcError as e:
            raise of_rpc(e, of or ResourceNotFound) from e
