"""Bees that are called by the Open Inference Protocol: the message is the protocol's HTTP body."""

import json
import struct

from skep import Message, Swarm, model, register_bee


def flat(data):
    for value in data:
        if isinstance(value, list):
            yield from flat(value)
        else:
            yield value


@register_bee(name="double")
def double(swarm: Swarm, payload: bytes, context: Message):
    """FP32, twice as much; in binary where the input was, whatever the caller takes: the door writes it as asked."""
    length = int(context.header("inference-header-content-length") or len(payload))
    request, rest = json.loads(payload[:length]), payload[length:]
    outputs, behind = [], b""
    for tensor in request["inputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        output = {"name": f"{tensor['name']}2", "datatype": "FP32", "shape": tensor["shape"]}
        if size is None:
            output["data"] = [2 * value for value in flat(tensor["data"])]
        else:
            raw, rest = rest[:size], rest[size:]
            values = [2 * value for (value,) in struct.iter_unpack("<f", raw)]
            behind += struct.pack(f"<{len(values)}f", *values)
            output["parameters"] = {"binary_data_size": size}
        outputs.append(output)
    swarm.respond(json.dumps({"outputs": outputs}).encode() + behind)


@register_bee(name="label")
def label(swarm: Swarm, payload, context):
    """No word of the protocol in what it answers."""
    swarm.respond({"label": "bee", "inputs": [tensor["name"] for tensor in payload["inputs"]]})


@register_bee(name="angry")
def angry(swarm: Swarm, payload: bytes, context):
    raise ValueError("no such flower")


@register_bee(name="grade")
def grade(swarm: Swarm, payload, context):
    """Asks a model that the manifest grants, or is to grant."""
    answer = model(payload.get("model", "flowers")).predict({"features": payload["features"]})
    swarm.respond({"labels": answer["label"].tolist(), "probabilities": answer["probabilities"].tolist()})
