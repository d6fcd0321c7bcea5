"""What `ci/bench python` calls: as little as a Bee can do, and the flow that Bytewax runs beside it."""

from array import array

from skep import Message, Swarm, Tensor, model, register_bee

digits = model("digits")


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


# What one inference costs inside a Bee: the payload's first four bytes say how often to ask, the rest is FP32 rows of 784.


@register_bee(name="infer")
def infer(swarm: Swarm, payload: bytes):
    data = payload[4:]
    labels = []
    for _ in range(int.from_bytes(payload[:4], "little")):
        answer = digits.predict({"image": Tensor(data, (len(data) // 3136, 784), "FP32")})
        labels = answer["label"].tolist()
    swarm.respond(str(labels).encode())


@register_bee(name="infer-lists")
def infer_lists(swarm: Swarm, payload: bytes):
    values = array("f", payload[4:]).tolist()
    rows = [values[at : at + 784] for at in range(0, len(values), 784)]
    labels = []
    for _ in range(int.from_bytes(payload[:4], "little")):
        labels = digits.predict(rows)["label"].tolist()
    swarm.respond(str(labels).encode())


@register_bee(name="infer-array")
def infer_array(swarm: Swarm, payload: bytes):
    values = array("f", payload[4:])
    labels = []
    for _ in range(int.from_bytes(payload[:4], "little")):
        labels = digits.predict(values)["label"].tolist()
    swarm.respond(str(labels).encode())
