"""A keyed count on a node that has one core, beside the same flow in this process.

    taskset -c 1 python dataflow_on_node.py SKEP        (with `skep` installed; SKEP: the binary)

An item's CPU is that of the whole node, from the start of the source to the last count. State is durable on the node; in process there is none kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dataflow_count

from skep import Admin, Gateway
from skep.client.wire import out_message
from skep.dataflow.testing import run_main
from skep.tool.build import build

#: Keys, items.
CASES = [(10, 3_000_000), (100, 3_000_000), (1_000, 3_000_000), (10_000, 300_000), (100_000, 300_000)]


def in_process(keys: int, items: int) -> tuple[float, float]:
    """Seconds by the clock, and of CPU."""
    flow = dataflow_count.make(keys, items)
    wall, cpu = time.perf_counter(), time.process_time()
    run_main(flow)
    return time.perf_counter() - wall, time.process_time() - cpu


def on_node(skep: str, keys: int, items: int) -> tuple[float, float]:
    """The same on a node."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "count.wasm")
        probed, _ = build(Path(dataflow_count.__file__), out, quiet=True, flow=f"make({keys}, {items})")
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
                while not done(skep, url):
                    time.sleep(0.1)
                return time.perf_counter() - wall, used(node.pid) - cpu
        finally:
            node.terminate()
            node.wait()


def used(pid: int) -> float:
    """Seconds of CPU of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def done(skep: str, url: str) -> bool:
    """Whether the source has ended, and nothing waits."""
    said = subprocess.run([skep, "describe", "count", "-o", "json", "--node", url], capture_output=True, text=True, check=True).stdout
    stages = json.loads(said)["stages"]
    if any(stage["dead"] for stage in stages):
        raise RuntimeError(f"dead letters: {stages}")
    return stages[0]["processed"] > 1 and not any(stage["unread"] or stage["parked"] or stage["timers"] for stage in stages)


def main() -> None:
    """All cases, as a table."""
    print("| keys | on a node, items/s | CPU an item | in process, items/s | CPU an item | ratio of CPU |\n| --- | --- | --- | --- | --- | --- |")
    for keys, items in CASES:
        there, here = on_node(sys.argv[1], keys, items), in_process(keys, items)
        print(
            f"| {keys} | {items / there[0]:,.0f} | {there[1] / items * 1e6:.2f} us | {items / here[0]:,.0f} | {here[1] / items * 1e6:.2f} us "
            f"| {there[1] / here[1]:.1f} × |",
            flush=True,
        )


if __name__ == "__main__":
    main()
