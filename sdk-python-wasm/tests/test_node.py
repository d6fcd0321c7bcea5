"""The whole way, on a real node: build, push, apply, call, and what fails; from Python and from the command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest

from skep import (
    Admin,
    AsyncGateway,
    Gateway,
    GatewayError,
    LoginError,
    ResourceNotFound,
    SwarmCreationError,
    SwarmDeletionError,
    SwarmNotFound,
    Unavailable,
)
from skep.client import DeadlineExceeded, Failed, Outcome, Redriven, Rejected
from skep.client.wire import out_message

ROOT = Path(__file__).parents[2]
HELLO = ROOT / "samples" / "hello-python"
ZOO = Path(__file__).parent / "zoo" / "bees.py"

SWARM = """
name: zoo
bees:
  - { name: bad, module: zoo, input: { gateway: bad }, retry: { attempts: 1 } }
  - { name: echo, module: zoo, input: { gateway: echo } }
  - { name: count, module: zoo, input: { gateway: count }, key: message, state: true }
  - { name: shout, module: zoo, input: { gateway: shout } }
  - { name: talk, module: zoo, input: { gateway: talk }, retry: { attempts: 1 } }
  - { name: many, module: zoo, input: { gateway: many }, retry: { attempts: 3, backoff: { first: 10ms, max: 20ms } } }
"""


@pytest.fixture(scope="module")
def gateway(node):
    with Gateway(node.url) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def admin(node):
    with Admin(node.url) as admin:
        yield admin


@pytest.fixture(scope="module")
def zoo(node, admin):
    admin.push(ZOO, name="zoo")
    admin.apply(SWARM)
    return "zoo"


def soon(look, patience=60):
    ends = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < ends, "not soon enough"
        time.sleep(0.05)
    return found


def test_the_tutorial(node, gateway):
    """As the ancestor's: two Bees, a manifest, a request, a log."""
    said = node.skep("up", str(HELLO), "--once", "--node", node.url)
    assert "push hello:latest" in said.stderr
    answer = gateway.request({"name": "Bee"}, gateway="hello-python")
    assert answer.payload == {"message": "Hello Bee, and goodbye!"}
    assert gateway.request("hello-python", {"name": "ü"}).payload["message"] == "Hello ü, and goodbye!"
    assert "greeting Bee" in node.skep("logs", "hello-python", "hello").stdout
    # Nothing changed, so nothing is built or pushed anew.
    again = node.skep("up", str(HELLO), "--once", "--node", node.url)
    assert "as built before" in again.stderr
    pushed = json.loads(node.skep("push", str(HELLO / "hello.py"), "-o", "json").stdout)
    assert pushed["known"] and pushed["bees"] == ["hello", "goodbye"] and pushed["name"] == "hello"


def test_a_dead_letter_has_the_traceback_and_so_has_the_log(zoo, node, gateway, admin):
    with pytest.raises(Failed) as failed:
        gateway.request("bad", b"raise")
    error = failed.value
    assert (error.outcome, error.reason) == (Outcome.DONE, "fail") or error.reason == "ValueError", error.reason
    assert "ValueError: the hive is on fire (bees.py:" in error.message
    assert isinstance(error.__cause__, grpc.RpcError)
    gateway.submit("bad", b"raise", b"fine", b"recursion")
    letters = soon(lambda: (found := admin.dead_letters("zoo", "bad")) and len(found) >= 2 and found)
    text = next(letter.detail for letter in letters if letter.payload == b"raise")
    assert "ValueError: the hive is on fire (bees.py:" in text and 'File "bees.py"' in text and "in helper" in text
    assert "RecursionError" in next(letter.detail for letter in letters if letter.payload == b"recursion")
    shown = node.skep("dlq", "zoo", "show", str(letters[0].id)).stdout
    assert "Traceback (most recent call last)" in shown
    assert any("the hive is on fire" in line.text for line in admin.logs("zoo", "bad"))
    assert "the hive is on fire" in node.skep("logs", "zoo", "bad").stdout


