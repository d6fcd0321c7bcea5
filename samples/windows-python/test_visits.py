import json
from pathlib import Path

from visits import visits

from skep import DevSwarm, Message

TWIN = Path(__file__).parents[1] / "session-windows"


def reports():
    for line in (TWIN / "motion.jsonl").read_text().splitlines():
        motion = json.loads(line)
        yield Message(line.encode(), key=motion["room"], accepted_ms=motion["at"])


def by_room(lines):
    rooms = {}
    for line in lines:
        rooms.setdefault(json.loads(line)["room"], []).append(line)
    return rooms


def test_the_same_visits_as_those_of_the_twin_in_rust():
    swarm = DevSwarm()
    for report in reports():
        swarm.deliver(visits, report)
    swarm.fire_until(1_790_000_000_000, visits)
    said = [emit for emit in swarm.emits if emit.to is None]
    late = [emit for emit in swarm.emits if emit.to == "late"]
    expected = (TWIN / "expected.jsonl").read_text().splitlines()
    assert by_room(emit.data.decode() for emit in said) == by_room(expected)
    assert sorted(emit.key for emit in late) == ["hall", "study"]


def test_a_clock_that_is_days_ahead_closes_nothing():
    ahead = Message({"room": "hall", "at": 1_000_000_000_000, "strength": 1}, key="hall", accepted_ms=0)
    (outcome,) = DevSwarm().outcomes("visits", [ahead])
    assert outcome.ended == "reject" and "ahead of the clock" in outcome.about


def test_the_component_does_the_same(dev_swarm, skep_engine):
    given = list(reports())
    assert skep_engine("visits.py").outcomes("visits", given) == dev_swarm.outcomes("visits", given)
