"""What a call may end with: a class by what to do, an outcome by what was done, and gRPC's own error as the cause."""

from __future__ import annotations

import enum
from typing import Any

import grpc


class Outcome(enum.Enum):
    DONE = "done"
    #: A retry is safe.
    NOT_DONE = "not-done"
    #: Perhaps done: a retry is safe with the same idempotency key only.
    UNKNOWN = "unknown"


class GatewayError(Exception):
    """A call that failed. ``__cause__`` is gRPC's error, where there is one."""

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        dead_letter: int | None = None,
        retry_after: float | None = None,
        passing: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.outcome = outcome
        self.code = code
        #: A short stable word: `fail`, `reject`, `cpu-time`…
        self.reason = reason
        #: Where the message lies, if it was set aside.
        self.dead_letter = dead_letter
        #: Seconds, the node's hint.
        self.retry_after = retry_after
        #: Another attempt may find it otherwise.
        self.passing = passing


class LoginError(GatewayError):
    """The node does not know the caller, or does not let it do this."""


class Unavailable(GatewayError):
    """No node answers, or it has no room now."""


class SwarmNotFound(GatewayError):
    """No Swarm is called by this subject, or has this name."""


class SwarmCreationError(GatewayError):
    """The manifest is not acceptable, or what is there forbids the change."""


class SwarmDeletionError(GatewayError):
    """The Swarm was not deleted, and serves on."""


class ResourceNotFound(GatewayError):
    """A module, stage, dead letter… that is not there."""


class Rejected(GatewayError):
    """A Bee rejected the message."""


class Failed(GatewayError):
    """A Bee failed with the message after all attempts."""


class DeadlineExceeded(GatewayError):
    """The deadline passed before the answer came."""


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
#: Where nobody listened, so that nothing was sent.
_NEVER_SENT = ("Connection refused", "failed to connect", "DNS resolution failed", "Name or service not known")


def kind(code: grpc.StatusCode, outcome: Outcome, of: type[GatewayError] | None) -> type[GatewayError]:
    """The class. ``of`` is what the operation itself calls a refusal."""
    status = grpc.StatusCode
    if code in (status.UNAUTHENTICATED, status.PERMISSION_DENIED):
        return LoginError
    if code in _PASSING:
        return Unavailable
    if code is status.DEADLINE_EXCEEDED:
        return DeadlineExceeded
    if code in (status.NOT_FOUND, status.UNIMPLEMENTED):
        return of if of is not None and issubclass(of, (SwarmNotFound, ResourceNotFound)) else SwarmNotFound if of is None else of
    if of is not None and not issubclass(of, (SwarmNotFound, ResourceNotFound)):
        return of
    if code is status.INVALID_ARGUMENT and outcome is Outcome.DONE:
        return Rejected
    if code is status.FAILED_PRECONDITION:
        return Failed
    return GatewayError


def of_rpc(error: grpc.RpcError, of: type[GatewayError] | None = None) -> GatewayError:
    """gRPC's error as one of ours. Raise it ``from error``."""
    call: Any = error
    code = call.code()
    pairs = list(call.trailing_metadata() or ()) + list(call.initial_metadata() or ())
    said = {key: value for key, value in reversed(pairs) if isinstance(value, str)}
    details = call.details() or str(code)
    outcome = said.get("skep-outcome")
    if outcome in ("done", "not-done"):
        known = Outcome(outcome)
    elif outcome is not None:
        known = Outcome.UNKNOWN
    elif code in _REFUSED or any(text in details for text in _NEVER_SENT):
        known = Outcome.NOT_DONE
    else:
        known = Outcome.UNKNOWN
        # A connection that ends shows as any of several codes; the node's own come with an outcome.
        if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED):
            code = grpc.StatusCode.UNAVAILABLE
    pushback = said.get("grpc-retry-pushback-ms")
    after = float(pushback) / 1000 if pushback and pushback.isdigit() else None
    letter = said.get("skep-dead-letter")
    return kind(code, known, of)(
        details,
        outcome=known,
        code=code,
        reason=said.get("skep-reason", ""),
        dead_letter=int(letter) if letter and letter.isdigit() else None,
        retry_after=after,
        # A hint that is no number says: do not.
        passing=code in _PASSING and (pushback is None or pushback.isdigit()),
    )


def of_failure(failure: Any) -> GatewayError:
    """A failure in a stream's reply."""
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    outcome = {1: Outcome.DONE, 2: Outcome.NOT_DONE}.get(failure.outcome, Outcome.UNKNOWN)
    return kind(code, outcome, None)(
        failure.message,
        outcome=outcome,
        code=code,
        reason=failure.reason,
        dead_letter=failure.dead_letter if failure.HasField("dead_letter") else None,
        retry_after=failure.retry_after_ms / 1000 if failure.retry_after_ms else None,
        passing=code in _PASSING,
    )
