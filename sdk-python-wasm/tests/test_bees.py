"""Bees as plain functions, and as a node calls them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Optional

import pytest

from skep import DevSwarm, Message, Reject, Retry, Swarm, Text, Timer, register_bee


LOOP: list[object] = []
LOOP.append(LOOP)


@dataclass
class Line:
    text: str
    weight: float = 1.0


@dataclass
class Order:
    id: int
    lines: list[Line]
    note: Optional[str] = None
    tags: dict[str, int] = field(default_factory=dict)


class Model:
    """Validates itself, as pydantic's models do."""

    def __init__(self, n):
        self.n = n

    @classmethod
    def model_validate(cls, value):
        if "n" not in value:
            raise ValueError("n: field required")
        return cls(value["n"])

    def model_dump(self):
        return {"n": self.n}


def test_a_bee_is_a_plain_function_and_what_it_did_is_recorded():
    @register_bee(name="hello")
    def hello(swarm: Swarm, payload, context):
        swarm.publish({"greeting": f"Hello {payload['name']}"}, context=context, key="k", headers={"a": "b"})
        swarm.respond("done", context=context)

    # As the ancestor's users wrote their tests: any context will do.
    for context in ({}, None, Message()):
        swarm = DevSwarm()
        hello(swarm, {"name": "Bee"}, context)
        assert swarm.published == [{"greeting": "Hello Bee"}]
        assert swarm.responded == ["done"]
    assert (swarm.emits[0].key, swarm.emits[0].headers, swarm.emits[0].data) == ("k", [("a", "b")], b'{"greeting":"Hello Bee"}')
    assert swarm.responses == [b'"done"']


def test_an_exception_fails_its_message_and_no_other():
    @register_bee(name="hello")
    def hello(swarm, payload, context):
        swarm.publish(payload)
        swarm.state["seen"] = payload
        if payload == "bad":
            raise KeyError("nothing")
        if payload == "no":
            swarm.reject("not today")
        if payload == "later":
            swarm.retry(after=1.5)

    swarm = DevSwarm()
    ended = swarm.run("hello", [Message(text, key=text) for text in ("a", "bad", "no", "later", "b")])
    assert [type(e) for e in ended] == [type(None), KeyError, Reject, Retry, type(None)]
    assert swarm.published == ["a", "b"]
    assert (swarm.stored("a", "seen"), swarm.stored("bad", "seen"), swarm.stored("no", "seen")) == ("a", None, None)
    (outcome,) = swarm.outcomes("hello", [Message("bad", key="x")])
    assert outcome.about == "KeyError"
    first, *_ = outcome.detail.splitlines()
    assert first.startswith("KeyError: 'nothing' (") and "test_bees.py:" in first and first.endswith("in hello)")
    assert "Traceback (most recent call last):" in outcome.detail
    with pytest.raises(KeyError):
        swarm.deliver("hello", Message("bad", key="x"))
    assert swarm.outcomes("none", [1])[0].about == "unknown-bee"


@pytest.mark.parametrize("code", [3, "bye", None])
def test_sys_exit_is_a_failure_like_any_other(code):
    @register_bee(name="leaver")
    def leaver(swarm, payload, context):
        raise SystemExit(code)

    (outcome,) = DevSwarm().outcomes("leaver", [1])
    assert outcome.ended == "fail" and f"exit status {code}" in outcome.detail


def test_payloads_are_what_the_parameter_says():
    seen = []

    def take(name, hint):
        def bee(swarm, payload, context=None):
            seen.append(payload)

        bee.__annotations__["payload"] = hint
        bee.__qualname__ = name
        register_bee(name=name)(bee)

    take("raw", bytes)
    take("text", str)
    take("order", Order)
    take("json", dict)
    swarm = DevSwarm()
    swarm.deliver("raw", b"\xff\x00")
    swarm.deliver("text", "ü".encode())
    swarm.deliver("order", b'{"id": 1, "lines": [{"text": "a", "weight": 2}], "unknown": 1}')
    swarm.deliver("json", {"a": [1, None, "x"]})
    assert seen == [b"\xff\x00", "ü", Order(1, [Line("a", 2.0)]), {"a": [1, None, "x"]}]
    for bee, payload, why in [
        ("json", b"\xff", "not UTF-8"),
        ("text", b"\xff", "not UTF-8"),
        ("json", b"NaN", "NaN is no JSON"),
        ("json", b'{"a": Infinity}', "Infinity is no JSON"),
        ("json", b"{", "not JSON"),
        ("json", b"", "not JSON"),
        ("json", b"[" * 100_000, "nested too deeply"),
        ("order", b"[]", "not an object"),
        ("order", b'{"lines": []}', "`id` is missing"),
        ("order", b'{"id": "1", "lines": []}', "`id` is a string, not int"),
        ("order", b'{"id": true, "lines": []}', "`id` is a boolean, not int"),
        ("order", b'{"id": 1, "lines": [{"text": 1}]}', "`lines[0].text` is a number, not str"),
    ]:
        with pytest.raises(Reject) as refused:
            swarm.deliver(bee, payload)
        assert why in str(refused.value), refused.value
        # The Bee, its file and line are named.
        assert f"`{bee}`" in str(refused.value) and "test_bees.py:" in str(refused.value)


