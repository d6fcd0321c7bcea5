"""Flows on a real node: built, deployed, killed, scaled, deployed again; what is kept at the end is what comes out in process."""

from __future__ import annotations

import base64
import json
import random
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kept import keys_of

from skep import Admin, Gateway
from skep.client import Rejected
from skep.dataflow.buckets import bucket_of
from skep.dataflow.stage import unpack
from skep.dataflow.testing import TestingSink, run_main

HERE = Path(__file__).parent
SHOP = HERE / "deployed" / "shop.py"


def soon(look: Callable[[], Any], patience: float = 90) -> Any:
    ends = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < ends, "not soon enough"
        time.sleep(0.1)
    return found


def exported(node: Any, stage: str) -> dict[str, dict[str, bytes]]:
    """What a stage keeps, by what the node knows as keys."""
    found = {}
    for line in node.skep("state", "export", stage).stdout.splitlines():
        said = json.loads(line)
        found[said["key"]] = {
            name: base64.b64decode(value["base64"]) if "base64" in value else value["text"].encode() for name, value in said["values"].items()
        }
    return found


def kept(node: Any, stage: str) -> dict[str, Any]:
    """What a keyed stage keeps, unpacked."""
    found: dict[str, Any] = {}
    for bucket, values in exported(node, stage).items():
        keys = keys_of(values)
        assert keys and {bucket_of(key) for key in keys} == {bucket}
        found |= keys
    return found


def in_process(count: int) -> tuple[dict[str, int], dict[str, int]]:
    """Counts by key, and what was counted of each window that values close, where there is no end."""
    sys.path.insert(0, str(SHOP.parent))
    try:
        import shop
    finally:
        sys.path.remove(str(SHOP.parent))
    out: list[Any] = []
    run_main(shop.make(count, windows=TestingSink(out)))
    by_values = shop.closed_by_values(count)
    windows = {key: value for key, value in out if key in by_values}
    assert len(windows) == len(by_values) < len(out)
    counts: dict[str, int] = {}
    for part in ("eu", "us"):
        for number in range(count):
            key = shop.key_of((part, number))
            counts[key] = counts.get(key, 0) + 1
    return counts, windows


def test_killed_at_any_moment_each_item_counts_once(own_node: Any) -> None:
    count, chance = 4000, random.Random(5)
    counts, windows = in_process(count)
    said = own_node.skep("deploy", f"{SHOP}:make({count}, 0.02)")
    assert "+ stage window" in said.stdout
    kills = 0
    # No more than that: a machine that is busy does little between two kills.
    while kills < 12 and sum(kept(own_node, "shop/count").values()) < 2 * count:
        time.sleep(chance.uniform(0.3, 1.5))
        own_node.stop(kill=True)
        own_node.start()
        kills += 1
    assert kills >= 3
    soon(lambda: kept(own_node, "shop/count") == counts)
    closed = {key: [value] for key, value in windows.items()}
    assert len(closed) > 100
    soon(lambda: len(kept(own_node, "shop/kept")) >= len(closed))
    assert kept(own_node, "shop/kept") == closed
    # What timers let go of is all there, once.
    numbers = {key: sorted(n for part in ("eu", "us") for n in range(count) if part == key[:2] and n % 7 == int(key[3:])) for key in counts}
    got = lambda: {key: sorted(n for some in lists for n in some) for key, lists in kept(own_node, "shop/lists").items()}  # noqa: E731
    soon(lambda: sum(map(len, got().values())) >= 2 * count)
    assert got() == numbers
    assert own_node.skep("dlq", "shop").stdout.strip() == "no dead letters"
    places = {part: unpack(values["state"][12:]) for part, values in exported(own_node, "shop/orders").items()}
    assert places == {part: (True, count) for part in ("eu", "us")}
    # Deployed again, it has ended and stays so.
    own_node.skep("deploy", f"{SHOP}:make({count}, 0.02)")
    time.sleep(0.5)
    assert kept(own_node, "shop/count") == counts


