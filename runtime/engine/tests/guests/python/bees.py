"""Bees in Python, one for each behaviour that the engine's tests look at."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.handler import Bee
from wit_world.imports import state, step
from wit_world.imports.types import (
    Disposition_Done,
    Disposition_Fail,
    Disposition_Reject,
    Disposition_RetryAfter,
    Emit,
    Failure,
    Input_One,
    Outcome,
)

calls = 0


def answer(text):
    return Outcome(publish=[], respond=[text.encode()], disposition=Disposition_Done())


def echo(value):
    emit = Emit(to=None, key=value.key, headers=value.headers, payload=value.payload)
    return Outcome(publish=[emit], respond=[value.payload], disposition=Disposition_Done())


def choosy(value):
    match value.payload:
        case b"reject":
            disposition = Disposition_Reject("not today")
        case b"later":
            disposition = Disposition_RetryAfter(1500)
        case b"fail":
            disposition = Disposition_Fail(Failure("it broke", "in Python"))
        case _:
            return echo(value)
    return Outcome(publish=[], respond=[], disposition=disposition)


def count(value):
    stored = state.get("n")
    n = int(stored or b"0") + 1
    state.put("n", str(n).encode())
    return answer(str(n))


def forget(value):
    state.put("n", b"1")
    state.delete("n")
    return answer(str(state.get("n")))


def too_large(value):
    try:
        state.put("n", bytes(512 << 10))
    except Err as e:
        return answer(f"{type(e.value).__name__} {e.value.value}")


def static(value):
    """How often this instance has been called before."""
    global calls
    calls += 1
    return answer(str(calls - 1))


def throw(value):
    raise ValueError(f"the hive is on fire: {value.payload.decode()}")


def work(value):
    for _ in range(int(value.payload)):
        pass
    return answer("done")


def loop(value):
    while True:
        pass


def bomb(value):
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def survivor(value):
    """Meets the bound of its memory and lives on."""
    kept = []
    try:
        while True:
            kept.append(bytearray(1 << 20))
    except MemoryError:
        n = len(kept)
        del kept
        return answer(f"{n} MiB")


BEES = {
    "echo": echo,
    "choosy": choosy,
    "count": count,
    "forget": forget,
    "too-large": too_large,
    "static": static,
    "throw": throw,
    "work": work,
    "loop": loop,
    "bomb": bomb,
    "survivor": survivor,
}


class Handler(exports.Handler):
    def bees(self):
        return [Bee(name) for name in BEES]

    def process(self, bee, inputs):
        outcomes = []
        for index, input in enumerate(inputs):
            step.begin(index)
            assert isinstance(input, Input_One)
            outcomes.append(BEES[bee](input.value))
        return outcomes