def test_dead_letters_are_found_tried_put_back_once_and_dropped(zoo, gateway, admin):
    for letter in admin.dead_letters("zoo", "bad"):
        assert admin.discard("zoo", [letter.id]) == 1
    begin = datetime.now(timezone.utc)
    gateway.submit("bad", b"raise", b"read")
    letters = soon(lambda: len(found := admin.dead_letters("zoo", "bad")) == 2 and found)
    raised = next(letter for letter in letters if letter.payload == b"raise")
    alike = [letter.id for letter in letters if letter.reason == raised.reason]
    assert [found.id for found in admin.dead_letters("zoo", "bad", reason=raised.reason)] == alike
    assert admin.dead_letters("zoo", "bad", reason="nothing-like-it") == []
    assert len(admin.dead_letters("zoo", "bad", limit=1)) == 1
    assert [found.id for found in admin.dead_letters("zoo", "bad", after=letters[0].id)] == [letters[1].id]
    assert len(admin.dead_letters("zoo", module=raised.module, since=begin - timedelta(minutes=1))) >= 2
    assert admin.dead_letters("zoo", "bad", until=begin - timedelta(minutes=1)) == []
    assert admin.dead_letters("zoo", "bad", key="nobody's") == []
    with pytest.raises(ValueError, match="no time zone"):
        admin.dead_letters("zoo", since=datetime.now())
    with pytest.raises(ValueError, match="`limit` is 0"):
        admin.dead_letters("zoo", limit=0)

    tried = admin.try_letter("zoo", raised.id)
    assert (tried.stage, tried.outcome) == ("bad", raised.reason), tried
    assert "the hive is on fire" in tried.detail + tried.stderr
    assert [found.id for found in admin.dead_letters("zoo", "bad")] == [letter.id for letter in letters]
    with pytest.raises(ResourceNotFound, match="no module `nowhere"):
        admin.try_letter("zoo", raised.id, module="nowhere")

    # It fails again, under an id of its own.
    back = admin.redrive("zoo", [raised.id, raised.id])
    assert (back.redriven, back.left) == (1, {}), back
    again = soon(lambda: admin.dead_letters("zoo", "bad", after=letters[1].id))
    assert again[0].payload == b"raise" and again[0].message == raised.message
    assert admin.redrive("zoo", iter([raised.id])) == Redriven(0, 1, {})
    assert admin.redrive("zoo", []) == Redriven(0, 0, {})
    ids = [letter.id for letter in admin.dead_letters("zoo", "bad")]
    assert admin.discard("zoo", [*ids, 1 << 40]) == len(ids) == 2
    with pytest.raises(SwarmNotFound):
        admin.redrive("nobody", [1])


def test_a_stage_and_a_swarm_are_paused_and_go_on(zoo, gateway, admin):
    assert admin.pause("zoo", "shout") == ["shout"]
    gateway.submit("shout", b"a", b"b")

    def waiting():
        return next(stage.unread for stage in admin.describe("zoo").stages if stage.name == "shout")

    soon(lambda: waiting() == 2)
    with pytest.raises(GatewayError, match="resume"):
        admin.pause("zoo", drain=5)
    assert admin.resume("zoo", "shout") == []
    soon(lambda: waiting() == 0)
    with pytest.raises((ResourceNotFound, SwarmNotFound), match="no stage `shoot`"):
        admin.pause("zoo", "shoot")
    with pytest.raises(ValueError, match="a whole Swarm"):
        admin.pause("zoo", "shout", drain=1)
    assert set(admin.pause("zoo", drain=30)) == {"bad", "echo", "count", "shout", "many", "talk"}
    with pytest.raises(Unavailable):
        gateway.request("echo", b"x", timeout=2)
    assert admin.resume("zoo") == []
    assert gateway.request("echo", b"x").payload == "x"

