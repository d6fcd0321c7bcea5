"""Looks after a node: modules, Swarms, logs, dead letters."""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from .._version import VERSION
from ..v1 import beekeeper_pb2 as pb
from ..v1 import models_pb2 as models
from ..v1.beekeeper_pb2_grpc import BeekeeperStub
from ..v1.models_pb2_grpc import ModelsStub
from .errors import GatewayError, Outcome, ResourceNotFound, SwarmCreationError, SwarmDeletionError, SwarmNotFound, of_rpc
from .wire import Target

CHUNK_BYTES = 256 << 10
#: Dead letters in one list, ids in one redrive: what a node takes at most.
PAGE = 1_000


@dataclass(frozen=True)
class Redriven:
    """What became of dead letters that were to come back."""

    redriven: int
    #: Not there: discarded, or back already.
    gone: int
    #: There still, by id, each with the reason.
    left: dict[int, str]


def _some(ids: Iterable[int]) -> Iterator[list[int]]:
    found = iter(ids)
    while some := list(islice(found, PAGE)):
        yield some


def _ms(name: str, at: datetime | None) -> int:
    if at is None:
        return 0
    if at.tzinfo is None:
        raise ValueError(f"`{name}` has no time zone: write `datetime.now(timezone.utc)` or `.astimezone()`")
    return max(round(at.timestamp() * 1000), 0)


