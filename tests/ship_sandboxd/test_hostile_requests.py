"""Requests that mean no good, or make no sense: a bounded answer, and the others unharmed."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import API_KEY, Host
from e2b import Sandbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ship_sandboxd.api import call, router
from ship_sandboxd.api.call import Answer, Call, Route
from ship_sandboxd.api.router import Api
from ship_sandboxd.edge.front import error_body
from ship_sandboxd.envd.http1 import serve_connection
from ship_sandboxd.errors import ApiError, BadRequest
from ship_sandboxd.telemetry.metrics import Metrics
from ship_sandboxd.tenants import Tenants

KEY = {"X-API-KEY": API_KEY}
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FUZZ_HOST = settings(FUZZ, max_examples=50)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "timeout",
    "metadata",
    "envVars",
    "autoPause",
    "autoPauseMemory",
    "autoResume",
    "network",
    "allow_internet_access",
    "secure",
    "mcp",
    "iam",
    "volumeMounts",
    "other",
]
NETWORK = ["allowOut", "denyOut", "allowPublicTraffic", "maskRequestHost", "rules", "egressProxy"]
QUERY = [
    "state",
    "metadata",
    "template",
    "startedAfter",
    "order",
    "limit",
    "nextToken",
    "start",
    "end",
    "cursor",
    "direction",
    "level",
    "search",
    "sandbox_ids",
]


def value_or_refusal(parse: Callable[[], object]) -> object:
    """What it answers; None when it refuses as it should. Anything else that it raises fails the test."""
    with contextlib.suppress(BadRequest):
        return parse()
    return None


@contextmanager
def raw(host: Host) -> Iterator[socket.socket]:
    address, _, port = host.listen.rpartition(":")
    with socket.create_connection((address, int(port)), timeout=20) as connection:
        yield connection


def status_of(connection: socket.socket) -> int:
    data = b""
    while b"\r\n" not in data:
        piece = connection.recv(4096)
        if not piece:
            return 0
        data += piece
    return int(data.split(b" ")[1])


@FUZZ
@given(st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_a_body_is_an_object_or_refused(data: bytes) -> None:
    found = value_or_refusal(lambda: call.parse_json(data))
    assert found is None or isinstance(found, dict)


@pytest.mark.parametrize(
    "body", [b'{"a":' * 60_000, b'{"a":' * 200 + b"1" + b"}" * 200, b'{"a":' + b"[" * 65 + b"]" * 65 + b"}"]
)
def test_a_body_that_is_nested_for_ever_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError):
        call.parse_json(body)


@FUZZ
@given(st.text())
def test_a_text_is_a_number_a_time_a_query_or_refused(text: str) -> None:
    for parse in (
        lambda: call.parse_query(text),
        lambda: call.parse_number(text, "n"),
        lambda: call.parse_time(text, "t"),
    ):
        value_or_refusal(parse)


@FUZZ
@given(st.lists(st.text(), max_size=6))
def test_a_path_fits_a_route_or_not(segments: list[str]) -> None:
    variables = Route("GET", "/a/{one}/b/{two}", router.unsupported).match(segments)
    assert variables is None or set(variables) == {"one", "two"}


@pytest.mark.system
@FUZZ_HOST
@given(
    st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=5),
    st.dictionaries(st.sampled_from(NETWORK), ANY_JSON, max_size=4),
)
def test_no_wish_for_a_sandbox_breaks_the_host(
    host: Host, wish: dict[str, Any], network: dict[str, Any]
) -> None:
    """Of a template that is not there, so that the wishes that make sense end in 404."""
    body = {"network": network, **wish, "templateID": "nothere"}
    answer = httpx.post(f"{host.url}/v2/sandboxes", headers=KEY, content=json.dumps(body))
    assert answer.status_code in (400, 404, 501), answer.text
    assert answer.json()["message"]


@pytest.mark.system
@FUZZ_HOST
@given(st.dictionaries(st.sampled_from(QUERY), st.text(max_size=40), max_size=4))
def test_no_query_breaks_the_host(host: Host, shared: Sandbox, query: dict[str, str]) -> None:
    one = f"/sandboxes/{shared.sandbox_id}"
    with httpx.Client(base_url=host.url, headers=KEY) as client:
        for path in (
            "/v2/sandboxes",
            "/sandboxes/metrics",
            f"{one}/metrics",
            f"{one}/logs",
            f"/v2{one}/logs",
        ):
            answer = client.get(path, params=query)
            assert answer.status_code in (200, 400), answer.text


@pytest.mark.system
@FUZZ_HOST
@given(st.binary(max_size=200))
def test_no_bytes_break_the_host(host: Host, noise: bytes) -> None:
    with raw(host) as connection:
        connection.sendall(b"GET /x" + noise + b" HTTP/1.1\r\n" + noise + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert status_of(connection) in (0, 400, 401, 404, 431, 501)


@pytest.mark.system
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"X-Long: " + b"a" * 70_000 + b"\r\n", 431),
        (b"".join(b"X-%d: a\r\n" % number for number in range(300)), 431),
        (b"Content-Length: 99999999999\r\n", 413),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 1\r\nContent-Length: 1\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 501),
        (b"X\0: a\r\n", 400),
        (b": a\r\n", 400),
        (b"Host: a\r\nHost: b\r\n", 400),
        (b"E2b-Sandbox-Id: a\r\nE2b-Sandbox-Port: 0x50\r\n", 400),
    ],
)
def test_a_head_that_floods_or_lies_is_refused(host: Host, head: bytes, status: int) -> None:
    with raw(host) as connection:
        connection.sendall(b"POST /v2/sandboxes HTTP/1.1\r\nX-API-KEY: " + API_KEY.encode() + b"\r\n" + head)
        connection.sendall(b"\r\n" + b" " * (1100 * 1024 if status == 413 else 0))
        assert status_of(connection) == status


@pytest.mark.system
def test_a_body_of_another_kind_is_refused(host: Host) -> None:
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        headers = {**KEY, "Content-Type": content_type}
        answer = httpx.post(f"{host.url}/v2/sandboxes", headers=headers, content=b"{}")
        assert (answer.status_code, answer.json()["error_code"]) == (415, "unsupported_media_type")
    headers = {**KEY, "Content-Type": "application/json; charset=utf-8"}
    answer = httpx.post(f"{host.url}/v2/sandboxes", headers=headers, content=b"[]")
    assert answer.json()["message"] == "the body is not a JSON object"


@pytest.mark.system
def test_a_crowd_of_slow_clients_holds_up_nobody(host: Host, shared: Sandbox) -> None:
    slow = [socket.create_connection(host.listen.split(":")) for _ in range(500)]
    try:
        for number, connection in enumerate(slow):
            half = b"POST /v2/sandboxes HTTP/1.1\r\nX-API-KEY: " + API_KEY.encode()
            connection.sendall(half if number % 2 else half + b"\r\nContent-Length: 9\r\n\r\n{")
        began = time.monotonic()
        assert shared.commands.run("echo quick").stdout == "quick\n"
        assert httpx.get(f"{host.url}/v2/sandboxes", headers=KEY).status_code == 200
        assert time.monotonic() - began < 5
    finally:
        for connection in slow:
            connection.close()


async def test_a_body_that_never_comes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "BODY_TIMEOUT_S", 0.05)

    async def never(call: Call) -> Answer:
        raise AssertionError("the body is not there")

    api = Api([Route("POST", "/x", never, open=True)], Tenants("k"), Metrics(tmp_path))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, api.handle, error_body)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
