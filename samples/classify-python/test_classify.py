from classify import classify, classify_message

from skep import DevSwarm

LINES = ["Claim your free prize", "See you at lunch on Friday", ""]


def test_what_was_never_seen_is_told_apart():
    assert classify(LINES[0])[0] == "spam"
    assert classify(LINES[1])[0] == "ham"


def test_the_caller_is_told_how_sure_it_is():
    swarm = DevSwarm()
    swarm.deliver(classify_message, {"text": LINES[0]})
    assert swarm.responded[0]["label"] == "spam" and swarm.responded[0]["confidence"] > 0.9


def test_the_component_does_the_same(dev_swarm, skep_engine):
    given = [{"text": text} for text in LINES]
    assert skep_engine("classify.py").outcomes("classify", given) == dev_swarm.outcomes("classify", given)
