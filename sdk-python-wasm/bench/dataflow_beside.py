"""Dataflows beside Bytewax: the same flow, from a list in memory to a sink that drops everything, run here in process and by Bytewax.

    python dataflow_beside.py            (with `skep` and `bytewax` installed)
    python dataflow_beside.py --workers  (two workers beside one of the same package, recovery on)

Each run is a process of its own, in turns; medians of five. A rate counts items by the clock on the wall; CPU is that of the whole process
while the flow runs, all its threads.

Two workers can be twice as fast only where two cores are free. So beside their time on the wall stands how much faster two processes that only
count were than one, in the same round; and what the CPU says: that of one worker's run against that of the busiest process of two workers' run,
which is their time on the wall where each process has a core, and against half of what all of them took, which is that where they have two cores
together.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
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
#: Name, items, keys, partitions of the source.
WORKER_CASES = [
    ("keyed count", 1_500_000, 100, 1),
    ("keyed count", 1_500_000, 100, 2),
    ("keyed count", 500_000, 100_000, 2),
    ("event-time window", 750_000, 100, 1),
    ("event-time window", 750_000, 100, 2),
]
START = datetime(2024, 1, 1, tzinfo=timezone.utc)


def nowhere(outputs: Any) -> Any:
    """A sink of a package that drops what it gets."""

    class Part(outputs.StatelessSinkPartition):  # type: ignore[misc, name-defined]
        def write_batch(self, items: list[Any]) -> None:
            pass

    class Nowhere(outputs.DynamicSink):  # type: ignore[misc, name-defined]
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Part:
            return Part()

    return Nowhere()


def run(package: str, case: str, items: int, batch: int, workers: int) -> None:
    """One run; prints seconds by the clock and of CPU."""
    module = modules(package)
    op, testing, outputs = module("operators"), module("testing"), module("outputs")

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
    op.output("out", s, nowhere(outputs))
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


def modules(package: str) -> Any:
    """A function of a module's name in Bytewax, to the module of the one or the other package."""

    def module(name: str) -> Any:
        if package == "skep":
            return importlib.import_module("skep.dataflow" + ("" if name == "dataflow" else f".{name}"))
        return importlib.import_module(f"bytewax.{name}")

    return module


def keyed_flow(package: str, case: str, items: int, keys: int, partitions: int) -> Any:
    """A flow of numbers, each of which has a key and is an event, in so many partitions."""
    module = modules(package)
    op, inputs, outputs = module("operators"), module("inputs"), module("outputs")

    class Numbers(inputs.StatefulSourcePartition):  # type: ignore[misc, name-defined]
        def __init__(self, numbers: range, at: int) -> None:
            self.numbers, self.at = numbers, at

        def next_batch(self) -> list[int]:
            found = list(self.numbers[self.at : self.at + 1_000])
            if not found:
                raise StopIteration()
            self.at += len(found)
            return found

        def snapshot(self) -> int:
            return self.at

    class Source(inputs.FixedPartitionedSource):  # type: ignore[misc, name-defined]
        def list_parts(self) -> list[str]:
            return [str(part) for part in range(partitions)]

        def build_part(self, step_id: str, for_part: str, resume_state: Any) -> Numbers:
            return Numbers(range(int(for_part), items, partitions), resume_state or 0)

    names = [f"k{i}" for i in range(keys)]
    flow = module("dataflow").Dataflow("beside")
    s = op.input("in", flow, Source())
    if case == "keyed count":
        s = op.stateful_map("count", op.key_on("key", s, lambda n: names[n % keys]), lambda n, _: ((n or 0) + 1,) * 2)
    else:
        win = module("operators.windowing")
        # An event each 10 ms. No key is woken by the clock: Bytewax would wake all of them at each batch of events this old.
        clock = win.EventClock(lambda n: START + timedelta(milliseconds=10 * n), timedelta(seconds=5), to_system_utc=lambda _: None)
        s = win.count_window("count", s, clock, win.TumblingWindower(timedelta(minutes=1), START), lambda n: names[n % keys]).down
    op.output("out", s, nowhere(outputs))
    return flow


