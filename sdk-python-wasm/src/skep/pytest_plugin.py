"""Fixtures: Bees as plain functions, and the component of a file in the real engine.

    def test_both(dev_swarm, skep_engine):
        built = skep_engine("hello.py")
        messages = [{"name": "Bee"}]
        assert built.outcomes("hello", messages) == dev_swarm.outcomes("hello", messages)

and a node of the test's own, for a Swarm as a whole:

    def test_the_swarm(skep_node):
        skep_node.skep("up", ".", "--once", "--node", skep_node.url)
        assert Gateway(skep_node.url).request("hello", {"name": "Bee"}).payload == {"greeting": "Hello Bee"}
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .dev import DevSwarm, Outcome
from .message import Message


@pytest.fixture
def dev_swarm() -> DevSwarm:
    """A Swarm that records what a Bee did."""
    return DevSwarm()


@pytest.fixture
def skep_engine(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str | Path], Component]:
    """``skep_engine("hello.py")`` builds the component, once for the same content. Skips where there is no ``skep`` (``SKEP_BIN``)."""
    binary = find_skep()
    if binary is None:
        pytest.skip("no `skep` on PATH or in SKEP_BIN, whose engine runs components")

    def build(file: str | Path) -> Component:
        from .tool.build import build as make

        source = Path(file)
        if not source.is_absolute():
            source = request.path.parent / source
        out = tmp_path / source.with_suffix(".wasm").name
        make(source, out, quiet=True)
        return Component(out, binary)

    return build


@pytest.fixture
def skep_node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A real node, empty, on a free port of this machine; it ends with the test. Skips where there is no ``skep`` (``SKEP_BIN``)."""
    binary = find_skep()
    if binary is None:
        pytest.skip("no `skep` on PATH or in SKEP_BIN, which would be the node")
    with open(tmp_path / "node.log", "w+") as log:
        command = [binary, "serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--no-admin"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            # `skep 0.1.0 serves http://127.0.0.1:34567`, once it does.
            first = process.stdout.readline()
            if " serves " not in first:
                log.seek(0)
                raise RuntimeError(f"skep serve: {log.read().strip() or 'it ended and said nothing'}")
            yield Node(first.split()[-1], request.path.parent, binary)
        finally:
            process.terminate()
            try:
                process.wait(NODE_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


#: A node that stops works off what it has begun; it needs a second.
NODE_STOP_S = 60


class Node:
    """A node of one test; commands run in the folder of the test's file."""

    def __init__(self, url: str, folder: Path, binary: str) -> None:
        self.url = url
        self._folder = folder
        self._binary = binary

    def skep(self, *arguments: str) -> str:
        """Runs ``skep`` with these arguments against the node, and gives what it printed. RuntimeError: it failed, and what it said."""
        # What builds Python files is what runs the test.
        env = {**os.environ, "SKEP_NODE": self.url, "SKEP_PY": f"{sys.executable} -m skep"}
        ran = subprocess.run([self._binary, *arguments], cwd=self._folder, env=env, capture_output=True, text=True)
        if ran.returncode != 0:
            raise RuntimeError(f"skep {' '.join(arguments)}: {ran.stderr.strip()}")
        return ran.stdout


def find_skep() -> str | None:
    return os.environ.get("SKEP_BIN") or shutil.which("skep")


class Component:
    """A built component, run by ``skep filter``: the engine and the limits of a node's stage."""

    def __init__(self, wasm: Path, binary: str) -> None:
        self.wasm = wasm
        self._binary = binary

    def outcomes(
        self,
        bee: str,
        messages: Iterable[Any],
        *,
        config: dict[str, str] | None = None,
        secrets: dict[str, str] | None = None,
        models: dict[str, str | Path] | None = None,
        options: Iterable[str] = (),
    ) -> list[Outcome]:
        """What became of each message: messages, or payloads, as :meth:`skep.DevSwarm.outcomes` takes them."""
        lines = []
        for given in messages:
            message = given if isinstance(given, Message) else Message(given)
            said = {"hex": message.data.hex(), "headers": message.headers, "attempt": message.attempt}
            said["accepted_ms"] = message.accepted_ms
            if message.key is not None:
                said["key"] = message.key
            lines.append(json.dumps(said))
        command = [self._binary, "filter", str(self.wasm), "--bee", bee, "--messages", "-o", "json", "-q", *options]
        for name, value in (config or {}).items():
            command += ["--config", f"{name}={value}"]
        for name, file in (models or {}).items():
            command += ["--model", f"{name}={file}"]
        # Files, for arguments are seen by every user of the machine.
        with tempfile.TemporaryDirectory() as folder:
            for number, (name, value) in enumerate((secrets or {}).items()):
                secret = Path(folder, str(number))
                secret.write_bytes(value.encode())
                command += ["--secret", f"{name}={secret}"]
            ran = subprocess.run(command, input="\n".join([*lines, ""]), capture_output=True, text=True)
        # 1 says that some message failed, which the outcomes say too.
        if ran.returncode not in (0, 1):
            raise RuntimeError(f"skep filter: {ran.stderr.strip()}")
        found = [_outcome(json.loads(line)) for line in ran.stdout.splitlines()]
        if len(found) != len(lines):
            raise RuntimeError(f"skep filter: {ran.stderr.strip() or 'it ended early'}")
        return found


def _outcome(said: dict[str, Any]) -> Outcome:
    out = [
        (bytes.fromhex(e["hex"]), e["to"], e["key"], [(name, value) for name, value in e["headers"]])
        for e in said["publish"]
    ]
    respond = [bytes.fromhex(r["hex"]) for r in said["respond"]]
    detail = said["detail"] + (f"\n{said['stderr']}" if said.get("stderr") else "")
    return Outcome(out, respond, said["ended"], said["reason"], detail)