def test_a_bee_s_refusal_is_not_its_failure(zoo, gateway):
    with pytest.raises(Rejected, match="not UTF-8"):
        gateway.request("bad", b"\xff")


def test_a_batch_goes_on_without_what_is_bad_in_it(zoo, gateway, admin):
    gateway.submit("many", *[b"bad" if n == 7 else b"ok" for n in range(50)])
    soon(lambda: [one for one in admin.describe("zoo").stages if one.name == "many" and not one.unread and not one.parked])
    letters = soon(lambda: admin.dead_letters("zoo", "many"))
    assert [letter.payload for letter in letters] == [b"bad"]


def test_calls_of_every_form(zoo, gateway):
    assert gateway.request("echo", b"\xff\x00").payload == b"\xff\x00"
    assert gateway.request("echo", "text").payload == "text"
    assert gateway.request("echo", [1, None]).payload == [1, None]
    assert gateway.request("echo", {"a": 1}, headers={"h": "v"}, timeout=10).data == b'{"a":1}'
    found = list(gateway.requests("echo", ({"n": n} for n in range(2_000))))
    assert [one.payload["n"] for one in found] == list(range(2_000))
    mixed = list(gateway.requests("bad", [b"fine", b"raise", b"fine"]))
    assert isinstance(mixed[1], GatewayError) and mixed[0].payload == mixed[2].payload == "fine"
    assert gateway.submit("echo", *[{"n": n} for n in range(100)]) == 100
    assert gateway.submit_stream("echo", ({"n": n} for n in range(30_000))) == 30_000


def test_a_secret_is_read_where_it_is_granted(zoo, node, gateway, admin, tmp_path):
    value = tmp_path / "token"
    value.write_text("sesame")
    node.skep("secret", "set", "token", "--file", str(value))
    admin.apply("name: kept\nbees:\n  - { name: bad, module: zoo, input: { gateway: kept }, secrets: [token] }\n")
    assert gateway.request("kept", b"secret").payload == "fine"
    with pytest.raises(Failed, match="secret `token` is not granted"):
        gateway.request("bad", b"secret")
    assert "sesame" not in node.skep("secret", "list").stdout
    admin.delete("kept", discard=True)


def test_parts_of_an_answer_leave_one_by_one(zoo, gateway, admin):
    with gateway.stream("talk", "a b c") as parts:
        assert list(parts) == [b"a", b"b", b"c"]
    # Who takes no parts gets them joined.
    assert gateway.request("talk", "a b c").data == b"abc"
    # Nobody waits for what was submitted.
    gateway.submit("talk", "d")
    letter = soon(lambda: list(admin.dead_letters("zoo", stage="talk")))[0]
    assert "no caller waits for this message" in letter.detail and "bees.py:" in letter.detail


def test_versions_that_do_not_fit_are_told_once(node, monkeypatch):
    with Admin(node.url) as admin, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(SwarmCreationError):
            admin.apply("name: [\n")
        assert not told
    monkeypatch.setattr("skep.client.admin.VERSION", "9.9.0")
    with Admin(node.url) as admin:
        with pytest.warns(UserWarning, match=r"this `skep` package is 9\.9\.0, the node at .* is 0\."), pytest.raises(SwarmCreationError):
            admin.apply("name: [\n")
        with warnings.catch_warnings(record=True) as told, pytest.raises(SwarmCreationError):
            admin.apply("name: [\n")
        assert not told


def test_a_repeated_call_takes_effect_once(zoo, gateway, admin):
    first = gateway.request("count", {}, key="k", idempotency_key="once")
    again = gateway.request("count", {}, key="k", idempotency_key="once")
    assert first.payload == again.payload == 1
    assert gateway.request("count", {}, key="k").payload == 2
    assert admin.state("zoo", "count", "k") == {"n": b"2"}