def run_workers(package: str, case: str, items: int, keys: int, partitions: int, workers: int) -> None:
    """One run; prints seconds by the clock, of CPU, and of that of the busiest process."""
    module = modules(package)
    recovery = module("recovery")
    flow = keyed_flow(package, case, items, keys, partitions)
    used: list[float] = []
    wait = os.waitpid

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        pid, status, usage = os.wait4(pid, options)
        used.append(usage.ru_utime + usage.ru_stime)
        return pid, status

    os.waitpid = waitpid
    with tempfile.TemporaryDirectory() as dir:
        recovery.init_db_dir(dir, 1)
        how = {"epoch_interval": timedelta(seconds=10), "recovery_config": recovery.RecoveryConfig(dir)}
        wall, cpu = time.perf_counter(), time.process_time()
        if package == "skep":
            importlib.import_module("skep.run").cli_main(flow, workers_per_process=workers, **how)
        else:
            module("testing").cluster_main(flow, [], 0, worker_count_per_proc=workers, **how)
        used.append(time.process_time() - cpu)
        print(json.dumps([time.perf_counter() - wall, sum(used), max(used)]))
    os.waitpid = wait


def count(processes: int) -> None:
    """Prints how long so many processes take that do nothing but count, together as much as one alone."""
    wall = time.perf_counter()
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            n = 0
            for _ in range(20_000_000 // processes):
                n += 1
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    print(json.dumps([time.perf_counter() - wall]))


def main_workers() -> None:
    """Two workers beside one, as a table."""
    print(
        "| flow, recovery on | source | one worker, items/s | two, items/s | ratio | what two that only count had "
        "| ratio by the busiest process's CPU | ratio by half of all CPU | Bytewax, ratio | load |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case, items, keys, partitions in WORKER_CASES:
        found: dict[tuple[Any, ...], list[list[float]]] = {
            (*who, workers): [] for who in (("skep",), ("bytewax",), ("--count",)) for workers in (1, 2)
        }
        loads = []
        for _ in range(ROUNDS):
            loads.append(os.getloadavg()[0])
            for (package, workers), runs in found.items():
                more = [str(workers)] if package == "--count" else [case, *map(str, (items, keys, partitions, workers))]
                command = [sys.executable, __file__, *(["--count"] if package == "--count" else ["--workers", package]), *more]
                runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        one, two = found["skep", 1], found["skep", 2]

        def ratio(a: list[float], b: list[float]) -> str:
            """Each pair of a round is one measurement."""
            return f"{statistics.median(x / y for x, y in zip(a, b)):.2f} ×"

        def walls(package: str, workers: int) -> list[float]:
            return [run[0] for run in found[package, workers]]

        print(
            f"| {case}, {keys} keys | {partitions} partition{'s' if partitions > 1 else ''} "
            f"| {items / statistics.median(walls('skep', 1)) / 1e6:.2f} M | {items / statistics.median(walls('skep', 2)) / 1e6:.2f} M "
            f"| {ratio(walls('skep', 1), walls('skep', 2))} | {ratio(walls('--count', 1), walls('--count', 2))} "
            f"| {ratio([run[1] for run in one], [run[2] for run in two])} | {ratio([run[1] for run in one], [run[1] / 2 for run in two])} "
            f"| {ratio(walls('bytewax', 1), walls('bytewax', 2))} | {min(loads):.1f} to {max(loads):.1f} |",
            flush=True,
        )


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
    if sys.argv[1:] == ["--workers"]:
        main_workers()
    elif sys.argv[1:2] == ["--workers"]:
        run_workers(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    elif sys.argv[1:2] == ["--count"]:
        count(int(sys.argv[2]))
    elif len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
