"""Motion sensors to visits: session windows by room, over event time. The twin of session-windows, which is Rust."""

from dataclasses import dataclass

from skep import Swarm, register_bee
from skep.window import Closed, Windows


def merge(a: dict, b: dict) -> dict:
    return {"moves": a["moves"] + b["moves"], "strongest": max(a["strongest"], b["strongest"])}


# A visit ends when nothing moved for two seconds. Sensors may report up to a second late; one whose clock is a day ahead would close all
# visits of its room, so its reports are rejected.
VISITS = Windows.session(2, of=lambda: {"moves": 0, "strongest": 0.0}, merge=merge, wait=1, ahead=86_400)


@dataclass
class Motion:
    room: str
    at: int  # milliseconds since the Unix epoch
    strength: float


def publish(swarm: Swarm, room: str, closed: list[Closed]):
    for visit in closed:
        swarm.publish({"room": room, "from": visit.start_ms, "to": visit.end_ms, **visit.value}, key=room)


def quiet(swarm: Swarm, timer):
    """Nothing moved in a room for a while."""
    publish(swarm, timer.key, VISITS.on_timer(swarm, timer))


@register_bee(name="visits", timer=quiet)
def visits(swarm: Swarm, motion: Motion, context):
    seen = VISITS.add(swarm, motion.at, lambda visit: merge(visit, {"moves": 1, "strongest": motion.strength}))
    publish(swarm, motion.room, seen.closed)
    if seen.late:
        swarm.publish(context.data, to="late", key=motion.room)


@register_bee(name="log")
def log(swarm: Swarm, payload: bytes):
    """Keeps what it got, in order, under `1`, `2`…"""
    count = swarm.state.get("count", 0) + 1
    swarm.state["count"] = count
    swarm.state.put_bytes(str(count), payload)