def test_the_asynchronous_twin(zoo, node):
    async def calls():
        async with AsyncGateway(node.url) as gateway:
            answers = await asyncio.gather(*(gateway.request("echo", {"n": n}) for n in range(200)))
            assert [a.payload["n"] for a in answers] == list(range(200))
            assert await gateway.submit("echo", {"n": 1}, {"n": 2}) == 2
            found = [one async for one in gateway.requests("echo", [1, 2, 3])]
            assert [one.payload for one in found] == [1, 2, 3]
            with pytest.raises(SwarmNotFound):
                await gateway.request("nowhere", {})
            with pytest.raises(Failed):
                await gateway.request("bad", b"raise")

    asyncio.run(calls())


def test_the_named_errors(zoo, node, gateway, admin):
    with pytest.raises(SwarmNotFound) as missing:
        gateway.request("nowhere", {})
    assert missing.value.outcome is Outcome.NOT_DONE and missing.value.__cause__.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(SwarmNotFound):
        admin.describe("nowhere")
    with pytest.raises(SwarmNotFound):
        list(admin.logs("nowhere"))
    with pytest.raises(SwarmNotFound):
        admin.delete("nowhere")
    with pytest.raises(SwarmCreationError, match="nonsense"):
        admin.apply("name: x\nnonsense: 1\n")
    with pytest.raises(ResourceNotFound):
        admin.delete_module("nowhere")
    # It keeps state, so it is not deleted.
    with pytest.raises(SwarmDeletionError):
        admin.delete("zoo", timeout=1)
    assert gateway.request("echo", 1).payload == 1
    with Gateway("http://127.0.0.1:9", timeout=1) as away:
        with pytest.raises(Unavailable) as nobody:
            away.request("echo", {})
        assert nobody.value.outcome is Outcome.NOT_DONE
    with pytest.raises(DeadlineExceeded):
        gateway.request("bad", b"loop", timeout=0.5)
    for wrong in ("ftp://x", "http://", "://"):
        with pytest.raises(ValueError, match="no address of a node"):
            Gateway(wrong)
    with pytest.raises(ValueError, match="in the clear"):
        Gateway("http://example.org:4020", token="t")
    with pytest.raises(TypeError):
        gateway.request("echo")
    with pytest.raises(ValueError, match="at most 262144 bytes"):
        gateway.request("echo", b"x" * (257 << 10))


def test_a_token_goes_with_each_call_and_a_refusal_is_a_login_error(tls_node):
    """Against a gRPC server with TLS that wants a token, as a front of nodes is."""
    url, ca, seen = tls_node
    with Gateway(url, token="right", ca=ca) as gateway:
        assert gateway.request("echo", "hi").payload == "hi"
    with Gateway(url, token="wrong", ca=ca) as gateway, pytest.raises(LoginError) as refused:
        gateway.request("echo", "hi")
    assert refused.value.outcome is Outcome.NOT_DONE
    assert seen == ["Bearer right", "Bearer wrong"]
    with Gateway(url, token="right", timeout=2) as stranger, pytest.raises(Unavailable):
        stranger.request("echo", "hi")


