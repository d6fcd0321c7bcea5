"""The Bee as a plain function, with a function or the real model in the model's place; and the Swarm on a node."""

import json
from pathlib import Path

import pytest
from features import COUNTRIES_MAX, RECENT_MAX, TYPICAL, USUAL, features, new_profile, updated
from fraud import score

from skep import DevSwarm, Gateway, Message
from skep.client import Rejected

HERE = Path(__file__).parent
NOON = 1_700_049_600
WRONG = [
    {"card": "w"},
    {"card": "w", "amount": -1, "country": "FR", "at": NOON},
    {"card": "w", "amount": 1e10, "country": "FR", "at": NOON},
    {"card": "w", "amount": "1", "country": "FR", "at": NOON},
    {"card": "w", "amount": 1, "country": "France", "at": NOON},
    {"card": "w", "amount": 1, "country": "FR", "at": -1},
    {"card": "w", "amount": 1, "country": "FR", "at": 2**63},
    {"card": "w", "amount": 1, "country": "FR", "at": 0.5},
    b'{"card": "w", "amount": 1e999, "country": "FR", "at": 1}',
]


def lines(name):
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def message(payment):
    return Message(payment, key=payment["card"])


def told(profile, amount, country, at):
    return dict(zip(USUAL, features(profile, amount, country, at), strict=True))


def test_a_payment_is_told_by_how_it_differs():
    new = told(new_profile(), TYPICAL, "FR", NOON)
    assert new == {**USUAL, "known": 0.0}
    profile = updated(new_profile(), TYPICAL, "FR", NOON)
    soon = told(profile, TYPICAL, "BR", NOON + 60)
    assert (soon["recent"], soon["abroad"], soon["known"]) == (1.0, 1.0, 1.0) and soon["gap"] < new["gap"]
    assert told(profile, TYPICAL, "FR", NOON + 3_600)["recent"] == 0.0
    assert told(profile, TYPICAL, "FR", NOON + 15 * 3_600)["night"] == 1.0
    # One that comes late counts as at once, and changes no time.
    assert told(profile, TYPICAL, "FR", NOON - 60)["gap"] == 0.0
    assert updated(profile, TYPICAL, "FR", NOON - 60)["last"] == NOON
    assert told(profile, 0.0, "FR", NOON)["times"] < 0.0


def test_one_large_payment_does_not_become_the_habit_and_a_profile_stays_small():
    assert updated(new_profile(), 1e9, "FR", NOON)["usual"] == pytest.approx(1.2 * TYPICAL)
    profile = new_profile()
    for at in range(1_000):
        profile = updated(profile, 0.0, f"{at:04}", NOON + at)
    assert (len(profile["recent"]), len(profile["countries"])) == (RECENT_MAX, COUNTRIES_MAX)
    assert profile["usual"] == 1.0 and all(abs(number) < 1e3 for number in features(profile, 1e9, "FR", NOON))


def by_country(inputs):
    """Instead of the model: whoever pays abroad is a thief."""
    at = list(USUAL).index("abroad")
    return {"probabilities": [[1.0 - row[at], row[at]] for row in inputs["features"].tolist()]}


def test_it_says_what_a_payment_was_suspected_for():
    swarm = DevSwarm(models={"fraud": by_country})
    for country in ("FR", "FR", "BR", "BR"):
        swarm.deliver(score, message({"card": "c", "amount": 20, "country": country, "at": NOON}))
    assert [answer["score"] for answer in swarm.responded] == [0.0, 0.0, 1.0, 0.0]
    assert swarm.responded[2]["why"] == ["BR, where the card was never used"] and swarm.responded[3]["why"] == []
    assert swarm.stored("c", "profile")["payments"] == 4


def test_what_is_no_payment_is_rejected_and_changes_no_profile():
    swarm = DevSwarm(models={"fraud": by_country})
    outcomes = swarm.outcomes("score", [Message(wrong, key="w") for wrong in WRONG])
    assert {outcome.ended for outcome in outcomes} == {"reject"}
    assert swarm.stored("w", "profile") is None


def test_a_model_that_is_not_granted_fails_the_message():
    (outcome,) = DevSwarm().outcomes("score", [message(lines("payments.jsonl")[0])])
    assert (outcome.ended, outcome.about) == ("fail", "ModelError")


def test_the_model_in_onnxruntime_gives_what_is_expected():
    pytest.importorskip("onnxruntime")
    swarm = DevSwarm(models={"fraud": HERE.parent / "models" / "fraud.onnx"})
    for payment in lines("payments.jsonl"):
        swarm.deliver(score, message(payment))
    assert swarm.responded == lines("expected.jsonl")


def test_the_component_with_the_model_gives_what_is_expected(skep_engine):
    engine = skep_engine("fraud.py")
    payments = [message(payment) for payment in lines("payments.jsonl")]
    outcomes = engine.outcomes("score", payments, models={"fraud": HERE.parent / "models" / "fraud.onnx"})
    assert [json.loads(answer) for outcome in outcomes for answer in outcome.respond] == lines("expected.jsonl")
    # What is not granted, and what is no model.
    (outcome,) = engine.outcomes("score", payments[:1], models={"other": HERE.parent / "models" / "fraud.onnx"})
    assert outcome.ended == "fail" and "not granted" in outcome.detail
    for wrong, says in [({"fraud": HERE / "none.onnx"}, "none.onnx"), ({"fraud": HERE / "fraud.py"}, "no ONNX model"), ({"": "x"}, "NAME=FILE")]:
        with pytest.raises(RuntimeError, match=says):
            engine.outcomes("score", payments[:1], models=wrong)


def test_the_swarm_answers_as_expected(skep_node):
    skep_node.skep("model", "push", "../models/fraud.onnx")
    skep_node.skep("up", ".", "--once", "--node", skep_node.url)
    with Gateway(skep_node.url) as gateway:
        # After bad ones of the same cards, which must leave no trace.
        for wrong in WRONG:
            with pytest.raises(Rejected, match="stage `score` failed"):
                gateway.request("payments", wrong.replace(b'"w"', b'"1111"') if isinstance(wrong, bytes) else {**wrong, "card": "1111"})
        for payment, answer in zip(lines("payments.jsonl"), lines("expected.jsonl"), strict=True):
            assert gateway.request("payments", payment).payload == answer
