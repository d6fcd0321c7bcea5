"""A node with TLS and tokens: what it takes to come in, from Python."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep import Admin, AsyncGateway, Gateway, LoginError, SwarmNotFound, Unavailable
from skep.pytest_plugin import find_skep


class Guarded:
    """A node with a certificate of its own and an operator's token."""

    def __init__(self, binary: str, room: Path) -> None:
        self.binary = binary
        self.certs = room / "certs"
        self.ca = self.certs / "ca.pem"
        subprocess.run([binary, "certs", "dev", str(self.certs)], check=True, capture_output=True)
        token = room / "operator.token"
        command = [binary, "serve", "--data", str(room / "data"), "--listen", "127.0.0.1:0", "--no-admin"]
        command += ["--tls-cert", str(self.certs / "node.pem"), "--tls-key", str(self.certs / "node.key")]
        command += ["--bootstrap-token", str(token)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.operator = token.read_text().strip()

    def skep(self, *arguments: str) -> str:
        env = {**os.environ, "SKEP_NODE": self.url, "SKEP_TOKEN": self.operator, "SKEP_CA": str(self.ca)}
        ran = subprocess.run([self.binary, *arguments], env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    binary = find_skep()
    if binary is None:
        pytest.skip("no `skep` on PATH or in SKEP_BIN")
    node = Guarded(binary, tmp_path_factory.mktemp("guarded"))
    yield node
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(60)


def test_a_token_and_a_root_are_what_it_takes(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarded.url.startswith("https://")
    guarded.skep("tenant", "create", "acme")
    tokens = {role: guarded.skep("token", "create", "--tenant", "acme", "--role", role) for role in ("read", "invoke")}
    assert Admin(guarded.url, token=tokens["read"], ca=guarded.ca).swarms() == []
    with pytest.raises(LoginError, match="invoke"):
        Gateway(guarded.url, token=tokens["read"], ca=guarded.ca).request("orders", {})
    with pytest.raises(SwarmNotFound):
        Gateway(guarded.url, token=tokens["invoke"], ca=guarded.ca).request("orders", {})
    with pytest.raises(LoginError, match="valid token"):
        Gateway(guarded.url, ca=guarded.ca).request("orders", {})
    with pytest.raises(Unavailable):
        Gateway(guarded.url, token=tokens["invoke"], timeout=2).request("orders", {})

    monkeypatch.setenv("SKEP_NODE", guarded.url)
    monkeypatch.setenv("SKEP_TOKEN", tokens["invoke"])
    monkeypatch.setenv("SKEP_CA", str(guarded.ca))
    with pytest.raises(SwarmNotFound):
        Gateway().request("orders", {})

    async def ask() -> None:
        async with AsyncGateway() as gateway:
            await gateway.request("orders", {})

    with pytest.raises(SwarmNotFound):
        asyncio.run(ask())
    guarded.skep("token", "revoke", tokens["invoke"].split("_")[1])
    with pytest.raises(LoginError):
        Gateway().request("orders", {})


def test_a_token_does_not_leave_the_machine_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKEP_TOKEN_IN_THE_CLEAR", raising=False)
    with pytest.raises(ValueError, match="in the clear"):
        Gateway("http://10.0.0.1:4020", token="skep_x")
    monkeypatch.setenv("SKEP_TOKEN_IN_THE_CLEAR", "1")
    Gateway("http://10.0.0.1:4020", token="skep_x").close()