@pytest.fixture
def tls_node(tmp_path):
    from concurrent import futures

    from skep.v1 import gateway_pb2, gateway_pb2_grpc

    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("no openssl, which makes the certificate")
    seen = []

    class Front(gateway_pb2_grpc.GatewayServicer):
        def Request(self, call, context):  # noqa: N802
            token = dict(context.invocation_metadata()).get("authorization")
            seen.append(token)
            if token != "Bearer right":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            return gateway_pb2.Reply(response=call.payload)

    server = grpc.server(futures.ThreadPoolExecutor(2))
    gateway_pb2_grpc.add_GatewayServicer_to_server(Front(), server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    server.start()
    yield f"https://localhost:{port}", cert, seen
    server.stop(None)


def test_a_stream_survives_the_node_s_death(zoo, node, admin):
    """Killed in the middle: the session is resumed, and each message is counted once."""
    port = int(node.url.rsplit(":", 1)[1])
    key = "stream"

    def messages():
        for n in range(20_000):
            if n == 12_000:
                node.stop(kill=True)
                node.start(port)
            yield out_message({"n": n}, key=key)

    with Gateway(node.url) as gateway:
        assert gateway.submit_stream("count", messages(), timeout=120) == 20_000

    def counted():
        with Admin(node.url) as again:
            return again.state("zoo", "count", key).get("n") == b"20000"

    soon(counted, 120)


def test_one_bee_three_forms_equal_bytes(zoo, node, gateway):
    """Filter, durable stage, synchronous endpoint: in Python, and in Rust."""
    lines = [json.dumps({"k": text}, ensure_ascii=False) for text in ("a", "ü", "x" * 200)]
    source = "".join(f"{line}\n" for line in lines)
    python = node.skep("filter", str(ZOO), "--bee", "shout", "-q", given=source).stdout
    rust_wasm = ROOT / "samples/target/wasm32-wasip2/release/hello_world.wasm"
    node.skep("push", str(ZOO), "--name", "zoo")
    endpoint = """
    name: forms
    bees:
      - {{ name: first, module: {module}, bee: {bee}, input: {{ gateway: forms }} }}
      - {{ name: tell, module: zoo, bee: echo, input: {{ bee: first }} }}
    """
    stage = endpoint + "  - {{ name: keep, module: zoo, bee: kept, input: {{ bee: tell }}, key: {key}, state: true }}\n"
    assert python == source.upper()
    modules = [("zoo", "shout", lines, python, "json:/K", ["A", "Ü", "X" * 200])]
    if rust_wasm.exists():
        names = [json.dumps({"name": name}) for name in ("Bee", "ü")]
        rust = node.skep("filter", str(rust_wasm), "--bee", "hello", "-q", given="\n".join([*names, ""])).stdout
        node.skep("push", str(rust_wasm), "--name", "rust-hello")
        modules.append(("rust-hello", "hello", names, rust, "json:/greeting", ["Hello Bee", "Hello ü"]))
    with Admin(node.url) as admin:
        for module, bee, given, filtered, key, keys in modules:
            wanted = filtered.encode().split(b"\n")[:-1]
            admin.apply(endpoint.format(module=module, bee=bee))
            # The synchronous endpoint: nothing on its path keeps anything, so it answers from memory.
            assert [gateway.request("forms", line).data for line in given] == wanted
            # The durable stage: what it published lies in the state of the last.
            admin.apply(stage.format(module=module, bee=bee, key=key))
            gateway.submit("forms", *given)
            for key, data in zip(keys, wanted):
                soon(lambda key=key, data=data: admin.state("forms", "keep", key).get("kept") == data)
            admin.delete("forms", discard=True)


def test_what_is_not_right_with_python_files_is_told_by_the_command_line(node, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("import nosuch\n")
    failed = node.skep("push", str(bad), ok=False)
    assert failed.returncode == 3 and "bad.py:1: there is no module `nosuch`" in failed.stderr
    assert "requirements.txt" in failed.stderr
    failed = node.skep("push", str(bad), ok=False, SKEP_PY="/nowhere/skep-py")
    assert failed.returncode == 4 and "`skep-py`, which makes a component of it, cannot be run" in failed.stderr
    assert "pip install ./sdk-python-wasm" in failed.stderr
    failed = node.skep("push", str(tmp_path / "none.py"), ok=False)
    assert failed.returncode == 4 and "none.py" in failed.stderr
    (tmp_path / "swarm.yaml").write_text("name: s\nbees:\n  - { name: a, module: ./bad.py, input: { gateway: a } }\n")
    failed = node.skep("up", str(tmp_path), "--once", ok=False)
    assert failed.returncode == 3 and "bad.py:1" in failed.stderr
