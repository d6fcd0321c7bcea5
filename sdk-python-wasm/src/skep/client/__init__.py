"""For programs that call Swarms, and that look after a node."""

from .admin import Admin, Redriven
from .aio import AsyncGateway
from .errors import (
    DeadlineExceeded,
    Failed,
    GatewayError,
    LoginError,
    Outcome,
    Rejected,
    ResourceNotFound,
    SwarmCreationError,
    SwarmDeletionError,
    SwarmNotFound,
    Unavailable,
)
from .gateway import Gateway
from .wire import Response

__all__ = [
    "Admin",
    "AsyncGateway",
    "DeadlineExceeded",
    "Failed",
    "Gateway",
    "GatewayError",
    "LoginError",
    "Outcome",
    "Redriven",
    "Rejected",
    "ResourceNotFound",
    "Response",
    "SwarmCreationError",
    "SwarmDeletionError",
    "SwarmNotFound",
    "Unavailable",
]
