"""Bees in Python for skep.

A Bee is a function that a node calls for each message::

    from skep import Swarm, register_bee

    @register_bee(name="hello")
    def hello(swarm: Swarm, payload, context):
        swarm.publish({"greeting": f"Hello {payload['name']}"}, context=context)

In a test, :class:`DevSwarm` stands for the node. ``skep-py build`` makes the file a WebAssembly component. :class:`Gateway` calls Swarms
from other programs; it is imported when it is asked for, so that a Bee carries none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import VERSION as __version__
from .dev import DevSwarm
from .errors import BeeError, CallerGone, Reject, Retry
from .message import Emit, Message, Timer
from .models import BadInput, Model, ModelBusy, ModelError, Tensor, model
from .payload import Text
from .registry import on_start, register_bee
from .swarm import Config, State, Swarm, Timers

if TYPE_CHECKING:
    from .client import (
        Admin as Admin,
        AsyncGateway as AsyncGateway,
        Gateway as Gateway,
        GatewayError as GatewayError,
        LoginError as LoginError,
        ResourceNotFound as ResourceNotFound,
        Response as Response,
        SwarmCreationError as SwarmCreationError,
        SwarmDeletionError as SwarmDeletionError,
        SwarmNotFound as SwarmNotFound,
        Unavailable as Unavailable,
    )

_CLIENT = frozenset(
    {
        "Admin",
        "AsyncGateway",
        "Gateway",
        "GatewayError",
        "LoginError",
        "ResourceNotFound",
        "Response",
        "SwarmCreationError",
        "SwarmDeletionError",
        "SwarmNotFound",
        "Unavailable",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _CLIENT:
        raise AttributeError(f"module 'skep' has no attribute {name!r}")
    try:
        from . import client
    except ImportError as e:
        raise ImportError(
            f"skep.{name} is for programs that call Swarms, and cannot be had here ({e}): a Bee has no network; "
            "publish or respond instead, or install grpcio where this is no Bee"
        ) from e
    return getattr(client, name)


# Without the client's names: `from skep import *` stands in Bees too.
__all__ = [
    "BadInput",
    "BeeError",
    "CallerGone",
    "Config",
    "DevSwarm",
    "Emit",
    "Message",
    "Model",
    "ModelBusy",
    "ModelError",
    "Reject",
    "Retry",
    "State",
    "Swarm",
    "Tensor",
    "Text",
    "Timer",
    "Timers",
    "__version__",
    "model",
    "on_start",
    "register_bee",
]