class Admin:
    """The Beekeeper of a node::

        admin = Admin()
        admin.push("hello.py")
        admin.apply("swarm.yaml")

    What comes back are the messages of ``proto/skep/v1/beekeeper.proto`` and ``models.proto``.
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
        self._models: Any = ModelsStub(self._channel)  # type: ignore[no-untyped-call]
        self._compared = False

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def push(self, file: str | Path, *, name: str | None = None, tag: str = "", signature: str = "") -> Any:
        """Uploads a component, or builds one of a ``.py`` file and uploads that. ``signature``: what ``skep signer sign`` printed."""
        path = Path(file)
        if path.suffix == ".py":
            from ..tool.build import build

            with tempfile.TemporaryDirectory() as room:
                made = Path(room) / "bee.wasm"
                build(path, made, quiet=True)
                data = made.read_bytes()
        else:
            data = path.read_bytes()
        return self.push_bytes(name or re.sub(r"[^a-z0-9-]+", "-", path.stem.lower()), data, tag=tag, signature=signature)

    def push_bytes(self, name: str, data: bytes, *, tag: str = "", signature: str = "") -> Any:
        def parts() -> Iterator[pb.PushModuleRequest]:
            digest = hashlib.sha256(data).hexdigest()
            header = pb.PushHeader(name=name, tag=tag, digest=digest, size=len(data), signature=signature)
            yield pb.PushModuleRequest(header=header)
            for at in range(0, len(data), CHUNK_BYTES):
                yield pb.PushModuleRequest(chunk=data[at : at + CHUNK_BYTES])

        self._compare_versions()
        return self._call(self._stub.PushModule, parts(), None)

    def _compare_versions(self) -> None:
        """Warns, once, where this package and the node are not of one release: what one knows the other may not."""
        if self._compared:
            return
        self._compared = True
        try:
            theirs = str(self._stub.Node(pb.NodeRequest(), metadata=self.target.metadata, timeout=5).version)
        except grpc.RpcError:
            return  # The call itself will say what is wrong.
        if theirs.split(".")[:2] != VERSION.split(".")[:2]:
            warnings.warn(
                f"this `skep` package is {VERSION}, the node at {self.target.url} is {theirs}: install the package of the node's own release",
                stacklevel=3,
            )

    def modules(self) -> list[Any]:
        return list(self._call(self._stub.ListModules, pb.ListModulesRequest(), None).modules)

    def delete_module(self, name: str, tag: str = "") -> list[str]:
        request = pb.DeleteModuleRequest(name=name, tag=tag)
        return list(self._call(self._stub.DeleteModule, request, ResourceNotFound).removed_tags)

    def push_model(self, file: str | Path | bytes, *, name: str | None = None, tag: str = "") -> Any:
        """Uploads an ONNX model: its file, or its bytes with a ``name``. The node looks at it, loads it and runs it once, and keeps it only then.

        Returns a ``PushModelReply``: ``version`` says its digest, inputs and outputs.
        """
        if isinstance(file, bytes):
            if name is None:
                raise ValueError("bytes have no name: say `name=`")
            data = file
        else:
            path = Path(file)
            name, data = name or re.sub(r"[^a-z0-9-]+", "-", path.stem.lower()), path.read_bytes()

        def parts() -> Iterator[models.PushModelRequest]:
            header = models.ModelHeader(name=name, tag=tag, digest=hashlib.sha256(data).hexdigest(), size=len(data))
            yield models.PushModelRequest(header=header)
            for at in range(0, len(data), CHUNK_BYTES):
                yield models.PushModelRequest(chunk=data[at : at + CHUNK_BYTES])

        self._compare_versions()
        return self._call(self._models.PushModel, parts(), None)

    def models(self, name: str = "") -> list[Any]:
        """All models with their versions, or those of one name."""
        return list(self._call(self._models.ListModels, models.ListModelsRequest(name=name), ResourceNotFound).models)

    def tag_model(self, name: str, version: str, tag: str) -> str:
        """Makes ``tag`` mean another version, a tag or a digest; calls under way end on theirs. Returns the digest that it meant before, if any."""
        request = models.TagModelRequest(name=name, version=version, tag=tag)
        return str(self._call(self._models.TagModel, request, ResourceNotFound).replaced)

    def delete_model(self, name: str, tag: str = "", *, force: bool = False) -> list[str]:
        """Removes a tag with what only it named, or all of a model. Refused while a Swarm is granted what would go, unless ``force``."""
        request = models.DeleteModelRequest(name=name, tag=tag, force=force)
        return list(self._call(self._models.DeleteModel, request, ResourceNotFound).removed)

    def apply(
        self,
        manifest: str | Path,
        *,
        dry_run: bool = False,
        discard_state: bool = False,
        rescale: bool = False,
        grant: bool | Sequence[str] = False,
    ) -> Any:
        """Makes a Swarm as a manifest says: its YAML, or the path of its file.

        ``grant`` lets Bees of a Swarm that is there have what they had not: all of it, or what is listed (``http:HOST``, ``secret:NAME``)."""
        self._compare_versions()
        text = manifest if isinstance(manifest, str) and "\n" in manifest else Path(manifest).read_text()
        request = pb.ApplySwarmRequest(manifest=text, dry_run=dry_run, discard_state=discard_state, rescale=rescale)
        if isinstance(grant, bool):
            request.grant_all = grant
        else:
            request.grant.extend(grant)
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

    def dead_letters(
        self,
        swarm: str,
        stage: str = "",
        *,
        reason: str = "",
        key: str | None = None,
        module: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> list[Any]:
        """Those that fit all that is given, by rising id; all of them, unless ``limit`` says how many.

        ``module`` is a digest, or how it begins; ``since`` and ``until`` are times with a zone, when they were set aside.
        """
        found: list[Any] = []
        for letter in self._letters(swarm, stage, reason, key, module, since, until, after, limit, brief=False):
            found.append(letter)
            if limit is not None and len(found) >= limit:
                break
        return found

    def _letters(
        self,
        swarm: str,
        stage: str,
        reason: str,
        key: str | None,
        module: str,
        since: datetime | None,
        until: datetime | None,
        after: int,
        limit: int | None,
        *,
        brief: bool,
    ) -> Iterator[Any]:
        if limit is not None and limit < 1:
            raise ValueError(f"`limit` is {limit}: ask for one at least, or leave it out")
        request = pb.ListDeadLettersRequest(
            swarm=swarm,
            stage=stage,
            after=after,
            limit=min(limit or PAGE, PAGE),
            reason=reason,
            key=key,
            module=module,
            since_ms=_ms("since", since),
            until_ms=_ms("until", until),
            brief=brief,
        )
        while True:
            reply = self._call(self._stub.ListDeadLetters, request, SwarmNotFound)
            yield from reply.letters
            if not reply.next:
                return
            request.after = reply.next

    def discard(self, swarm: str, ids: Iterable[int]) -> int:
        """Drops dead letters for good. Returns how many there were."""
        discarded = 0
        for some in _some(ids):
            request = pb.DiscardDeadLettersRequest(swarm=swarm, ids=some)
            discarded += self._call(self._stub.DiscardDeadLetters, request, SwarmNotFound).discarded
        return discarded

    def redrive(self, swarm: str, ids: Iterable[int], *, patience: float = 60.0) -> Redriven:
        """Puts dead letters back before their Bees, each once, however often it is asked for::

            admin.redrive("orders", (letter.id for letter in admin.dead_letters("orders", reason="timeout")))

        Where an inbox is full or changes, it waits for room, ``patience`` seconds long without any progress.
        """
        redriven, gone = 0, 0
        left: dict[int, str] = {}
        ends = time.monotonic() + patience
        waiting = list(_some(ids))
        while waiting:
            some = waiting.pop(0)
            request = pb.RedriveDeadLettersRequest(swarm=swarm, ids=some)
            reply = self._call(self._stub.RedriveDeadLetters, request, SwarmNotFound)
            redriven, gone = redriven + reply.redriven, gone + reply.gone
            if reply.redriven:
                ends = time.monotonic() + patience
            over = time.monotonic() >= ends
            left.update((letter.id, letter.why) for letter in reply.left if over or not letter.later)
            later = [letter.id for letter in reply.left if letter.later]
            if later and not over:
                time.sleep(0.2)
                waiting.insert(0, later)
        return Redriven(redriven, gone, left)

    def try_letter(self, swarm: str, id: int, *, module: str = "") -> Any:
        """Runs the Bee on a dead letter, or another version of it (``module="orders:next"``), and tells what it would do. Nothing of that
        happens."""
        request = pb.TryDeadLetterRequest(swarm=swarm, id=id, module=module)
        return self._call(self._stub.TryDeadLetter, request, ResourceNotFound)

    def pause(self, swarm: str, stage: str = "", *, drain: float | None = None) -> list[str]:
        """Stops a Swarm, or a stage of it, from reading; what is submitted waits. Returns the stages that do not read now.

        With ``drain`` a whole Swarm first works off what it has, its doors closed, so many seconds long. One that does not get done drains on
        behind closed doors, and that is a `TimeoutError`.
        """
        if drain is not None:
            if stage:
                raise ValueError(f"a whole Swarm can be drained: `{stage}` is a stage, which is paused without")
            self._hold(swarm, "", pb.HoldSwarmRequest.HOLD_DRAINING)
            ends = time.monotonic() + drain
            while self._busy(swarm):
                if time.monotonic() >= ends:
                    raise TimeoutError(f"`{swarm}` is not drained after {drain:g} s: it drains on; pause it as it is, or resume it")
                time.sleep(0.1)
        return self._hold(swarm, stage, pb.HoldSwarmRequest.HOLD_PAUSED)

    def resume(self, swarm: str, stage: str = "") -> list[str]:
        """Lets a Swarm, or a stage of it, go on. Returns the stages that do not read now."""
        return self._hold(swarm, stage, pb.HoldSwarmRequest.HOLD_NONE)

    def _hold(self, swarm: str, stage: str, hold: Any) -> list[str]:
        request = pb.HoldSwarmRequest(swarm=swarm, stage=stage, hold=hold)
        return list(self._call(self._stub.HoldSwarm, request, SwarmNotFound).paused)

    def _busy(self, swarm: str) -> bool:
        return any(stage.unread or stage.parked for stage in self.describe(swarm).stages)

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
