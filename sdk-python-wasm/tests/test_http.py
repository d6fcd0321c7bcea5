"""Requests that a Bee sends: as a plain function in a test, and by a component on a real node."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from skep import Admin, BeeError, DevSwarm, Gateway, SwarmCreationError, http, register_bee

FETCHER = Path(__file__).parent / "outgoing" / "fetcher.py"


def swarm(grants: str) -> str:
    return f"""
name: out
bees:
  - {{ name: fetch, module: fetcher, input: {{ gateway: out }}, retry: {{ attempts: 1 }}{grants} }}
"""


class Other(BaseHTTPRequestHandler):
    """Tells what it was sent."""

    def do_GET(self) -> None:
        if self.path == "/broken":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            self.close_connection = True
            return
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        status = int(self.path[1:]) if self.path[1:].isdigit() else 200
        shown = {name.lower(): value for name, value in self.headers.items()}
        told = json.dumps({"path": self.path, "method": self.command, "sent": len(sent), "start": sent[:20].decode(), "headers": shown}).encode()
        if self.path == "/long":
            told = b"x" * 1_000_000
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


# --- as a function ---------------------------------------------------------------------------------------------------


def scored(swarm, order):
    answer = http.post("https://api.example.com/score?key=1", json=order, headers={"authorization": "Bearer x"}, timeout=2.5)
    swarm.respond({"status": answer.status, "score": answer.json()["score"], "kind": answer.header("CONTENT-TYPE")})


def test_a_function_answers_in_the_network_s_place():
    asked = []

    def answer(request):
        asked.append(request)
        return http.Response(200, b'{"score": 7}', [("Content-Type", "application/json")])

    dev = DevSwarm(http=answer)
    scored(dev, {"item": "ä"})
    assert dev.responded == [{"status": 200, "score": 7, "kind": "application/json"}]
    (request,) = asked
    assert (request.method, request.url, request.timeout_ms) == ("POST", "https://api.example.com/score?key=1", 2500)
    assert json.loads(request.body) == {"item": "ä"}
    assert request.headers == [("authorization", "Bearer x"), ("content-type", "application/json")]
    assert request.shown == "POST https://api.example.com/score"


def test_nothing_is_sent_that_is_not_granted():
    dev = DevSwarm()
    with pytest.raises(http.HttpError, match="no hosts are granted") as failed:
        scored(dev, {})
    assert failed.value.code == "http-request-denied" and isinstance(failed.value, BeeError)
    # A Bee that does not catch it fails its message.
    register_bee("scored")(scored)
    (outcome,) = dev.outcomes("scored", [{}])
    assert (outcome.ended, outcome.about) == ("fail", "HttpError")


@pytest.mark.parametrize(
    ("arguments", "how", "says"),
    [
        (("GET", "ftp://a"), {}, "http://"),
        (("GET", "api.example.com"), {}, "http://"),
        (("GET", b"http://a"), {}, "http://"),
        (("G T", "http://a"), {}, "no method"),
        (("", "http://a"), {}, "no method"),
        (("POST", "http://a"), {"body": b"x" * (4 << 20), "json": None, "headers": None}, ""),
        (("POST", "http://a"), {"body": b"x" * ((4 << 20) + 1)}, "at most 4194304 bytes"),
        (("POST", "http://a"), {"body": "a", "json": {}}, "either"),
        (("GET", "http://a"), {"timeout": -1}, "not negative"),
    ],
)
def test_what_cannot_be_a_request(arguments, how, says):
    DevSwarm(http=lambda request: http.Response(204))
    if not says:
        assert http.request(*arguments, **how).status == 204
        return
    with pytest.raises((ValueError, TypeError), match=says):
        http.request(*arguments, **how)


def test_a_function_that_answers_something_else_is_told():
    DevSwarm(http=lambda request: {"status": 200})
    with pytest.raises(TypeError, match="skep.http.Response, not dict"):
        http.get("http://a")


# --- on a node -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fetch(node, other):
    """Sends by a Bee whose manifest lists one host, and gives what the Bee was answered."""
    with Admin(node.url) as admin:
        pushed = admin.push(FETCHER)
        assert list(pushed.needs) == ["http"]
        with pytest.raises(SwarmCreationError, match="grants none"):
            admin.apply(swarm(""))
        admin.apply(swarm(f", http: ['{other}']"))
    with Gateway(node.url) as gateway:
        yield lambda **asked: gateway.request("out", asked).payload


def test_a_component_sends_what_its_bee_says(fetch, other):
    got = fetch(method="GET", url=f"{other}/a/b?c=d#e", headers={"x-from": "a bee"})
    told = json.loads(got["text"] + "}" * 0) if got["length"] <= 200 else None
    assert got["status"] == 200 and got["kind"] == "application/json"
    assert told is None or told["path"] == "/a/b?c=d"
    assert '"path": "/a/b?c=d"' in got["text"] and '"method": "GET"' in got["text"]
    assert '"path": "/?q=1"' in fetch(method="GET", url=f"{other}?q=1")["text"]
    sent = fetch(method="POST", url=other, body="0123456789" * 10_000)
    assert '"sent": 100000, "start": "01234567890123456789"' in sent["text"]
    assert fetch(method="PUT", url=f"{other}/404", body="x")["status"] == 404
    assert fetch(method="HEAD", url=other) | {"kind": None} == {"status": 200, "kind": None, "length": 0, "text": ""}
    assert fetch(method="GET", url=f"{other}/long")["length"] == 1_000_000
    assert fetch(method="GET", url=other, timeout=5)["status"] == 200


def test_what_is_not_listed_or_broken_has_a_code(fetch, other):
    port = other.rpartition(":")[2]
    for url, code in [
        ("http://127.0.0.1:1/", "http-request-denied"),
        (f"http://localhost:{port}/", "http-request-denied"),
        ("http://169.254.169.254/latest/meta-data", "http-request-denied"),
        (f"http://2130706433:{port}/", "http-request-uri-invalid"),
    ]:
        assert fetch(method="GET", url=url) == {"error": code}, url
    assert "error" in fetch(method="GET", url=f"{other}/broken")


def test_a_bee_that_sends_nothing_has_none_of_it(node, source):
    plain = source('from skep import register_bee\n\n@register_bee(name="p")\ndef p(swarm, payload):\n    swarm.respond(payload)\n', "plain.py")
    with Admin(node.url) as admin:
        assert not admin.push(plain).needs
