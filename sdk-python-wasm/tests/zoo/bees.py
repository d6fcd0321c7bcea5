"""One Bee for each behaviour that the tests look at, in one component."""

import logging
import os
import random
import socket
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tabulate

from skep import Message, Swarm, on_start, register_bee

GREETING = Path(__file__).with_name("greeting.txt").read_text().strip()
READ_AT_BUILD = open("greeting.txt").read()
started = []
calls = 0


@on_start
def start():
    started.append(time.time())


@dataclass
class Order:
    id: int
    note: str = ""


@register_bee(name="echo")
def echo(swarm: Swarm, payload: bytes, context: Message):
    swarm.publish(payload, key=context.key, headers=context.headers)
    swarm.respond(payload)


@register_bee(name="fork")
def fork(swarm: Swarm, payload, context):
    swarm.publish(payload, to="left", headers={"from": "fork"})
    swarm.publish(payload, to="right")


@register_bee(name="shout")
def shout(swarm: Swarm, payload: str, context):
    swarm.publish(payload.upper(), key=context.key)


@register_bee(name="order")
def order(swarm: Swarm, payload: Order, context):
    swarm.respond({"id": payload.id + 1, "note": payload.note, "greeting": GREETING})


@register_bee(name="table")
def table(swarm: Swarm, payload, context):
    """Of a package that is vendored."""
    swarm.respond(tabulate.tabulate(payload))


@register_bee(name="late")
def late(swarm: Swarm, payload, context):
    """Imports and lookups of the standard library at run time, when there are no files left."""
    import colorsys
    import statistics

    parsed = datetime.strptime("2026-11-21", "%Y-%m-%d").isoformat()
    swarm.respond([colorsys.rgb_to_hsv(0, 0, 0)[2], statistics.mean([1, 3]), parsed, "ü".encode("latin-1").hex()])


@register_bee(name="sense")
def sense(swarm: Swarm, payload, context):
    swarm.respond([time.time(), random.random(), str(uuid.uuid4()), len(started), READ_AT_BUILD])


@register_bee(name="count")
def count(swarm: Swarm, payload, context):
    swarm.state["n"] = swarm.state.get("n", 0) + 1
    swarm.respond(swarm.state["n"])


@register_bee(name="kept")
def kept(swarm: Swarm, payload: bytes, context):
    """Keeps the very bytes, to be looked at from outside."""
    swarm.state.put_bytes("kept", payload)


@register_bee(name="static")
def static(swarm: Swarm, payload, context):
    global calls
    calls += 1
    swarm.respond(calls)


@register_bee(name="many")
def many(swarm: Swarm, messages: list[Message[str]]):
    for message in messages:
        swarm.publish(message.payload.upper(), context=message)
        if message.payload == "bad":
            raise ValueError("boom")


@register_bee(name="says")
def says(swarm: Swarm, payload, context):
    print("on stdout")
    logging.getLogger("bee").warning("a warning")
    swarm.respond(dict(swarm.config))


@register_bee(name="talk")
def talk(swarm: Swarm, payload: str, context):
    """Answers in parts."""
    for word in payload.split():
        swarm.part(word)


@register_bee(name="bad")
def bad(swarm: Swarm, payload: str, context):
    swarm.publish("never seen")
    match payload:
        case "raise":
            helper()
        case "exit":
            raise SystemExit(3)
        case "os-exit":
            os._exit(3)
        case "recursion":
            bad(swarm, payload, context)
        case "memory":
            kept = [0] * (1 << 28)  # 1 GiB
            swarm.respond(len(kept))
        case "write":
            open("/tmp/x", "w")
        case "read":
            open("greeting.txt")
        case "socket":
            socket.create_connection(("127.0.0.1", 80))
        case "thread":
            threading.Thread(target=print).start()
        case "subprocess":
            subprocess.run(["ls"])
        case "nan":
            swarm.respond({"x": float("nan")})
        case "object":
            swarm.respond(object())
        case "import":
            __import__("wave")
        case "state":
            swarm.state["n"] = "x" * (300 << 10)
        case "secret":
            swarm.secret("token")
        case "loop":
            while True:
                pass
    swarm.respond("fine")


def helper():
    raise ValueError("the hive is on fire")
