"""Flows on a real node: built, deployed, killed, scaled, deployed again; what is kept at the end is what comes out in process."""

from __future__ import annotations

import base64
import json
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


def in_process(count: int) -> tuple[dict[str, int], dict[str, list[int]], dict[str, list[int]]]:
    """Counts by key, what was counted of each window, and of each region at the end."""
    sys.path.insert(0, str(SHOP.parent))
    try:
        import shop
    finally:
        sys.path.remove(str(SHOP.parent))
    out: list[Any] = []
    last: list[Any] = []
    run_main(shop.make(count, windows=TestingSink(out), regions=TestingSink(last)))
    windows, regions = {key: [value] for key, value in out}, {key: [value] for key, value in last}
    assert len(windows) == len(out) > 100 and regions == {part: [count] for part in ("eu", "us")}
    counts: dict[str, int] = {}
    for part in ("eu", "us"):
        for number in range(count):
            key = shop.key_of((part, number))
            counts[key] = counts.get(key, 0) + 1
    return counts, windows, regions


def status(node: Any, swarm: str) -> str:
    (found,) = [one for one in json.loads(node.skep("swarms", "-o", "json").stdout)["swarms"] if one["name"] == swarm]
    said: str = found["status"]
    return said


def test_killed_at_any_moment_each_item_counts_once(own_node: Any) -> None:
    count, chance = 4000, random.Random(5)
    counts, windows, regions = in_process(count)
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
    # … and while ends go from stage to stage.
    ends = time.monotonic() + 180
    while status(own_node, "shop") != "ended":
        assert time.monotonic() < ends, own_node.skep("describe", "shop").stdout
        time.sleep(chance.uniform(0.1, 1.0))
        if kills < 18:
            own_node.stop(kill=True)
            own_node.start()
            kills += 1
    assert kept(own_node, "shop/count") == counts
    assert kept(own_node, "shop/kept") == windows
    assert kept(own_node, "shop/total") == regions
    described = json.loads(own_node.skep("describe", "shop", "-o", "json").stdout)["stages"]
    assert {(stage["status"], stage["timers"], stage["unread"]) for stage in described} == {("ended", 0, 0)}
    # What was told its end and is not kept beyond it has left nothing.
    left = {stage["name"] for stage in described if stage["keys"]}
    assert left == {"orders", "count", "kept", "lists", "total"}
    # What timers, and the end, let go of is all there, once.
    numbers = {key: sorted(n for part in ("eu", "us") for n in range(count) if part == key[:2] and n % 7 == int(key[3:])) for key in counts}
    got = lambda: {key: sorted(n for some in lists for n in some) for key, lists in kept(own_node, "shop/lists").items()}  # noqa: E731
    assert got() == numbers
    assert own_node.skep("dlq", "shop").stdout.strip() == "no dead letters"
    places = {part: unpack(values["state"][12:]) for part, values in exported(own_node, "shop/orders").items()}
    assert places == {part: (True, count) for part in ("eu", "us")}
    # Deployed again, it has ended and stays so.
    own_node.skep("deploy", f"{SHOP}:make({count}, 0.02)")
    soon(lambda: status(own_node, "shop") == "ended")
    assert kept(own_node, "shop/count") == counts and kept(own_node, "shop/total") == regions
    # With another number of partitions it is looked for anew, and found.
    own_node.skep("scale", "shop/kept", "--partitions", "7")
    soon(lambda: status(own_node, "shop") == "ended")
    assert kept(own_node, "shop/kept") == windows and kept(own_node, "shop/total") == regions


BROKEN = """
import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.testing import TestingSource

flow = Dataflow("broken")
numbers = op.input("numbers", flow, TestingSource([1, 2, 0, 4]))
shares = op.stateful_map("share", op.key_on("each", numbers, str), lambda _, n: (n, 4 // n))
sums = op.reduce_final("sum", op.map("one", shares, lambda share: ("all", share[1])), lambda a, b: a + b)
op.output("out", op.stateful_map("kept", sums, lambda s, n: ([*(s or []), n], n)), StdOutSink())
"""


