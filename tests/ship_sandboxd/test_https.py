"""The host by HTTPS and by host names: previews, WebSockets, streams, and the SDK that knows nothing but a domain."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import websockets
from conftest import API_KEY, Host, eventually
from e2b import Sandbox

from ship_sandboxd import durable
from ship_sandboxd.edge import tls, visits
from ship_sandboxd.edge.endpoints import Endpoints
from ship_sandboxd.edge.tls import Certificate, LocalAuthority
from ship_sandboxd.envd.http1 import Headers, Request
from ship_sandboxd.errors import SetupError
from ship_sandboxd.settings import Settings, Tls

pytestmark = pytest.mark.system

SERVER = """
import base64, hashlib, http.server, json, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/cookies":
            self.send_response(200); self.send_header("Content-Length", "0")
            self.send_header("Set-Cookie", "a=b; Domain=sandboxes.localhost; Path=/")
            self.send_header("Set-Cookie", "domain=c;domain=.localhost;HttpOnly"); self.end_headers()
        elif self.path == "/stream":
            self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            for number in range(3):
                self.wfile.write(b"2\\r\\n%d\\n\\r\\n" % number); self.wfile.flush(); self.rfile.readline()
            self.wfile.write(b"0\\r\\n\\r\\n")
        elif self.headers.get("Upgrade", "").lower() == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            size = self.rfile.read(2)[1] & 127
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(size)))
            self.wfile.write(bytes([0x81, len(data)]) + data.upper())
            self.rfile.read(2); self.close_connection = True
        else:
            body = json.dumps({key.lower(): value for key, value in self.headers.items()}).encode()
            self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
            self.wfile.write(body)
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Handler).serve_forever()
"""

# Its proxy finds every name at this machine's own address: it stands for wildcard DNS.
BY_DOMAIN_ALONE = """
import asyncio, json, threading
from e2b import Sandbox

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    port = int(head.split(b" ")[1].rpartition(b":")[2])
    there = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0), loop).result()
proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

sandbox = Sandbox.create(timeout=60, proxy=proxy)
sandbox.files.write("/workspace/a", "by name")
print(json.dumps([sandbox.commands.run("cat /workspace/a").stdout, sandbox.get_host(3000)]))
sandbox.kill()
"""


class SecureHost:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.about = httpx.get(f"{host.url}/health").json()
        self.url = self.about["https_url"]
        self.port = int(self.url.rpartition(":")[2])
        self.domain = f"sandboxes.localhost:{self.port}"
        self.trust = ssl.create_default_context(cafile=self.about["authority"])

    def get(self, name: str, path: str = "/", **fields: str) -> httpx.Response:
        """A request as a client makes it that found `name` at this machine's address."""
        with httpx.Client(verify=self.trust) as client:
            return client.get(
                self.url + path,
                headers={"Host": name, **fields},
                extensions={"sni_hostname": name.partition(":")[0]},
            )


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureHost]:
    host = Host(tmp_path_factory.mktemp("secure") / "data", ("--tls-listen", "127.0.0.1:0", "--tls-local"))
    yield SecureHost(host)
    host.close()


@pytest.fixture(scope="module")
def preview(secure: SecureHost) -> Iterator[Sandbox]:
    sandbox = secure.host.create(timeout=600)
    sandbox.files.write("/workspace/server.py", SERVER)
    sandbox.commands.run("python3 /workspace/server.py", background=True, timeout=0)
    eventually(lambda: secure.get(sandbox.get_host(3000)).status_code == 200)
    yield sandbox
    sandbox.kill()


