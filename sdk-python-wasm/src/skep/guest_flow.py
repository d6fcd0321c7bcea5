"""The module's side of a flow: what :mod:`skep.guest` is for Bees. Imported only where a component is made."""

from __future__ import annotations

import gc
import sys
from typing import Any

from wit_world.exports.handler import Bee

from . import guest, watch
from .dataflow.graph import Dataflow
from .dataflow.names import stage_names
from .dataflow.node import NodeStage
from .dataflow.plan import plan

#: Objects that are made between two looks for cycles: some batches', of some 100 bytes each.
_NEW_OBJECTS = 50_000
_STAGES: dict[str, NodeStage] = {}


def install(flow: Dataflow) -> None:
    """Makes each stage of a flow a Bee of this module."""
    whole = plan(flow)
    names = stage_names(whole)
    for stage in whole.stages:
        _STAGES[names[stage.name]] = NodeStage(stage, whole, guest._node, guest._ends)


def ready() -> None:
    """As the last thing before the memory is kept."""
    guest.ready()
    # What a batch makes and drops again would be looked through several times meanwhile.
    gc.set_threshold(_NEW_OBJECTS)
    # Its source draws from the generator of `random`.
    guest._node.reseed = guest._node.reseed or "skep.dataflow.connectors.demo" in sys.modules


class Handler(guest.Handler):
    """Bees, of which some are stages."""

    def bees(self) -> Any:
        """All of both kinds."""
        return [*super().bees(), *(Bee(name) for name in _STAGES)]

    def process(self, bee: str, inputs: Any) -> Any:
        """Runs a stage, or a Bee."""
        stage = _STAGES.get(bee)
        if stage is None:
            return super().process(bee, inputs)
        failed = guest.started(inputs)
        if failed is not None:
            return failed
        outcomes = stage.process(inputs)
        watch.stop()
        return outcomes
