"""Flows that chance makes, as a list of steps, so that each can be made several times with several modules of operators."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

#: A step: the operators' module, its name and a stream, to a stream.
Step = Callable[[Any, str, Any], Any]
LONG = timedelta(days=1)


def sums(state: int | None, value: Any) -> tuple[int, int]:
    total = (state or 0) + number(value)
    return total, total


def number(value: Any) -> int:
    """Whatever came, as a number: steps follow each other in any order."""
    if isinstance(value, (list, tuple)):
        return sum(number(one) for one in value)
    return 0 if value is None else int(value)


def until_odd(state: Any, value: Any) -> tuple[Any, list[Any]]:
    """Discards at odd numbers."""
    held = [*(state or []), number(value)]
    return (None, [held]) if held[-1] % 2 else (held, [])


class Program:
    """A flow as a list of steps, so that it can be made twice."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.chance = chance
        self.items = [chance.randrange(50) for _ in range(chance.choice([0, 1, 7, 40]))]
        self.batch_size = chance.choice([1, 3, 100])
        self.steps: list[Step] = []
        self.names: list[str] = []
        self.keyed = False
        #: Whether each key's values come in one order, whatever runs the flow; and whether all items do. Steps to which order matters are
        #: chosen only where it is so.
        self.ordered_by_key = self.ordered = True
        for _ in range(chance.randrange(1, 8)):
            self.add(chance.choice(self.keyed_kinds() if self.keyed else self.plain_kinds()))

    def plain_kinds(self) -> list[str]:
        return ["map", "filter", "flat_map", "filter_map", "flatten", "branch", "merge", "redistribute", "batch", "key_on", "key_on", "count_final"]

    def keyed_kinds(self) -> list[str]:
        kinds = ["map_value", "filter_value", "flat_map_value", "filter_map_value", "key_rm", "reduce_final", "max_final", "min_final", "fold_sum"]
        if self.ordered_by_key:
            kinds += ["stateful_map", "stateful_flat_map", "fold_list", "collect", "stateful", "join_first", "join_last", "join_product"]
        return kinds

    def add(self, kind: str) -> None:
        n = self.chance.randrange(1, 5)
        make: dict[str, Step] = {
            "map": lambda op, name, s: op.map(name, s, lambda x: number(x) * 3 % 17),
            "filter": lambda op, name, s: op.filter(name, s, lambda x: number(x) % 3 != 0),
            "flat_map": lambda op, name, s: op.flat_map(name, s, lambda x: [x] * (number(x) % 3)),
            "filter_map": lambda op, name, s: op.filter_map(name, s, lambda x: number(x) + 1 if number(x) % n else None),
            "flatten": lambda op, name, s: op.flatten(name, op.map(name + "l", s, lambda x: [x, 1])),
            "branch": lambda op, name, s: op.branch(name, s, lambda x: number(x) % 2 == 0).trues,
            "merge": lambda op, name, s: op.merge(name, s, op.map(name + "m", s, lambda x: number(x) + n)),
            "redistribute": lambda op, name, s: op.redistribute(name, s),
            "batch": lambda op, name, s: op.flat_map_batch(name, s, lambda xs: [number(x) for x in xs]),
            "key_on": lambda op, name, s: op.key_on(name, s, lambda x: str(number(x) % n)),
            "key_rm": lambda op, name, s: op.key_rm(name, s),
            "map_value": lambda op, name, s: op.map_value(name, s, lambda x: number(x) + n),
            "filter_value": lambda op, name, s: op.filter_value(name, s, lambda x: number(x) % 3 != 0),
            "flat_map_value": lambda op, name, s: op.flat_map_value(name, s, lambda x: [number(x)] * (number(x) % 3)),
            "filter_map_value": lambda op, name, s: op.filter_map_value(name, s, lambda x: number(x) if number(x) % n else None),
            "reduce_final": lambda op, name, s: op.reduce_final(name, s, lambda x, y: number(x) + number(y)),
            "count_final": lambda op, name, s: op.count_final(name, s, lambda x: str(number(x) % n)),
            "max_final": lambda op, name, s: op.max_final(name, s, by=number),
            "min_final": lambda op, name, s: op.min_final(name, s, by=lambda x: (number(x), repr(x))),
            "fold_sum": lambda op, name, s: op.fold_final(name, s, lambda: n, lambda a, x: a + number(x)),
            "fold_list": lambda op, name, s: op.fold_final(name, s, list, lambda a, x: [*a, x]),
            "collect": lambda op, name, s: op.collect(name, s, LONG, n),
            "stateful_map": lambda op, name, s: op.stateful_map(name, s, sums),
            "stateful_flat_map": lambda op, name, s: op.stateful_flat_map(name, s, until_odd),
            "stateful": lambda op, name, s: op.stateful(name, s, lambda state: few(op, n, state)),
        }
        for mode in ("first", "last", "product"):
            make[f"join_{mode}"] = lambda op, name, s, mode=mode: op.join(
                name, s, op.filter_value(name + "f", s, lambda x: number(x) % 2 == 0), insert_mode=mode, emit_mode="final"
            )
        self.steps.append(make[kind])
        self.names.append(kind)
        if kind == "key_on":
            self.keyed, self.ordered_by_key = True, self.ordered
        elif kind == "count_final":
            self.keyed, self.ordered, self.ordered_by_key = True, False, True
        elif kind == "key_rm":
            self.keyed = False
        elif kind in ("merge", "redistribute"):
            self.ordered = False
        elif kind not in ("map_value", "filter_value", "flat_map_value", "filter_map_value") and self.keyed:
            # Keys take turns as they like, and values that are equal in size may differ.
            self.ordered = False
            self.ordered_by_key = self.ordered_by_key and not kind.startswith("max")

    def make(self, op: Any, flow: Any, source: Any) -> Any:
        s = op.input("in", flow, source)
        for index, step in enumerate(self.steps):
            s = step(op, f"s{index}", s)
        return s


def few(op: Any, n: int, state: Any) -> Any:
    class Few(op.StatefulLogic):  # type: ignore[misc, name-defined]
        """Forgets after n values, and tells at the end what it holds."""

        def __init__(self) -> None:
            self.held = state or []

        def on_item(self, value: Any) -> Any:
            self.held = [*self.held, value]
            return [len(self.held)], len(self.held) == n

        def on_eof(self) -> Any:
            return [list(self.held)], True

        def snapshot(self) -> Any:
            return self.held

    return Few()