def test_the_sdk_needs_nothing_but_the_domain(secure: SecureHost) -> None:
    outside = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", BY_DOMAIN_ALONE],
        env={
            **outside,
            "E2B_DOMAIN": secure.domain,
            "E2B_API_KEY": API_KEY,
            "E2B_VALIDATE_API_KEY": "false",
            "SSL_CERT_FILE": secure.about["authority"],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content, name = json.loads(done.stdout)
    assert content == "by name"
    assert name.startswith("3000-") and name.endswith(f".{secure.domain}")


def test_a_server_in_the_sandbox_learns_how_it_was_called(secure: SecureHost, preview: Sandbox) -> None:
    name = preview.get_host(3000)
    seen = secure.get(name, **{"X-API-KEY": API_KEY, "X-Access-Token": "t", "Cookie": "a=b"}).json()
    assert (seen["host"], seen["x-forwarded-host"], seen["x-forwarded-proto"]) == (name, name, "https")
    assert seen["cookie"] == "a=b"
    assert not {"x-api-key", "x-access-token"} & set(seen)
    by_http = httpx.get(secure.host.url, headers={"Host": name}).json()
    assert by_http["x-forwarded-proto"] == "http"
    behind = secure.get(name, **{"X-Forwarded-Host": "preview.example.com"}).json()
    assert behind["x-forwarded-host"] == "preview.example.com"


def test_the_host_field_is_masked_for_servers_that_insist_on_one(secure: SecureHost) -> None:
    sandbox = secure.host.create(network={"mask_request_host": "localhost:${PORT}"})
    sandbox.files.write("/workspace/server.py", SERVER)
    sandbox.commands.run("python3 /workspace/server.py", background=True, timeout=0)
    name = sandbox.get_host(3000)
    eventually(lambda: secure.get(name).status_code == 200)
    seen = secure.get(name).json()
    assert (seen["host"], seen["x-forwarded-host"]) == ("localhost:3000", name)
    sandbox.kill()


def test_a_link_with_the_token_opens_a_private_port_to_a_browser(secure: SecureHost) -> None:
    sandbox = secure.host.create(network={"allow_public_traffic": False})
    sandbox.files.write("/workspace/server.py", SERVER)
    sandbox.commands.run("python3 /workspace/server.py", background=True, timeout=0)
    name, token = sandbox.get_host(3000), str(sandbox.traffic_access_token)
    by_header = {"E2b-Traffic-Access-Token": token}
    eventually(lambda: secure.get(name, **by_header).status_code == 200)
    assert secure.get(name).status_code == secure.get(name, Cookie=f"{visits.TOKEN}=x").status_code == 403
    assert secure.get(name, f"/?{visits.TOKEN}=wrong").status_code == 403
    link = secure.get(name, f"//evil.example/page?a=1&{visits.TOKEN}={token}&b=2")
    assert (link.status_code, link.headers["location"]) == (303, "/evil.example/page?a=1&b=2")
    cookie = link.headers["set-cookie"]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Lax; Secure")
    seen = secure.get(name, Cookie=f"own=1; {cookie.partition(';')[0]}; other=2").json()
    assert seen["cookie"] == "own=1; other=2"
    by_cookie = {"Cookie": cookie.partition(";")[0], "Sec-Fetch-Site": "same-site"}
    assert secure.get(name, **by_cookie).status_code == 403, "a page of another sandbox asks"
    assert token not in json.dumps(secure.get(name, **by_header, Cookie=cookie.partition(";")[0]).json())
    sandbox.kill()


def test_a_cookie_of_a_sandbox_is_for_its_own_name(secure: SecureHost, preview: Sandbox) -> None:
    answer = secure.get(preview.get_host(3000), "/cookies")
    assert answer.headers.get_list("set-cookie") == ["a=b; Path=/", "domain=c;HttpOnly"]


LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    ("may", "method", "fields"),
    [
        (True, "GET", {}),
        (True, "POST", {"sec-fetch-site": "same-origin", "origin": "null"}),
        (True, "GET", {"sec-fetch-site": "none", **LINK}),
        (True, "GET", {"sec-fetch-site": "cross-site", **LINK}),
        (True, "GET", {"sec-fetch-site": "same-site", **LINK}),
        (True, "POST", {"origin": "https://8443-Victim.box.test"}),
        (False, "POST", {"sec-fetch-site": "same-site", **LINK}),
        (False, "GET", {"sec-fetch-site": "same-site", **LINK, "sec-fetch-dest": "iframe"}),
        (
            False,
            "GET",
            {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
        ),
        (False, "GET", {"sec-fetch-site": "same-site", "sec-fetch-mode": "websocket"}),
        (False, "GET", {"origin": "https://8000-evil.box.test", "upgrade": "websocket"}),
        (False, "POST", {"origin": "null"}),
    ],
)
def test_a_cookie_opens_a_private_port_to_its_own_pages_alone(
    may: bool, method: str, fields: dict[str, str]
) -> None:
    cookie = {"host": "8443-victim.box.test", "cookie": f"{visits.TOKEN}=secret"}
    request = Request(method, "/", "HTTP/1.1", Headers([*cookie.items(), *fields.items()]))
    assert visits.may_visit(request, "secret") is may
    request.headers.fields.append((visits.TOKEN, "secret"))
    assert visits.may_visit(request, "secret")


def test_a_websocket_passes(secure: SecureHost, preview: Sandbox) -> None:
    name = preview.get_host(3000).partition(":")[0]

    async def ask(url: str, trust: ssl.SSLContext | None, port: int) -> str | bytes:
        async with websockets.connect(url, ssl=trust, host="127.0.0.1", port=port, proxy=None) as connection:
            await connection.send("hello")
            return await connection.recv()

    assert asyncio.run(ask(f"wss://{name}:{secure.port}/", secure.trust, secure.port)) == "HELLO"
    plain = int(secure.host.listen.rpartition(":")[2])
    assert asyncio.run(ask(f"ws://{name}:{plain}/", None, plain)) == "HELLO"


def test_a_stream_arrives_as_it_is_written(secure: SecureHost, preview: Sandbox) -> None:
    """The server writes its next line only after it has heard that the last one came."""
    name = preview.get_host(3000)
    with (
        socket.create_connection(("127.0.0.1", secure.port), timeout=10) as plain,
        secure.trust.wrap_socket(plain, server_hostname=name.partition(":")[0]) as connection,
    ):
        connection.sendall(
            f"GET /stream HTTP/1.1\r\nHost: {name}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        data = b""
        for number in range(3):
            while f"{number}\n".encode() not in data.partition(b"\r\n\r\n")[2]:
                data += connection.recv(4096)
            connection.sendall(b"2\r\n\n\n\r\n")
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(4096)


def test_a_person_is_shown_a_page_and_a_program_json(secure: SecureHost, preview: Sandbox) -> None:
    name = preview.get_host(4000)
    page = secure.get(name, Accept="text/html,*/*")
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert "port is not open: 4000" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert secure.get(name).json() == {
        "code": 502,
        "message": "The sandbox is running but port is not open: 4000",
        "sandboxId": preview.sandbox_id,
        "port": 4000,
    }
    gone = secure.get(f"3000-{'x' * 20}.{secure.domain}", Accept="text/html")
    assert (gone.status_code, "The sandbox was not found" in gone.text) == (502, True)


def test_a_person_learns_that_a_sandbox_is_paused(secure: SecureHost) -> None:
    sandbox = secure.host.create()
    name = sandbox.get_host(3000)
    sandbox.pause()
    page = secure.get(name, Accept="text/html")
    assert (page.status_code, "It is paused" in page.text) == (502, True)
    assert secure.get(name).json()["message"] == "The sandbox was not found"
    sandbox.kill()


def test_a_sandbox_that_does_not_resume_is_answered_for(secure: SecureHost) -> None:
    """Its disk is gone while it is parked."""
    body = {"templateID": "base", "autoPause": True, "autoResume": {"enabled": True}, "timeout": 60}
    with httpx.Client(base_url=secure.host.url, headers={"X-API-KEY": API_KEY}) as client:
        sandbox = client.post("/v2/sandboxes", json=body).json()["sandboxID"]
        assert client.post(f"/sandboxes/{sandbox}/pause", json={"memory": False}).status_code == 204
        folder = secure.host.data / "sandboxes" / sandbox
        for lost in ("disk.img", "disk", "home"):
            if (folder / lost).exists():
                (folder / lost).rename(folder / f"{lost}.away")
        answer = secure.get(f"3000-{sandbox}.{secure.domain}")
        assert answer.status_code == 502
        assert answer.json()["message"]
        client.delete(f"/sandboxes/{sandbox}")


def test_a_page_shows_nothing_as_markup(secure: SecureHost) -> None:
    fields = {"E2b-Sandbox-Id": "<script>alert(1)</script>", "E2b-Sandbox-Port": "80"}
    assert "<script" not in secure.get(secure.domain, Accept="text/html", **fields).text


def test_the_authority_vouches_for_its_domain_alone(tmp_path: Path) -> None:
    made = LocalAuthority(tmp_path, "one.test")
    other = LocalAuthority(tmp_path, "two.test")
    assert (made.authority.stat().st_ino, made.server.stat().st_ino) == (
        LocalAuthority(tmp_path, "one.test").authority.stat().st_ino,
        LocalAuthority(tmp_path, "one.test").server.stat().st_ino,
    )
    assert made.server.stat().st_mode & 0o077 == 0
    assert (made.authority.parent / "authority.key").stat().st_mode & 0o077 == 0
    key = made.authority.parent / "authority.key"

    def verify(authority: Path, certificate: Path, name: str) -> bool:
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-verify_hostname",
            name,
            "-CAfile",
            authority,
            certificate,
        ]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert verify(made.authority, made.server, "49983-abc.one.test")
    assert not verify(other.authority, made.server, "49983-abc.one.test")
    stolen = tmp_path / "stolen.pem"
    subprocess.run(
        f"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {tmp_path}/k -subj /CN=x |"
        f" openssl x509 -req -CA {made.authority} -CAkey {key} -set_serial 1 -out {stolen}"
        f" -extfile <(echo subjectAltName=DNS:bank.example)",
        shell=True,
        executable="/bin/bash",
        check=True,
        capture_output=True,
    )
    assert not verify(made.authority, stolen, "bank.example")


def test_a_domain_names_its_port_unless_every_client_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings("127.0.0.1", 0, tmp_path, "key", domain="box.test", tls=Tls("127.0.0.1", 0))
    for is_known in (False, True):
        endpoints = Endpoints.open(settings)
        assert endpoints.https is not None
        port = endpoints.https.socket.getsockname()[1]
        assert endpoints.domain == ("box.test" if is_known else f"box.test:{port}")
        for listening in (endpoints.http, endpoints.https.socket):
            listening.close()
        monkeypatch.setattr("ship_sandboxd.edge.endpoints.HTTPS_PORT", port)
        settings = replace(settings, tls=Tls("127.0.0.1", port))


def test_an_authority_is_on_the_disk_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = set()
    monkeypatch.setattr(
        durable, "sync", lambda path: synced.add((path.name, (tmp_path / "one.test").exists()))
    )
    LocalAuthority(tmp_path, "one.test")
    assert {("authority.key", False), ("authority.pem", False)} <= synced


def test_a_certificate_that_soon_ends_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = LocalAuthority(tmp_path, "one.test")
    before, authority = made.server.read_bytes(), made.authority.read_bytes()
    made.refresh()
    assert made.server.read_bytes() == before
    monkeypatch.setattr(tls, "_RENEW_DAYS", 400)
    made.refresh()
    assert made.server.read_bytes() != before
    assert made.authority.read_bytes() == authority
    Certificate(made.server, None)


async def test_a_certificate_that_ends_while_the_host_runs_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = Endpoints.open(
        Settings("127.0.0.1", 0, tmp_path, "key", domain="box.test", tls=Tls("127.0.0.1", 0))
    )
    assert endpoints.https is not None
    assert endpoints.https.authority is not None
    trust = ssl.create_default_context(cafile=endpoints.https.authority.authority)
    address = endpoints.https.socket.getsockname()

    async def shown() -> bytes:
        _, writer = await asyncio.open_connection(*address, ssl=trust, server_hostname="box.test")
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        assert isinstance(certificate, bytes)
        return certificate

    server = await asyncio.start_server(
        lambda reader, writer: None, sock=endpoints.https.socket, ssl=endpoints.https.certificate.context
    )
    before = await shown()
    monkeypatch.setattr(tls, "_RENEW_DAYS", 400)
    monkeypatch.setattr("ship_sandboxd.edge.endpoints._RENEW_EVERY_S", 0.01)
    renewing = asyncio.create_task(endpoints.keep_valid())
    async with asyncio.timeout(10):
        while await shown() == before:
            pass
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
    server.close()
    endpoints.http.close()


def test_a_certificate_of_the_operator_is_shown_and_read_again(
    own_host: Callable[..., Host], tmp_path: Path
) -> None:
    first, second = (
        LocalAuthority(tmp_path / "first", "box.test"),
        LocalAuthority(tmp_path / "second", "box.test"),
    )
    shown = tmp_path / "shown.pem"
    shown.write_bytes(first.server.read_bytes())
    host = own_host("--tls-listen", "127.0.0.1:0", "--tls-cert", str(shown), "--domain", "box.test")
    about = httpx.get(f"{host.url}/health").json()
    assert "authority" not in about

    def trusted(authority: Path) -> bool:
        trust = ssl.create_default_context(cafile=str(authority))
        port = int(about["https_url"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            try:
                trust.wrap_socket(plain, server_hostname="49983-x.box.test").close()
            except ssl.SSLCertVerificationError:
                return False
        return True

    assert (trusted(first.authority), trusted(second.authority)) == (True, False)
    assert host.process is not None
    shown.write_text("broken")
    host.process.send_signal(1)
    eventually(lambda: "the old one stays" in host.log())
    assert trusted(first.authority)
    shown.write_bytes(second.server.read_bytes())
    host.process.send_signal(1)
    eventually(lambda: trusted(second.authority))


class Chain:
    """A wildcard certificate for a domain, which an authority below `root` has signed: the certificate and that of the authority
    in one file, its key in another."""

    def __init__(self, folder: Path, domain: str) -> None:
        self._folder = folder
        self.root, self.shown, self.key = (folder / name for name in ("root.pem", "chain.pem", "key.pem"))
        authority = "basicConstraints=critical,CA:TRUE"
        self._openssl(
            "req", "-x509", *self._new("root"), "-subj", "/CN=root", "-out", "root.pem", "-days", "9"
        )
        self._sign("middle", "root", authority)
        self._names = f"subjectAltName=DNS:{domain},DNS:*.{domain}"
        self.renew()

    def renew(self) -> str:
        """A new certificate with a new key in the place of the old ones; answers its serial number."""
        serial = self._sign("leaf", "middle", self._names)
        self.shown.write_text(
            (self._folder / "leaf.pem").read_text() + (self._folder / "middle.pem").read_text()
        )
        self.key.write_text((self._folder / "leaf.key").read_text())
        return serial

    def _sign(self, name: str, by: str, extension: str) -> str:
        serial = os.urandom(8).hex().upper()
        (self._folder / "extension").write_text(extension)
        self._openssl("req", "-new", *self._new(name), "-subj", f"/CN={name}", "-out", "request")
        self._openssl(
            *("x509", "-req", "-in", "request", "-out", f"{name}.pem", "-days", "9", "-extfile", "extension"),
            *("-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-set_serial", f"0x{serial}"),
        )
        return serial.lstrip("0")

    def _new(self, name: str) -> tuple[str, ...]:
        return (
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            f"{name}.key",
        )

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self._folder, check=True, capture_output=True)


def test_previews_go_by_a_wildcard_certificate_of_the_operator_and_on_while_it_is_renewed(
    own_host: Callable[..., Host], tmp_path: Path
) -> None:
    chain = Chain(tmp_path, "box.test")
    host = own_host(
        *("--tls-listen", "127.0.0.1:0", "--tls-cert", str(chain.shown), "--tls-key", str(chain.key)),
        *("--domain", "box.test"),
    )
    port = int(httpx.get(f"{host.url}/health").json()["https_url"].rpartition(":")[2])
    trust = ssl.create_default_context(cafile=str(chain.root))
    sandbox = host.create()
    sandbox.files.write("/workspace/server.py", SERVER)
    sandbox.commands.run("python3 /workspace/server.py", background=True, timeout=0)
    name = sandbox.get_host(3000)
    assert name == f"3000-{sandbox.sandbox_id}.box.test"

    def connect() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        return trust.wrap_socket(plain, server_hostname=name)

    def serial() -> str:
        with connect() as connection:
            told = connection.getpeercert()
            assert told is not None
            return str(told["serialNumber"]).lstrip("0")

    def served() -> bool:
        with connect() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            return connection.recv(100).startswith(b"HTTP/1.1 200 ")

    eventually(served)
    first = serial()

    async def talk() -> str | bytes:
        url = f"wss://{name}/"
        async with websockets.connect(url, ssl=trust, host="127.0.0.1", port=port, proxy=None) as visit:
            await asyncio.to_thread(_reload, host, chain, serial)
            await visit.send("hello")
            return await visit.recv()

    assert asyncio.run(talk()) == "HELLO"
    assert serial() != first
    with connect() as stream:
        stream.sendall(f"GET /stream HTTP/1.1\r\nHost: {name}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        data = b""
        for number in range(3):
            while f"{number}\n".encode() not in data.partition(b"\r\n\r\n")[2]:
                data += stream.recv(4096)
            if number == 0:
                _reload(host, chain, serial)
            stream.sendall(b"2\r\n\n\n\r\n")


def _reload(host: Host, chain: Chain, serial: Callable[[], str]) -> None:
    new = chain.renew()
    assert host.process is not None
    host.process.send_signal(signal.SIGHUP)
    eventually(lambda: serial() == new)


def test_a_certificate_that_does_not_fit_its_key_is_refused(tmp_path: Path) -> None:
    one, two = LocalAuthority(tmp_path, "one.test"), LocalAuthority(tmp_path, "two.test")
    with pytest.raises(SetupError) as caught:
        Certificate(one.authority, two.server)
    assert caught.value.code == "certificate_invalid"


def test_a_client_that_never_shakes_hands_holds_up_nobody(secure: SecureHost) -> None:
    silent = [socket.create_connection(("127.0.0.1", secure.port)) for _ in range(50)]
    assert secure.get(secure.domain, "/health").status_code == 200
    for connection in silent:
        connection.close()
