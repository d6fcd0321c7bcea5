"""A keyed count, and one by event-time windows, on a node that has one core; beside the same flow in this process, and in released Bytewax.

    taskset -c 1 python dataflow_on_node.py SKEP [PART]   (with `skep` installed, and perhaps `bytewax`; SKEP: the binary; PART: of a row's name)

An item's CPU is that of the whole node, from the start of the source to the last item. State is durable on the node; Bytewax keeps it each ten
seconds, and here in process there is none kept. Each row is of one minute, in turns, medians of three.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dataflow_count

from skep import Admin, Gateway
from skep.client.wire import out_message
from skep.tool.build import build

FLOWS = Path(dataflow_count.__file__)
ROUNDS = 3
#: Function, keys, items.
CASES = [
    ("make", 1, 1_000_000),
    ("make", 100, 1_000_000),
    ("make", 1_000, 1_000_000),
    ("make", 10_000, 1_000_000),
    ("make", 100_000, 500_000),
    ("windows", 100, 300_000),
    ("windows", 1_000, 300_000),
]
NAMES = {"make": "count", "windows": "windows"}

#: Prints seconds by the clock, and of CPU.
ALONE = """
import sys, tempfile, time
from datetime import timedelta
from pathlib import Path
text = Path({flows!r}).read_text()
more = {{}}
if {bytewax}:
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import run_main
    text = text.replace("from skep.dataflow import", "from bytewax.dataflow import").replace("skep.dataflow", "bytewax")
    folder = tempfile.mkdtemp()
    init_db_dir(Path(folder), 1)
    more = dict(epoch_interval=timedelta(seconds=10), recovery_config=RecoveryConfig(folder))
else:
    from skep.dataflow.testing import run_main
found = {{}}
exec(compile(text, "flows", "exec"), found)
flow = found[{function!r}]({keys}, {items})
wall, cpu = time.perf_counter(), time.process_time()
run_main(flow, **more)
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def alone(bytewax: bool, function: str, keys: int, items: int) -> tuple[float, float]:
    """Seconds by the clock, and of CPU, in a process of its own."""
    program = ALONE.format(flows=str(FLOWS), bytewax=bytewax, function=function, keys=keys, items=items)
    wall, cpu = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    return float(wall), float(cpu)


def on_node(skep: str, function: str, keys: int, items: int) -> tuple[float, float]:
    """The same on a node."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "flow.wasm")
        probed, _ = build(FLOWS, out, quiet=True, flow=f"{function}({keys}, {items})")
        command = [skep, "serve", "--data", f"{folder}/data", "--listen", "127.0.0.1:0", "--no-admin"]
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert node.stdout is not None
            url = node.stdout.readline().split()[-1]
            with Admin(url) as admin, Gateway(url) as gateway:
                admin.push(out, name=probed.deployment["name"])
                admin.apply(probed.deployment["manifest"])
                wall, cpu = time.perf_counter(), used(node.pid)
                for subject, key in probed.deployment["starts"]:
                    gateway.submit(subject, out_message(b"start", key=key))
                while not done(skep, url, NAMES[function]):
                    time.sleep(0.1)
                return time.perf_counter() - wall, used(node.pid) - cpu
        finally:
            node.terminate()
            node.wait()


def used(pid: int) -> float:
    """Seconds of CPU of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def done(skep: str, url: str, swarm: str) -> bool:
    """Whether the source has ended, and nothing waits. Windows that no value closes have timers for later."""
    said = subprocess.run([skep, "describe", swarm, "-o", "json", "--node", url], capture_output=True, text=True, check=True).stdout
    stages = json.loads(said)["stages"]
    if any(stage["dead"] for stage in stages):
        raise RuntimeError(f"dead letters: {stages}")
    return stages[0]["processed"] > 1 and not stages[0]["timers"] and not any(stage["unread"] or stage["parked"] for stage in stages)


def main() -> None:
    """All cases, as a table."""
    beside = importlib.util.find_spec("bytewax") is not None
    print("| flow | on a node, items/s | CPU an item | in process, items/s | CPU an item | Bytewax, items/s | CPU an item | ratio of CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for function, keys, items in CASES:
        name = f"{NAMES[function]}, {keys:,} keys"
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        took: dict[str, list[tuple[float, float]]] = {"node": [], "here": [], "theirs": []}
        for _ in range(ROUNDS):
            took["node"].append(on_node(sys.argv[1], function, keys, items))
            took["here"].append(alone(False, function, keys, items))
            if beside:
                took["theirs"].append(alone(True, function, keys, items))
        wall = {who: statistics.median(one for one, _ in found) for who, found in took.items() if found}
        cpu = {who: statistics.median(one for _, one in found) for who, found in took.items() if found}
        cells = [f"{items / wall[who]:,.0f} | {cpu[who] / items * 1e6:.2f} us" for who in cpu]
        ratio = f"{cpu['theirs'] / cpu['node']:.2f} ×" if beside else ""
        print(f"| {name} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