def test_a_dead_letter_holds_the_end_until_somebody_decides(own_node: Any, source: Callable[..., Path]) -> None:
    own_node.skep("deploy", str(source(BROKEN, "broken.py")))
    stages = lambda: {s["name"]: s for s in json.loads(own_node.skep("describe", "broken", "-o", "json").stdout)["stages"]}  # noqa: E731
    soon(lambda: stages()["share"]["dead"] == 1)
    soon(lambda: "its end waits for 1 dead letter to be redriven or discarded" in stages()["share"]["status"])
    assert stages()["numbers"]["status"] == "ended" and status(own_node, "broken") == "running"
    assert kept(own_node, "broken/kept") == {}
    own_node.skep("dlq", "broken", "discard", "--all")
    soon(lambda: status(own_node, "broken") == "ended")
    assert kept(own_node, "broken/kept") == {"all": [4 + 2 + 1]}


def test_an_end_goes_through_a_stage_that_is_scaled_and_paused_meanwhile(own_node: Any) -> None:
    own_node.skep("deploy", f"{SHOP}:make(1500, 0.01)")
    soon(lambda: sum(kept(own_node, "shop/count").values()) > 200)
    own_node.skep("pause", "shop/last-count")
    for count in (1, 9):
        for stage in ("window", "region"):
            # Refused while the stage still gets the last number.
            soon(lambda: own_node.skep("scale", f"shop/{stage}", "--partitions", str(count), ok=False).returncode == 0)  # noqa: B023
    stages = lambda: {s["name"]: s for s in json.loads(own_node.skep("describe", "shop", "-o", "json").stdout)["stages"]}  # noqa: E731
    soon(lambda: stages()["kept"]["status"] == "ended")
    assert status(own_node, "shop") == "running, but for last-count" and stages()["region"]["status"] == "ok"
    own_node.skep("resume", "shop/last-count")
    soon(lambda: status(own_node, "shop") == "ended")
    counts, windows, regions = in_process(1500)
    assert kept(own_node, "shop/kept") == windows and kept(own_node, "shop/total") == regions and kept(own_node, "shop/count") == counts


def test_it_is_a_swarm_like_any_other(own_node: Any) -> None:
    own_node.skep("deploy", f"{SHOP}:make(1000000, 0.05)")
    swarm = json.loads(own_node.skep("swarms", "-o", "json").stdout)["swarms"][0]
    assert (swarm["name"], swarm["status"], swarm["stages"]) == ("shop", "running", 11)
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


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node_at: Callable[[Path], Any]) -> Iterator[list[Any]]:
    """Nodes on one Redis, which the test may kill and start again."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no `redis-server` on PATH: ci/tools redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    safe = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction", "--save", ""]
    redis = subprocess.Popen([server, "--port", str(port), "--dir", str(tmp_path), *safe], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SKEP_BACKEND", f"redis://127.0.0.1:{port}")
    monkeypatch.setenv("SKEP_ARTIFACTS", str(tmp_path / "artifacts"))
    soon(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
    nodes = []
    try:
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            node = node_at(tmp_path / str(number) / "data")
            nodes.append(node)
            node.start()
        yield nodes
    finally:
        for node in nodes:
            node.stop()
        redis.kill()
        redis.wait()


def test_ends_are_told_once_by_nodes_that_share_a_redis_and_are_killed(two_nodes: list[Any]) -> None:
    count, chance = 3000, random.Random(7)
    counts, windows, regions = in_process(count)
    stays, dies = two_nodes
    stays.skep("deploy", f"{SHOP}:make({count}, 0.1)")
    ends, kills = time.monotonic() + 240, 0
    while status(stays, "shop") != "ended":
        assert time.monotonic() < ends, stays.skep("describe", "shop").stdout
        time.sleep(chance.uniform(0.5, 2.5))
        if kills < 8:
            dies.stop(kill=True)
            dies.start()
            kills += 1
        if kills == 2:
            stays.skep("scale", "shop/window", "--partitions", "5")
    assert kills >= 1, "it ended before anybody was killed: give it more to do"
    assert kept(dies, "shop/count") == counts and kept(dies, "shop/kept") == windows and kept(stays, "shop/total") == regions
    assert stays.skep("dlq", "shop").stdout.strip() == "no dead letters"


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
    assert "warning" not in told.stderr and told.stdout.startswith("# The dataflow") and "ends: true" in told.stdout
    subject = ended.replace("skep.dataflow.testing import TestingSource", "skep.dataflow.connectors.subject import SubjectSource")
    told = own_node.skep("deploy", str(source(subject.replace("TestingSource([1])", 'SubjectSource("in")'), "endless.py")), "--manifest")
    assert "warning: what is sent to a subject has no end: what files.c would do" in told.stderr and "ends:" not in told.stdout
