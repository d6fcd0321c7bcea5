"""Sessions of users: events of one user that lie closer together than the gap are one session, told when it is over."""

from dataclasses import dataclass

from skep import Swarm, register_bee


@dataclass
class Event:
    user: str
    page: str
    at: float  # seconds


def close(swarm: Swarm, session):
    swarm.publish({"user": session["user"], "pages": session["pages"], "seconds": session["last"] - session["first"]})


def on_timer(swarm: Swarm, timer):
    """Nothing came for as long as the gap."""
    session = swarm.state.get("session")
    if session is not None:
        close(swarm, session)
        swarm.state.delete("session")


@register_bee(name="sessions", timer=on_timer)
def sessions(swarm: Swarm, event: Event):
    gap = float(swarm.config.get("gap", "30"))
    session = swarm.state.get("session")
    if session is not None and event.at - session["last"] > gap:
        close(swarm, session)
        session = None
    if session is None:
        session = {"user": event.user, "pages": [], "first": event.at, "last": event.at}
    session["pages"].append(event.page)
    session["last"] = max(session["last"], event.at)
    swarm.state["session"] = session
    # Set anew by each event, so that it fires after the last one.
    swarm.timer.set("over", after=gap)


@register_bee(name="keep")
def keep(swarm: Swarm, session):
    """The last session of each user, to be looked at by `skep state sessions-python keep USER`."""
    swarm.state["session"] = session
