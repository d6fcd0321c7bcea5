"""Dataflows beside Bytewax: the same flow, from a list in memory to a sink that drops everything, run here in process and by Bytewax.

    python dataflow_beside.py        (with `skep` and `bytewax` installed)

Each run is a process of its own, in turns; medians of five. A rate counts items by the clock on the wall; CPU is that of the whole process
while the flow runs, all its threads.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from typing import Any

ROUNDS = 5
#: Name, items, batch, workers.
CASES = [
    ("passthrough", 2_000_000, 1_000, 1),
    ("map", 1_000_000, 1_000, 1),
    ("map", 200_000, 10, 1),
    ("map", 100_000, 1, 1),
    ("filter", 1_000_000, 1_000, 1),
    ("five maps", 500_000, 1_000, 1),
    ("keyed count, 100 keys", 500_000, 1_000, 1),
    ("keyed count, 100 keys, recovery", 500_000, 1_000, 1),
    ("keyed count, 100000 keys", 300_000, 1_000, 1),
    ("keyed count, 100000 keys, recovery", 300_000, 1_000, 1),
    ("keyed count, 100 keys", 500_000, 1_000, 2),
    ("count_final, 100 keys", 500_000, 1_000, 1),
]


def run(package: str, case: str, items: int, batch: int, workers: int) -> None:
    """One run; prints seconds by the clock and of CPU."""

    def module(name: str) -> Any:
        if package == "skep":
            return importlib.import_module("skep.dataflow" + ("" if name == "dataflow" else f".{name}"))
        return importlib.import_module(f"bytewax.{name}")

    op, testing, outputs = module("operators"), module("testing"), module("outputs")

    class Part(outputs.StatelessSinkPartition):  # type: ignore[misc, name-defined]
        def write_batch(self, items: list[Any]) -> None:
            pass

    class Nowhere(outputs.DynamicSink):  # type: ignore[misc, name-defined]
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Part:
            return Part()

    flow = module("dataflow").Dataflow("beside")
    s = op.input("in", flow, testing.TestingSource(list(range(items)), batch))
    if case.endswith("keys") or "recovery" in case:
        count = 100_000 if "100000" in case else 100
        names = [f"k{i}" for i in range(count)]
        if case.startswith("count_final"):
            s = op.count_final("count", s, lambda x: names[x % count])
        else:
            s = op.stateful_map("count", op.key_on("key", s, lambda x: names[x % count]), lambda n, _: ((n or 0) + 1,) * 2)
    elif case == "filter":
        s = op.filter("filter", s, lambda x: x % 2 == 0)
    else:
        for index in range({"passthrough": 0, "map": 1, "five maps": 5}[case]):
            s = op.map(f"map{index}", s, lambda x: x + 1)
    op.output("out", s, Nowhere())
    how: dict[str, Any] = {"epoch_interval": timedelta(seconds=10)}
    with tempfile.TemporaryDirectory() as dir:
        if "recovery" in case:
            recovery = module("recovery")
            recovery.init_db_dir(dir, 1)
            how["recovery_config"] = recovery.RecoveryConfig(dir)
        wall, cpu = time.perf_counter(), time.process_time()
        if workers == 1:
            testing.run_main(flow, **how)
        else:
            testing.cluster_main(flow, [], 0, worker_count_per_proc=workers, **how)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))


def main() -> None:
    """All cases, as a table."""
    print("| flow | batch | workers | skep, items/s | Bytewax, items/s | ratio | CPU an item, ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
    for case, items, batch, workers in CASES:
        found: dict[str, list[list[float]]] = {"skep": [], "bytewax": []}
        for _ in range(ROUNDS):
            for package, runs in found.items():
                command = [sys.executable, __file__, package, case, str(items), str(batch), str(workers)]
                runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        (ours, cpu), (theirs, their_cpu) = ([statistics.median(one[i] for one in runs) for i in (0, 1)] for runs in found.values())
        print(
            f"| {case} | {batch} | {workers} | {items / ours / 1e6:.2f} M | {items / theirs / 1e6:.2f} M | {theirs / ours:.2f} × "
            f"| {cpu / their_cpu:.2f} × |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
