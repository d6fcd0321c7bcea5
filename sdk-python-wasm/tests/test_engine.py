"""The built component in the real engine: it does what a DevSwarm does, and what is bad costs its message alone."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from skep import DevSwarm, Message

ZOO = Path(__file__).parent / "zoo" / "bees.py"


@pytest.fixture
def zoo(skep_engine):
    return skep_engine(ZOO)


@pytest.fixture
def plain(monkeypatch):
    """The same Bees in this interpreter."""
    monkeypatch.chdir(ZOO.parent)
    monkeypatch.setitem(sys.modules, "tabulate", None)
    spec = importlib.util.spec_from_file_location("zoo_bees", ZOO)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tabulate", __import__("types").ModuleType("tabulate"))
    spec.loader.exec_module(module)
    return DevSwarm()


def answers(component, bee, messages, **more):
    found = component.outcomes(bee, messages, **more)
    assert [o.ended for o in found] == ["done"] * len(found), found[0].detail
    return [json.loads(o.respond[0]) for o in found]


def test_it_does_what_a_dev_swarm_does(zoo, plain):
    keyed = [Message(n, key=key) for n, key in enumerate("aab")]
    headers = [Message(b"\xff\x00\n", key="k", headers=[("a", "ü")])]
    for bee, messages in {
        "echo": [b"", b"x" * 200_000, *headers],
        "fork": [{"a": 1}, None],
        "shout": ["ü".encode(), b"\xff", b"b"],
        "order": [{"id": 1}, {"id": "1"}, {}, b"NaN", b"{", {"id": 2, "note": "ü"}],
        "count": [*keyed, 1],
        "many": [b"a", b"bad", b"b", Message(b"c", attempt=2)],
        "bad": [b"raise", b"exit", b"nan", b"object", b"secret", b"fine"],
    }.items():
        assert zoo.outcomes(bee, messages) == plain.outcomes(bee, messages), bee


def test_a_secret_is_given_by_a_file_and_named_in_no_answer(zoo):
    (outcome,) = zoo.outcomes("bad", [b"secret"], secrets={"token": "sesame"})
    assert outcome.ended == "done"
    (outcome,) = zoo.outcomes("bad", [b"secret"], secrets={"other": "sesame"})
    assert "secret `token` is not granted" in outcome.detail
    for wrong, said in (("token", "NAME=FILE"), ("token=/nowhere", "cannot read /nowhere"), ("../x=/dev/null", "name")):
        with pytest.raises(RuntimeError, match=said):
            zoo.outcomes("bad", [b"secret"], options=["--secret", wrong])


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("raise", "ValueError", "the hive is on fire"),
        ("exit", "SystemExit", "exit status 3"),
        ("recursion", "RecursionError", "recursion"),
        ("memory", "MemoryError", "`memory`"),
        ("write", "Error", "a Bee has no files"),
        ("read", "Error", "a Bee has no files"),
        ("socket", "error", "a Bee has no files, network"),
        ("thread", "RuntimeError", "one thread"),
        ("subprocess", "OSError", "does not support processes"),
        ("nan", "ValueError", "not JSON compliant"),
        ("object", "TypeError", "no JSON form"),
        ("import", "ModuleNotFoundError", "import it at the top level"),
        ("state", "Error", "state"),
        ("secret", "LookupError", "secret `token` is not granted"),
    ],
)
def test_what_is_bad_names_its_line_and_costs_its_message_alone(zoo, what, kind, said):
    before, found, after = zoo.outcomes("bad", [b"fine", what.encode(), b"fine"])
    # The instance lived on: both beside it are done, in the same call.
    assert before.ended == after.ended == "done"
    assert found.ended == "fail" and kind in found.about, found
    assert not found.publish and not found.respond
    first = found.detail.splitlines()[0]
    line = next(n for n, text in enumerate(ZOO.read_text().splitlines(), 1) if f'case "{what}"' in text)
    place = re.search(r"\(bees\.py:(\d+), in (bad|helper)\)", first)
    assert said in first and place, found.detail
    assert place.group(2) == "helper" or what == "recursion" or int(place.group(1)) in (line + 1, line + 2), first
    # With the source of the line, though no file is left.
    assert "Traceback (most recent call last):" in found.detail and 'File "bees.py"' in found.detail


def test_an_endless_loop_is_found_at_its_second_attempt(zoo):
    messages = [Message(b"fine"), Message(b"loop", attempt=2), Message(b"fine")]
    found = zoo.outcomes("bad", messages, options=["--timeout", "2s"])
    assert [o.ended for o in found] == ["done", "trap", "done"]
    # On a busy machine the wall clock may be first.
    assert found[1].about in ("cpu-time", "wall-time"), found[1]
    assert re.search(r"bees\.py:\d+, in bad: in a loop, \d+ turns so far", found[1].detail), found[1].detail


def test_leaving_the_process_ends_the_instance_and_nothing_else(zoo):
    found = zoo.outcomes("bad", [b"fine", b"os-exit", b"fine"])
    assert [o.ended for o in found] == ["done", "trap", "done"]


def test_clock_and_chance_are_the_message_s(zoo):
    message = Message(1, accepted_ms=1_700_000_000_500)
    first = answers(zoo, "sense", [message, message])
    again = answers(zoo, "sense", [message, message], options=["--fresh", "--batch", "1"])
    assert first == again
    now, chance, unique, starts, text = first[0]
    assert (now, starts, text) == (1_700_000_000.5, 1, "hello from a file\n")
    # Another message, another number.
    assert first[0][1] != first[1][1] and first[0][2] != first[1][2]


def test_what_is_needed_later_is_there(zoo):
    assert answers(zoo, "late", [1]) == [[0, 2, "2026-11-21T00:00:00", "fc"]]
    assert answers(zoo, "table", [[["a", 1]]]) == ["-  -\na  1\n-  -"]


def test_instances_are_fresh_or_kept(zoo):
    assert answers(zoo, "static", [1, 1, 1], options=["--batch", "1"]) == [1, 2, 3]
    assert answers(zoo, "static", [1, 1, 1], options=["--batch", "1", "--fresh"]) == [1, 1, 1]


def test_configuration_and_words_reach_their_places(zoo):
    assert answers(zoo, "says", [1], config={"unit": "m"}) == [{"unit": "m"}]
    command = [zoo._binary, "filter", str(zoo.wasm), "--bee", "says"]
    ran = subprocess.run(command, input="1\n2\n", capture_output=True, text=True)
    assert ran.stdout == "{}\n{}\n"
    assert "line 1: info stdout: on stdout" in ran.stderr and "line 2: warn bee: a warning" in ran.stderr


def test_the_filter_says_what_is_wrong(zoo):
    def run(*options, given="x\n", binary=zoo._binary):
        return subprocess.run([binary, "filter", *options], input=given, capture_output=True, text=True)

    wasm = str(zoo.wasm)
    several = run(wasm)
    assert several.returncode == 2 and "has several Bees: echo, fork, shout" in several.stderr
    none = run(wasm, "--bee", "nobody")
    assert none.returncode == 4 and "no Bee `nobody`" in none.stderr
    absent = run("nowhere.wasm")
    assert absent.returncode == 4 and "no file nowhere.wasm" in absent.stderr
    wrong = run(str(ZOO.parent / "greeting.txt"))
    assert wrong.returncode == 3 and "is not WebAssembly" in wrong.stderr
    failed = run(wasm, "--bee", "bad", "-q", given="fine\nraise\nfine\n")
    assert failed.returncode == 1 and failed.stdout.count('fine') == 2
    assert "line 2: ValueError: the hive is on fire (bees.py:" in failed.stderr and "1 of 3 messages failed" in failed.stderr
    large = run(wasm, "--bee", "echo", given="x" * (257 << 10) + "\n")
    assert large.returncode == 3 and "line 1: 263168 bytes" in large.stderr
    unread = run(wasm, "--bee", "echo", "--messages", given='{"payload": 1}\n{"nope": 1}\n')
    assert unread.returncode == 3 and "line 2: not a message" in unread.stderr
    keyless = run(wasm, "--bee", "count", "--key-json", "/user", given='{"user": "a"}\n{}\n')
    assert keyless.returncode == 3 and "line 2: there is no /user in it" in keyless.stderr
    assert run(wasm, "--bee", "count", "--key-json", "/user", given='{"user": "a"}\n' * 3).stdout == "1\n2\n3\n"
    assert run(wasm, "--bee", "echo", given="").returncode == 0
    assert run(wasm, "--bee", "shout", given="a\n\nb").stdout == "A\n\nB\n"
