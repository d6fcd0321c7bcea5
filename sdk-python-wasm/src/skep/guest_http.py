"""The module's side of ``wasi:http``: what :mod:`skep.http` calls where a component runs. Only in components that import it."""

from __future__ import annotations

import re
from typing import Any

from componentize_py_types import Err, Ok
from wit_world.imports import http_types as types
from wit_world.imports import outgoing_handler
from wit_world.imports.streams import StreamError_Closed

from .http import HttpError, Request, Response

#: Bytes asked of a stream at once, and written to one: what `wasi:io` takes in one blocking write.
READ_BYTES = 64 << 10
WRITE_BYTES = 4 << 10

_METHODS = {
    name.upper(): getattr(types, f"Method_{name}")
    for name in ("Get", "Head", "Post", "Put", "Delete", "Connect", "Options", "Trace", "Patch")
}


def _code(error: Any) -> str:
    """`ErrorCode_HttpRequestDenied` as the interface has it."""
    name = type(error).__name__.rpartition("_")[2]
    # DNS, HTTP, IP, TLS and URI are words of one capital here: Dns, Http …
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _split(request: Request) -> tuple[Any, str, str]:
    scheme, rest = request.url.partition("://")[::2]
    rest = rest.partition("#")[0]
    at = min((found for mark in "/?" if (found := rest.find(mark)) >= 0), default=len(rest))
    path = rest[at:]
    if not path.startswith("/"):
        path = "/" + path
    return (types.Scheme_Https() if scheme == "https" else types.Scheme_Http()), rest[:at], path


def fetch(request: Request) -> Response:
    """Sends it, and takes the whole answer."""
    scheme, authority, path = _split(request)

    def failed(code: str) -> HttpError:
        return HttpError(code, f"{request.shown}: {code}")

    pairs = [(name, value.encode()) for name, value in request.headers]
    if request.body and request.header("content-length") is None:
        pairs.append(("content-length", str(len(request.body)).encode()))
    try:
        asked = types.OutgoingRequest(types.Fields.from_list(pairs))
    except Err as e:
        raise ValueError(f"{request.shown}: a header is not to be sent: {_code(e.value)}") from None
    method = _METHODS.get(request.method)
    try:
        what = "method"
        asked.set_method(method() if method else types.Method_Other(request.method))
        asked.set_scheme(scheme)
        what = "host"
        asked.set_authority(authority)
        what = "path"
        asked.set_path_with_query(path)
    except Err:
        raise ValueError(f"{request.shown}: the {what} is none") from None
    options = types.RequestOptions()
    if request.timeout_ms is not None:
        ns = request.timeout_ms * 1_000_000
        for set_timeout in (options.set_connect_timeout, options.set_first_byte_timeout, options.set_between_bytes_timeout):
            try:
                set_timeout(ns)
            except Err:
                pass  # What a node does not offer is left as it is.
    body = asked.body()
    try:
        answer = outgoing_handler.handle(asked, options)
    except Err as e:
        raise failed(_code(e.value)) from None
    with answer:
        if request.body:
            with body.write() as stream:
                for at in range(0, len(request.body), WRITE_BYTES):
                    try:
                        stream.blocking_write_and_flush(request.body[at : at + WRITE_BYTES])
                    except Err:
                        break  # Who refused the request takes no body; the answer says why.
        try:
            types.OutgoingBody.finish(body, None)
        except Err:
            pass  # An answer may come before all was sent.
        with answer.subscribe() as arrived:
            arrived.block()
        got = answer.get()
        # A future's result: whether it was taken before, then whether there is an answer.
        while isinstance(got, Ok):
            got = got.value
        if got is None or isinstance(got, Err):
            error = got.value if isinstance(got, Err) else None
            raise failed("no-answer" if error is None else _code(error))
        return _taken(got, failed)


def _taken(answered: Any, failed: Any) -> Response:
    pieces: list[bytes] = []
    with answered:
        status = answered.status()
        with answered.headers() as fields:
            headers = [(name, value.decode(errors="replace")) for name, value in fields.entries()]
        body = answered.consume()
        with body.stream() as stream:
            while True:
                try:
                    pieces.append(stream.blocking_read(READ_BYTES))
                except Err as e:
                    if isinstance(e.value, StreamError_Closed):
                        break
                    found = types.http_error_code(e.value.value)
                    raise failed("connection-terminated" if found is None else _code(found)) from None
        types.IncomingBody.finish(body)
    return Response(status, b"".join(pieces), headers)
