"""What `ci/bench python` calls: as little as a Bee can do, and the flow that Bytewax runs beside it."""

from skep import Message, Swarm, register_bee


@register_bee(name="echo")
def echo(swarm: Swarm, payload: bytes):
    swarm.respond(payload)


@register_bee(name="pass")
def pass_on(swarm: Swarm, payload: bytes):
    """The trivial Bee of a stream: it looks at each message and keeps none."""


@register_bee(name="pass-batch")
def pass_batch(swarm: Swarm, messages: list[Message[bytes]]):
    for _ in messages:
        pass


@register_bee(name="odd")
def odd(swarm: Swarm, payload: str):
    """map, then filter."""
    doubled = int(payload) * 3
    if doubled % 2:
        swarm.publish(str(doubled))


@register_bee(name="count")
def count(swarm: Swarm, payload: bytes):
    swarm.state["n"] = swarm.state.get("n", 0) + 1
