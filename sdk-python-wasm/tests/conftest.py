"""What the tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skep import registry
from skep.pytest_plugin import find_skep


@pytest.fixture(autouse=True)
def blank_registry() -> Iterator[None]:
    """Each test registers its own Bees."""
    bees, starts = dict(registry.BEES), list(registry.STARTS)
    registry.BEES.clear()
    registry.STARTS.clear()
    yield
    registry.BEES.clear()
    registry.BEES.update(bees)
    registry.STARTS[:] = starts


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file with Bees."""

    def write(text: str, name: str = "bees.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).lstrip())
        return path

    return write


class Node:
    """The real binary, on a free port, with data of its own."""

    def __init__(self, binary: str, data: Path) -> None:
        self.binary = binary
        self.data = data
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self, port: int = 0) -> None:
        command = [self.binary, "serve", "--data", str(self.data), "--listen", f"127.0.0.1:{port}", "--no-admin"]
        self.log = open(self.data.parent / "node.log", "a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert " serves " in first, (self.data.parent / "node.log").read_text()
        self.url = first.split()[-1]

    def stop(self, kill: bool = False) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self.process.wait(60)
            self.process = None
            self.log.close()

    def skep(self, *arguments: str, ok: bool = True, given: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [self.binary, *arguments],
            env={**os.environ, "SKEP_NODE": self.url, "SKEP_PY": f"{sys.executable} -m skep", **env},
            input=given,
            capture_output=True,
            text=True,
        )
        assert not ok or ran.returncode == 0, ran.stderr
        return ran


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    binary = find_skep()
    if binary is None:
        pytest.skip("no `skep` on PATH or in SKEP_BIN")
    found = Node(binary, tmp_path_factory.mktemp("node") / "data")
    found.start()
    yield found
    found.stop()


@pytest.fixture
def node_at() -> Callable[[Path], Node]:
    """Makes one that has its data in a folder, for a test that starts several."""
    binary = find_skep()
    if binary is None:
        pytest.skip("no `skep` on PATH or in SKEP_BIN")
    return lambda data: Node(binary, data)


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Node]:
    """One that the test may kill and start again."""
    binary = find_skep()
    if binary is None:
        pytest.skip("no `skep` on PATH or in SKEP_BIN")
    found = Node(binary, tmp_path / "data")
    found.start()
    yield found
    found.stop()
