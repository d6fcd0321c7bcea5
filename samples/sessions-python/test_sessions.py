from sessions import sessions

from skep import DevSwarm, Message


def event(user, page, at):
    return Message({"user": user, "page": page, "at": at}, key=user, accepted_ms=round(at * 1000))


def test_events_in_a_row_are_one_session():
    swarm = DevSwarm(config={"gap": "10"})
    for one in [event("a", "/", 0), event("b", "/x", 1), event("a", "/cart", 5), event("a", "/late", 40)]:
        swarm.deliver(sessions, one)
    assert swarm.published == [{"user": "a", "pages": ["/", "/cart"], "seconds": 5}]
    # Its timer was set anew at each event.
    assert swarm.fire_until(60_000, sessions) == 2
    assert swarm.published[1:] == [
        {"user": "b", "pages": ["/x"], "seconds": 0},
        {"user": "a", "pages": ["/late"], "seconds": 0},
    ]


def test_what_is_no_event_is_rejected():
    (outcome,) = DevSwarm().outcomes("sessions", [Message({"user": "a"}, key="a")])
    assert outcome.ended == "reject" and "`page` is missing" in outcome.about


def test_the_component_does_the_same(dev_swarm, skep_engine):
    events = [event("a", "/", 0), event("b", "/x", 1), event("a", "/cart", 5), event("a", "/late", 40)]
    assert skep_engine("sessions.py").outcomes("sessions", events) == dev_swarm.outcomes("sessions", events)