def test_it_is_a_swarm_like_any_other(own_node: Any) -> None:
    own_node.skep("deploy", f"{SHOP}:make(1000000, 0.05)")
    swarm = json.loads(own_node.skep("swarms", "-o", "json").stdout)["swarms"][0]
    assert (swarm["name"], swarm["status"], swarm["stages"]) == ("shop", "running", 7)
    soon(lambda: "('eu-" in own_node.skep("logs", "shop", "spread").stdout)
    own_node.skep("scale", "shop/count", "--partitions", "8")
    stages = {s["name"]: s for s in json.loads(own_node.skep("describe", "shop", "-o", "json").stdout)["stages"]}
    assert stages["count"]["partitions"] == 8
    # What was scaled stays so, and what is no step any more is not lost by chance.
    own_node.skep("deploy", f"{SHOP}:make(1000000, 0.05)")
    stages = {s["name"]: s for s in json.loads(own_node.skep("describe", "shop", "-o", "json").stdout)["stages"]}
    assert stages["count"]["partitions"] == 8
    other = f"{SHOP}:make(1000000, 0.05, batches=False)"
    refused = own_node.skep("deploy", other, ok=False)
    assert refused.returncode == 5 and "batch" in refused.stderr and "lists" in refused.stderr and "--discard-state" in refused.stderr
    before = sum(kept(own_node, "shop/count").values())
    changed = own_node.skep("deploy", other, "--discard-state")
    assert "- stage batch" in changed.stdout
    soon(lambda: sum(kept(own_node, "shop/count").values()) > before + 100)
    own_node.skep("delete", "shop", "--discard")
    assert json.loads(own_node.skep("swarms", "-o", "json").stdout)["swarms"] == []


ASKED = """
import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.subject import RespondSink, SubjectSource

flow = Dataflow("asked")
orders = op.input("orders", flow, SubjectSource("orders"))
totals = op.stateful_map("total", op.key_on("who", orders, lambda o: o["who"]), lambda t, o: ((t or 0) + 100 // o["n"],) * 2)
op.output("answer", op.map("form", totals, lambda kv: {"who": kv[0], "total": kv[1]}), RespondSink())
"""


def test_what_comes_to_a_subject_is_answered_and_a_failure_names_the_line(own_node: Any, source: Callable[..., Path]) -> None:
    own_node.skep("deploy", str(source(ASKED, "asked.py")))
    with Gateway(own_node.url) as gateway:
        for total in (50, 100):
            assert gateway.request("orders", {"who": "a", "n": 2}).payload == {"who": "a", "total": total}
        with pytest.raises(Rejected, match="the payload is not JSON"):
            gateway.request("orders", b"{")
        gateway.submit("orders", {"who": "a", "n": 0}, {"who": "b", "n": 0})
    with Admin(own_node.url) as admin:
        letters = soon(lambda: len(found := admin.dead_letters("asked", "total")) == 2 and found)
    for letter in letters:
        assert letter.reason == "ZeroDivisionError"
        assert letter.detail.startswith("step 'asked.total' (stateful_map, asked.py:7) failed in on_batch for the key ")
        assert "raised at asked.py:7 in <lambda>" in letter.detail and "/0/" not in letter.detail


def test_the_page_says_what_a_node_does(own_node: Any, source: Callable[..., Path]) -> None:
    """The section "On a node": its program is deployed, its commands print what it shows."""
    text = (HERE.parents[2] / "docs" / "dataflow.md").read_text()
    section = text[text.index("## On a node") : text.index("## Coming from Bytewax")]
    (name, body) = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", section, re.S)[0]
    program = source(body, name)
    (block,) = re.findall(r"```console\n(.*?)```", section, re.S)
    ran = 0
    for command, want in re.findall(r"^\$ skep (.+)\n((?:(?!\$ ).*\n)*)", block, re.M):
        words = [str(program) if word == name else word for word in shlex.split(command)]
        assert own_node.skep(*words).stdout == want, command
        ran += 1
    assert ran == 3


REFUSED = """
import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.files import FileSource
from skep.dataflow.connectors.stdio import StdOutSink

flow = Dataflow("files")
op.output("out", op.input("lines", flow, FileSource("lines.txt")), StdOutSink())
"""


def test_what_can_not_run_there_is_refused_before_anything_is_sent(own_node: Any, source: Callable[..., Path]) -> None:
    cases = {
        "files.py": (REFUSED, "step 'files.lines' (input, files.py:7) can't run on a node: FileSource needs files"),
        "none.py": ("x = 1\n", "has no 'flow'"),
        "broken.py": ("import skep.dataflow\nraise ValueError('no')\n", "broken.py:2"),
    }
    for name, (text, says) in cases.items():
        refused = own_node.skep("deploy", str(source(text, name)), ok=False)
        assert refused.returncode == 3 and says in refused.stderr, refused.stderr
    assert own_node.skep("deploy", "nowhere.py", ok=False).returncode == 3
    assert json.loads(own_node.skep("swarms", "-o", "json").stdout)["swarms"] == []
    ended = REFUSED.replace("FileSource", "TestingSource").replace("connectors.files", "testing").replace('"lines.txt"', "[1]")
    ended = ended.replace('op.input("lines", flow, TestingSource([1]))', 'op.count_final("c", op.input("lines", flow, TestingSource([1])), str)')
    told = own_node.skep("deploy", str(source(ended, "ended.py")), "--manifest")
    assert "warning: a stream has no end on a node: what files.c would do" in told.stderr and told.stdout.startswith("# The dataflow")