def test_a_model_that_validates_itself_is_used():
    @register_bee(name="model")
    def model(swarm, payload: Model, context):
        swarm.publish(Model(payload.n + 1))

    swarm = DevSwarm()
    swarm.deliver("model", {"n": 1})
    assert swarm.emits[0].data == b'{"n":2}'
    with pytest.raises(Reject, match="n: field required"):
        swarm.deliver("model", {})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "builtins.object has no JSON form"),
        ({1, 2}, "builtins.set has no JSON form"),
        (float("nan"), "not JSON compliant"),
        ({"a": float("inf")}, "not JSON compliant"),
        (b"x" * (256 * 1024 + 1), "at most 262144 bytes"),
        ({"a": b"1"}, "builtins.bytes has no JSON form"),
        (LOOP, "nested too deeply, or holds itself"),
    ],
)
def test_what_cannot_travel_is_refused_at_its_line(value, why):
    @register_bee(name="out")
    def out(swarm, payload, context):
        swarm.publish(value)

    (outcome,) = DevSwarm().outcomes("out", [1])
    assert outcome.ended == "fail" and why in outcome.detail
    assert "test_bees.py" in outcome.detail.splitlines()[0]


def test_text_travels_as_its_bee_speaks():
    @register_bee(name="json")
    def json_bee(swarm, payload, context):
        swarm.publish("a")
        swarm.publish(Text("a"))
        swarm.publish(b"a")
        swarm.publish(bytearray(b"a"))

    @register_bee(name="text")
    def text_bee(swarm, payload: str, context):
        swarm.publish("a")
        swarm.publish({"a": 1})

    swarm = DevSwarm()
    swarm.deliver("json", 1)
    swarm.deliver("text", b"x")
    assert [e.data for e in swarm.emits] == [b'"a"', b"a", b"a", b"a", b"a", b'{"a":1}']


def test_batches_settle_each_message_by_itself():
    @register_bee(name="many")
    def many(swarm: Swarm, messages: list[Message[str]]):
        for message in messages:
            swarm.publish(message.payload.upper(), context=message)
            if message.payload == "no":
                swarm.reject("no", context=message)
            if message.payload == "later":
                swarm.retry(after=timedelta(seconds=2), context=message)
            if message.payload == "bad":
                raise ValueError("boom")

    swarm = DevSwarm()
    found = swarm.outcomes("many", [b"a", b"no", b"later", b"b"])
    assert [(o.ended, o.about) for o in found] == [("done", ""), ("reject", "no"), ("retry", "2000"), ("done", "")]
    assert swarm.published == ["A", "B"]
    # One that raises: nothing happened, all come again; then one by one, and one is to blame.
    found = swarm.outcomes("many", [b"a", b"bad", b"b"])
    assert [o.ended for o in found] == ["fail"] * 3
    found = swarm.outcomes("many", [Message(p, attempt=2) for p in (b"a", b"bad", b"b")])
    assert [o.ended for o in found] == ["done", "fail", "done"]


def test_a_batch_that_kept_state_keeps_what_it_passed():
    @register_bee(name="count")
    def count(swarm: Swarm, messages: list[Message[str]]):
        for message in messages:
            swarm.state["n"] = swarm.state.get("n", 0) + 1
            if message.payload == "bad":
                raise ValueError("boom")

    swarm = DevSwarm()
    found = swarm.outcomes("count", [Message(p, key="k") for p in (b"a", b"b", b"bad", b"c")])
    assert [o.ended for o in found] == ["done", "done", "fail", "fail"]
    assert swarm.stored("k", "n") == 2


