import pytest
from hello import goodbye, hello

from skep import DevSwarm, Reject


def test_a_name_is_greeted():
    swarm = DevSwarm()
    hello(swarm, {"name": "Bee"}, None)
    assert swarm.published == [{"greeting": "Hello Bee"}]
    goodbye(swarm, swarm.published[0], None)
    assert swarm.responded == [{"message": "Hello Bee, and goodbye!"}]


def test_what_has_no_name_is_rejected():
    with pytest.raises(Reject, match="no `name`"):
        hello(DevSwarm(), {}, None)


def test_the_component_does_the_same(dev_swarm, skep_engine):
    component = skep_engine("hello.py")
    names = [{"name": "Bee"}, {}, {"name": "ü"}, b"{", b"\xff"]
    assert component.outcomes("hello", names) == dev_swarm.outcomes("hello", names)
