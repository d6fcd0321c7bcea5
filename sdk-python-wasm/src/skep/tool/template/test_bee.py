import pytest
from {{file}} import {{file}}

from skep import DevSwarm, Reject


def test_a_name_is_greeted():
    swarm = DevSwarm()
    {{file}}(swarm, {"name": "Bee"}, None)
    assert swarm.responded == [{"message": "Hello Bee"}]


def test_what_has_no_name_is_rejected():
    with pytest.raises(Reject):
        {{file}}(DevSwarm(), {}, None)