def test_state_timers_config_and_secrets():
    def ring(swarm, timer):
        swarm.publish({"rang": timer.name, "n": swarm.state["n"]})
        if timer.name == "again":
            swarm.timer.set("last", after=1)

    @register_bee(name="keeper", timer=ring)
    def keeper(swarm, payload, context):
        swarm.state["n"] = swarm.state.get("n", 0) + 1
        swarm.state.put_bytes("raw", b"\xff")
        assert swarm.state.add("sum", 2) == 2 and swarm.state.add("sum") == 3
        del swarm.state["sum"]
        assert "n" in swarm.state and "none" not in swarm.state
        del swarm.state["raw"]
        swarm.timer.set("again", after=timedelta(seconds=5))
        swarm.timer.set("gone", at=1)
        swarm.timer.cancel("gone")
        swarm.respond([swarm.config["unit"], swarm.config.get("none", "-"), swarm.secret("token")])

    swarm = DevSwarm(config={"unit": "m"}, secrets={"token": "t"})
    swarm.run("keeper", [Message(1, key="a", accepted_ms=1_000), Message(1, key="a", accepted_ms=2_000)])
    assert swarm.responded == [["m", "-", "t"]] * 2
    assert swarm.stored("a", "n") == 2
    assert swarm.pending_timers() == [Timer("a", "again", 7_000)]
    assert swarm.fire_until(10_000, "keeper") == 2
    assert swarm.published == [{"rang": "again", "n": 2}, {"rang": "last", "n": 2}]
    unkeyed = DevSwarm().outcomes("keeper", [1])[0]
    assert "`state: true` in the manifest" in unkeyed.detail
    with pytest.raises(KeyError, match="`none` is not in the stage's config, which has unit"):
        swarm.config["none"]
    with pytest.raises(LookupError, match="secret `none` is not granted"):
        swarm.secret("none")


def test_what_a_node_would_refuse_a_test_finds():
    swarm = DevSwarm(key="k")
    for put in (
        lambda: swarm.state.put_bytes("n", bytes((256 << 10) + 1)),
        lambda: swarm.state.put_bytes("n" * 257, b""),
        lambda: [swarm.state.put_bytes(str(n), b"") for n in range(1_001)],
        lambda: [swarm.timer.set(str(n), at=1) for n in range(1_001)],
        lambda: swarm.timer.set("a", at=-1),
        lambda: swarm.timer.set("a"),
        lambda: swarm.retry(after=-1),
        lambda: swarm.retry(after=1e9),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError, Exception)):
            put()


@pytest.mark.parametrize("name", ["", "Hello", "a b", "a_b", "-a", "a-", "ä", "a" * 64, None, 3])
def test_names_are_those_of_the_node(name):
    with pytest.raises(ValueError, match="a name is of"):
        register_bee(name=name)


def test_registrations_that_cannot_be_meant():
    @register_bee(name="one")
    def first(swarm, payload, context): ...

    with pytest.raises(ValueError, match=r"two Bees have one name: `one`, .*test_bees.py:\d+ and `one`, .*test_bees.py:\d+"):

        @register_bee(name="one")
        def second(swarm, payload, context): ...

    with pytest.raises(TypeError, match=r"`two`, .*test_bees.py:\d+ takes \(swarm\)"):
        register_bee(name="two")(lambda swarm: None)
    with pytest.raises(TypeError, match="async function or a generator"):

        @register_bee(name="three")
        async def three(swarm, payload, context): ...

    with pytest.raises(TypeError, match=r"`five`, .*`Nowhere` cannot be read"):

        @register_bee(name="five")
        def five(swarm, payload: Nowhere): ...  # noqa: F821

    with pytest.raises(TypeError, match="goes above a function"):
        register_bee(name="four")(int)


def test_recursion_and_memory_are_failures_with_a_line():
    @register_bee(name="deep")
    def deep(swarm, payload, context):
        deep(swarm, payload, context)

    @register_bee(name="wide")
    def wide(swarm, payload, context):
        raise MemoryError

    found = DevSwarm().outcomes("deep", [1])[0]
    assert found.about == "RecursionError" and "test_bees.py:" in found.detail.splitlines()[0]
    assert len(found.detail) < 9_000
    assert "stage's `memory`" in DevSwarm().outcomes("wide", [1])[0].detail


def test_an_exception_whose_text_cannot_be_had_is_still_a_failure():
    class Rude(Exception):
        def __str__(self):
            raise RuntimeError("no")

    @register_bee(name="rude")
    def rude(swarm, payload, context):
        raise Rude

    assert DevSwarm().outcomes("rude", [1])[0].about == "Rude"


def test_logging_is_python_s_own(caplog):
    @register_bee(name="log")
    def log(swarm, payload, context):
        logging.getLogger("bee").warning("seen %s", payload)

    DevSwarm().deliver("log", 1)
    assert caplog.messages == ["seen 1"]


@pytest.mark.parametrize(
    "value", [0, -5, 10**30, True, None, 1.5, "ü\n\"", [], [1, [None]], {}, {"a": {"b": [True, "x"]}}, {1: 2}, [(1, 2)]]
)
def test_values_travel_as_json_has_them(value):
    from skep.payload import JSON, Form, decode, encode

    data = encode(value, JSON)
    assert data == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    for around in (data, b" " + data + b"\n"):
        assert decode(around, Form("json")) == json.loads(data)
