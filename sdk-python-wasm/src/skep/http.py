"""Requests over HTTP, to the hosts that the manifest lists with ``http: [api.example.com]``.

    from skep import http

    @register_bee(name="enrich")
    def enrich(swarm: Swarm, order, context):
        answer = http.post("https://api.example.com/v1/score", json=order, headers={"authorization": f"Bearer {swarm.secret('api-key')}"})
        if answer.status != 200:
            raise BeeError(f"answered {answer.status}")
        swarm.publish(answer.json())

A request is not part of what is committed with the message: an attempt that fails after it sends it again. The node adds
``idempotency-key: <message>-<n>`` to what is not GET, HEAD or OPTIONS, unless the Bee sets one: the same at each attempt. A redirect is an answer
like others. A module that imports this is applied only where its Bees are granted hosts.
"""

from __future__ import annotations

import json as _json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from .errors import BeeError, milliseconds
from .host import current
from .payload import JSON, to_bytes

#: What a node sends and takes.
BODY_BYTES_MAX = 4 << 20
Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class HttpError(BeeError):
    """There is no answer. One whose status says that something is wrong is an answer."""

    def __init__(self, code: str, text: str = "") -> None:
        Exception.__init__(self, text or code)
        #: In the words of ``wasi:http``: ``http-request-denied``, ``destination-ip-prohibited``, ``connection-timeout``…
        self.code = code


@dataclass(frozen=True)
class Request:
    """What is to be sent, as a test's function sees it."""

    method: str
    url: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    #: For the connection, for the first byte of the answer, and between two pieces of it. None: as the node has it.
    timeout_ms: int | None = None

    @property
    def shown(self) -> str:
        """Method and URL without its query, which may have secrets."""
        return f"{self.method} {self.url.partition('?')[0].partition('#')[0]}"

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of a name, in whatever case."""
        return _header(self.headers, name, default)


@dataclass(frozen=True)
class Response:
    """An answer, whatever its status."""

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of a name, in whatever case."""
        return _header(self.headers, name, default)

    @property
    def text(self) -> str:
        """The body as UTF-8; what is none is replaced."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON. ValueError: it is none."""
        return _json.loads(self.body)


def _header(headers: list[tuple[str, str]], name: str, default: str | None) -> str | None:
    wanted = name.lower()
    return next((value for known, value in headers if known.lower() == wanted), default)


def request(
    method: str,
    url: str,
    *,
    headers: Headers | None = None,
    body: bytes | str = b"",
    json: Any = None,
    timeout: float | timedelta | None = None,
) -> Response:
    """Sends a request and waits for the whole answer.

    ``json`` is sent as JSON, with its content type; ``timeout`` are seconds for the connection, for the answer to begin and for each piece of
    it: 10 and 30 by default, which are the most. The stage's ``timeout`` ends all of it.

    Raises HttpError when there is no answer, ValueError for what cannot be a request.
    """
    host = current()
    if host is None:
        raise BeeError("requests are sent while a message is handled, not when the file is read; in a test make a DevSwarm(http=...) first")
    pairs = [] if headers is None else [(str(n), str(v)) for n, v in (headers.items() if isinstance(headers, Mapping) else headers)]
    if json is not None:
        if body:
            raise ValueError("give either body= or json=")
        body = to_bytes(json, JSON)
        if _header(pairs, "content-type", None) is None:
            pairs.append(("content-type", "application/json"))
    data = body.encode() if isinstance(body, str) else bytes(body)
    if len(data) > BODY_BYTES_MAX:
        raise ValueError(f"a request carries at most {BODY_BYTES_MAX} bytes, this one {len(data)}")
    if not isinstance(method, str) or not method.isalpha() or not method.isascii():
        raise ValueError(f"{method!r} is no method")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"the URL begins with http:// or https://, got {url!r}"[:200])
    found: Response = host.fetch(Request(method.upper(), url, pairs, data, None if timeout is None else milliseconds(timeout)))
    return found


def get(url: str, *, headers: Headers | None = None, timeout: float | timedelta | None = None) -> Response:
    """``GET``; see :func:`request`."""
    return request("GET", url, headers=headers, timeout=timeout)


def post(
    url: str, *, headers: Headers | None = None, body: bytes | str = b"", json: Any = None, timeout: float | timedelta | None = None
) -> Response:
    """``POST``; see :func:`request`."""
    return request("POST", url, headers=headers, body=body, json=json, timeout=timeout)
