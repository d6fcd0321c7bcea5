"""Released Bytewax beside skep: the same lines through the same map and filter, and the same keyed count with recovery on.

    bytewax_beside.py SKEP PYTHON_WASM RUST_WASM PYTHON_WITH_BYTEWAX

In turns, medians, printed. Bytewax runs as one process with one worker, as its manual has it; skep filter with one instance, the node as it
is by default, its stage on one partition.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from skep import Admin

LINES = 300_000
KEYS = 1_000
ROUNDS = 3

MAP_FILTER = """
import bytewax.operators as op
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow

flow = Dataflow("map_filter")
lines = op.input("in", flow, FileSource("numbers.txt"))
tripled = op.map("triple", lines, lambda line: int(line) * 3)
odd = op.filter("odd", tripled, lambda n: n % 2 == 1)
keyed = op.map("keyed", odd, lambda n: ("k", str(n)))
op.output("out", keyed, FileSink("bytewax.txt"))
"""

COUNT = """
import json
import bytewax.operators as op
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition


class Nothing(StatelessSinkPartition):
    def write_batch(self, items):
        pass


class Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Nothing()


flow = Dataflow("count")
lines = op.input("in", flow, FileSource("events.ndjson"))
keyed = op.key_on("user", op.map("json", lines, json.loads), lambda event: event["user"])
counted = op.stateful_map("count", keyed, lambda n, _: ((n or 0) + 1, (n or 0) + 1))
op.output("out", counted, Sink())
"""

SWARM = """
name: {name}
bees:
  - {{ name: count, module: {name}, bee: {bee}, input: {{ gateway: {name} }}, key: json:/user, partitions: 1, state: true,
      instances: {how}, inbox: {{ messages: 1000000, bytes: 512MiB }} }}
"""


def timed(command: list[str], cwd: Path, **more: object) -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=cwd, check=True, capture_output="stdout" not in more, **more)  # type: ignore[call-overload]
    return time.monotonic() - began


def main() -> None:
    skep, python_wasm, rust_wasm, bytewax = (str(Path(a).absolute()) for a in sys.argv[1:5])
    with tempfile.TemporaryDirectory(dir=Path(python_wasm).parent) as made:
        room = Path(made)
        (room / "numbers.txt").write_text("".join(f"{n}\n" for n in range(LINES)))
        (room / "events.ndjson").write_text("".join(f'{{"user":"u{n % KEYS}","n":{n}}}\n' for n in range(LINES)))
        (room / "map_filter.py").write_text(MAP_FILTER)
        (room / "count.py").write_text(COUNT)
        # Compiled once, as a node has it.
        subprocess.run([skep, "filter", python_wasm, "--bee", "odd", "-q"], input=b"", check=True)
        map_filter(room, skep, python_wasm, bytewax)
        count(room, skep, python_wasm, rust_wasm, bytewax)
    print(f"load average {os.getloadavg()[0]:.1f}, {LINES} lines, medians of {ROUNDS}")


def map_filter(room: Path, skep: str, wasm: str, bytewax: str) -> None:
    ours, theirs = [], []
    for _ in range(ROUNDS):
        (room / "bytewax.txt").unlink(missing_ok=True)
        theirs.append(timed([bytewax, "-m", "bytewax.run", "map_filter"], room))
        with open(room / "numbers.txt") as given, open(room / "skep.txt", "w") as out:
            ours.append(timed([skep, "filter", wasm, "--bee", "odd", "-q"], room, stdin=given, stdout=out))
        assert (room / "skep.txt").read_bytes() == (room / "bytewax.txt").read_bytes()
    say("map and filter, file to file", {"Python Bee, skep filter": ours}, theirs)


def count(room: Path, skep: str, python_wasm: str, rust_wasm: str, bytewax: str) -> None:
    recovery = room / "recovery"
    node = subprocess.Popen(
        [skep, "serve", "--data", str(room / "data"), "--listen", "127.0.0.1:0", "--no-admin"], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    url = node.stdout.readline().split()[-1]
    found: dict[str, list[float]] = {}
    theirs = []
    try:
        with Admin(url) as admin:
            for name, wasm, bee, how in (
                ("python", python_wasm, "count", "fresh"),
                ("python-pooled", python_wasm, "count", "pooled"),
                ("rust", rust_wasm, "tally", "fresh"),
            ):
                admin.push_bytes(name, Path(wasm).read_bytes())
                admin.apply(SWARM.format(name=name, bee=bee, how=how))
            for round_ in range(1, ROUNDS + 1):
                subprocess.run(["rm", "-rf", str(recovery)], check=True)
                recovery.mkdir()
                subprocess.run([bytewax, "-m", "bytewax.recovery", str(recovery), "1"], cwd=room, check=True, capture_output=True)
                theirs.append(timed([bytewax, "-m", "bytewax.run", "count", "-r", str(recovery), "-s", "1", "-b", "0"], room))
                for name in ("python", "python-pooled", "rust"):
                    began = time.monotonic()
                    command = [skep, "--node", url, "submit", name, "--file", str(room / "events.ndjson"), "-o", "json"]
                    subprocess.run(command, check=True, capture_output=True)
                    while admin.describe(name).stages[0].processed < round_ * LINES:
                        time.sleep(0.01)
                    found.setdefault(f"{name} Bee, durable stage", []).append(time.monotonic() - began)
            assert json.loads(admin.state("python", "count", "u7")["n"]) == ROUNDS * LINES // KEYS
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(60)
    say("keyed count, recovery on", found, theirs)


def say(what: str, ours: dict[str, list[float]], theirs: list[float]) -> None:
    beside = statistics.median(theirs)
    print(f"{what}: Bytewax 0.21.1 {LINES / beside:,.0f} messages/s, its start included")
    for name, times in ours.items():
        own = statistics.median(times)
        print(f"  {name}: {LINES / own:,.0f} messages/s, {beside / own:.2f} x")


if __name__ == "__main__":
    main()
