from chat import chat

from skep import DevSwarm


def test_the_words_are_parts_and_the_count_is_the_response():
    swarm = DevSwarm()
    chat(swarm, {"prompt": "Where is the honey?"}, None)
    assert b"".join(swarm.parts) == b"You ask of honey: ask the queen, she knows."
    assert swarm.responded == [{"tokens": len(swarm.parts)}]
