"""What is kept of what was not let out of a sandbox."""

import asyncio
import errno
import json
import logging
import random
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ship_sandboxd.network import dns, netfilter, packets, refusals
from ship_sandboxd.network.egress import Egress
from ship_sandboxd.network.gateway import Gateway
from ship_sandboxd.network.nameserver import MAX_PENDING, Datagrams, NameServer
from ship_sandboxd.network.proxy import Proxy
from ship_sandboxd.network.refusals import Refusals
from ship_sandboxd.network.rules import Refused, Rules, Upstream


async def test_a_flood_of_refusals_is_counted_and_kept_within_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts: Counter[str] = Counter()
    kept = Refusals("s1", tmp_path, counts)
    with caplog.at_level(logging.WARNING):
        for number in range(5000):
            kept.record("TCP", f"1.2.3.4:{number} " + "x" * 5000, Refused("no", kind="address"))
    assert counts == {"address": 5000}
    assert len(caplog.records) == 120
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["egress.1.jsonl", "egress.jsonl"]
    for name in files:
        assert (tmp_path / name).stat().st_size <= refusals.MAX_FILE_BYTES + 1024
    last = json.loads((tmp_path / "egress.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["sandbox"], last["reason"]) == ("egress refused", "s1", "no")
    kept.sum_up()
    kept.sum_up()
    lines = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines[-2:]] == ["no", "and 3800 more"]
    assert [record.__dict__["reason"] for record in caplog.records[-2:]] == ["no", "and 4880 more"]


async def test_a_flood_that_is_over_is_summed_up_at_the_end_of_its_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MINUTE_S", 0.2)
    monkeypatch.setattr(refusals, "_KEPT_A_MINUTE", 130)
    kept = Refusals("s1", tmp_path, Counter())
    for _ in range(150):
        kept.record("TCP", "1.2.3.4:5", Refused("no"))
    async with asyncio.timeout(10):
        while "more" not in (tmp_path / "egress.jsonl").read_text():
            await asyncio.sleep(0.01)
    lines = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert lines[-1]["reason"] == "and 20 more"


async def test_questions_that_are_dropped_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    egress = Egress("s1", Gateway(), Rules(), tmp_path)

    async def never(data: bytes) -> bytes:
        return await asyncio.get_running_loop().create_future()

    server = NameServer(egress)
    monkeypatch.setattr(server, "answer", never)
    datagrams = Datagrams(server)
    for _ in range(MAX_PENDING + 3):
        datagrams.datagram_received(b"a question", ("127.0.0.1", 53))
    reason = f"this sandbox has {MAX_PENDING} questions under way already"
    assert kept_lines(tmp_path) == [("DNS", "unknown", reason)] * 3
    datagrams.connection_lost(None)


class Sent(asyncio.DatagramTransport):
    def __init__(self) -> None:
        super().__init__()
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    def sendto(self, data: Any, addr: Any = None) -> None:
        self.answers.put_nowait(bytes(data))


async def test_queries_that_make_no_sense_are_told(tmp_path: Path) -> None:
    datagrams = Datagrams(NameServer(Egress("s1", Gateway(), Rules(), tmp_path)))
    sent = Sent()
    datagrams.connection_made(sent)
    datagrams.datagram_received(bytes(dns.MAX_QUERY_BYTES + 1), ("127.0.0.1", 1))
    assert kept_lines(tmp_path) == [("DNS", "unknown", "a query over UDP has at most 4096 bytes")]
    no_question = struct.pack("!6H", 7, 0x0100, 0, 0, 0, 0)
    a_status = struct.pack("!6H", 7, 0x1000, 1, 0, 0, 0)
    for query, code in ((no_question, dns.FORMAT_ERROR), (a_status, dns.NOT_IMPLEMENTED)):
        datagrams.datagram_received(query, ("127.0.0.1", 1))
        assert (await asyncio.wait_for(sent.answers.get(), 10))[3] & 15 == code
        assert kept_lines(tmp_path)[-1] == ("DNS", "unknown", f"the query is malformed (code {code})")
    assert len(kept_lines(tmp_path)) == 3
    assert await NameServer(Egress("s1", Gateway(), Rules(), tmp_path)).answer(b"") == b""
    assert len(kept_lines(tmp_path)) == 4


def kept_lines(folder: Path) -> list[tuple[str, str, str]]:
    """The (method, target, reason) of what is kept."""
    file = folder / refusals.FILE_NAME
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [(line["method"], line["target"], line["reason"]) for line in lines]


GET = b"GET http://a.example/ HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (b"\x16\x03\x01\x02\0\x01\r\n\r\n", 400, "the request line is malformed"),
        (b"GET  HTTP/1.1\r\n\r\n", 400, "the request line is malformed"),
        (GET + b"no field\r\n\r\n", 400, "a header field is malformed"),
        (GET + b"Host: a\r\nHost: b\r\n\r\n", 400, "more than one Host field"),
        (GET + b"A: b\r\n" * 300 + b"\r\n", 431, "more than 256 header fields"),
        (GET + b"A: " + b"b" * 70_000, 431, "the header fields are too large"),
        (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "both Transfer-Encoding"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "Content-Length is not"),
        (GET + b"Transfer-Encoding: gzip\r\n\r\n", 501, "only the transfer encoding"),
    ],
)
async def test_requests_that_break_the_rules_of_http_are_answered_and_told(
    tmp_path: Path, request_bytes: bytes, status: int, reason: str
) -> None:
    egress = Egress("s1", Gateway(), Rules(), tmp_path)
    async with (
        asyncio.timeout(10),
        await asyncio.start_server(Proxy(egress).serve, "127.0.0.1", 0) as server,
    ):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request_bytes)
        assert (await reader.readline()).split()[1] == str(status).encode()
        writer.close()
        await writer.wait_closed()
    ((method, target, told),) = kept_lines(tmp_path)
    assert (method, target) == ("HTTP", "unknown")
    assert reason in told


async def test_a_body_that_breaks_the_rules_of_http_is_cut_and_told(tmp_path: Path) -> None:
    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(stay, "127.0.0.1", 0) as far:
        upstream = Upstream("far.example", 80, (far.sockets[0].getsockname(),))
        egress = Egress("s1", Gateway(), Rules((upstream,)), tmp_path)
        async with await asyncio.start_server(Proxy(egress).serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(
                b"PUT http://far.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
            )
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
    assert kept_lines(tmp_path) == [("PUT", "http://far.example/", "a chunk's size is malformed")]


async def test_a_server_that_breaks_the_rules_of_http_is_no_refusal(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\r\n\r\n")
        await reader.read()
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(answer, "127.0.0.1", 0) as far:
        upstream = Upstream("far.example", 80, (far.sockets[0].getsockname(),))
        egress = Egress("s1", Gateway(), Rules((upstream,)), tmp_path)
        async with await asyncio.start_server(Proxy(egress).serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET http://far.example/ HTTP/1.1\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
    assert kept_lines(tmp_path) == []


def test_a_disk_that_is_full_does_not_stop_it(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    Refusals("s1", tmp_path / "gone", counts).record("DNS", "a.example", Refused("no"))
    assert counts == {"rule": 1}


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(packet: bytes, family: int = socket.AF_INET, prefix: str = netfilter.REFUSED) -> bytes:
    """One packet as the kernel tells it."""
    body = struct.pack("!BBH", family, 0, 1) + attribute(1, bytes([8, 0, 1, 0]))
    body += attribute(10, prefix.encode() + b"\0") + attribute(9, packet)
    return struct.pack("=IHHII", 16 + len(body), 0x400, 0, 0, 0) + body


def ipv4(address: str, port: int, protocol: int = socket.IPPROTO_UDP) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, protocol, 0) + bytes(4) + socket.inet_aton(address)
    return head + struct.pack("!HH", 40000, port) + bytes(4)


def ipv6(address: str, port: int) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, 24, socket.IPPROTO_TCP, 64) + bytes(16)
    return head + socket.inet_pton(socket.AF_INET6, address) + struct.pack("!HH", 40000, port) + bytes(20)


def shown(data: bytes) -> list[tuple[str, str, str]]:
    return [(one.method, one.target, one.refusal.kind) for one in packets.packets(data)]


def test_packets_are_shown_by_protocol_and_target() -> None:
    done = struct.pack("=IHHII", 20, 3, 2, 0, 0) + bytes(4)
    odd = message(bytes([0x46]) + ipv4("1.1.1.1", 443)[1:20] + bytes(4) + struct.pack("!HH", 1, 443))
    told = [
        message(ipv4("8.8.8.8", 443)),
        message(ipv6("2606:4700::1", 443), socket.AF_INET6),
        message(ipv4("9.9.9.9", 53), prefix=netfilter.FULL),
        message(ipv4("9.9.9.9", 443, socket.IPPROTO_TCP), prefix=netfilter.MORE),
        message(ipv4("9.9.9.9", 0, socket.IPPROTO_ICMP)),
        message(ipv4("9.9.9.9", 0, 99)),
        odd,  # options before its ports
        message(
            ipv4("9.9.9.9", 443)[:6] + b"\0\1" + ipv4("9.9.9.9", 443)[8:]
        ),  # a later fragment: it has no ports
    ]
    assert shown(b"".join(told) + done) == [
        ("UDP", "8.8.8.8:443", "protocol"),
        ("TCP", "[2606:4700::1]:443", "protocol"),
        ("UDP", "9.9.9.9:53", "limit"),
        ("TCP", "9.9.9.9:443", "limit"),
        ("ICMP", "9.9.9.9", "protocol"),
        ("IP 99", "9.9.9.9", "protocol"),
        ("UDP", "1.1.1.1:443", "protocol"),
        ("UDP", "9.9.9.9", "protocol"),
    ]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, 0, 255])
def test_packets_that_are_cut_short_are_shown_as_far_as_they_tell(family: int) -> None:
    whole = ipv6("2606:4700::1", 443) if family == socket.AF_INET6 else ipv4("8.8.8.8", 443)
    for size in range(len(whole) + 1):
        ((method, target, _),) = shown(message(whole[:size], family))
        assert target in {"unknown", "8.8.8.8", "8.8.8.8:443", "2606:4700::1", "[2606:4700::1]:443"}
        assert (method == "IP") == (target == "unknown")


def test_messages_that_make_no_sense_are_left_out() -> None:
    whole = message(ipv4("8.8.8.8", 443)) * 3
    for size in range(len(whole)):
        assert len(shown(whole[:size])) <= 3
    for size in (0, 1, 15, 17, 19, 2**32 - 1):
        assert len(shown(struct.pack("=I", size) + whole[4:])) <= 1
    for size in (0, 3, 65535):  # of an attribute
        assert len(shown(whole[:20] + struct.pack("=H", size) + whole[22:])) == 3
    chance = random.Random(7)
    for _ in range(2000):
        spoilt = bytearray(whole)
        for _ in range(8):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        assert len(shown(bytes(spoilt))) <= 3


class Told(socket.socket):
    """A socket that hears what a test sends as if the kernel had; an empty message stands for what its buffer lost."""

    sender = 0

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, tuple[int, int]]:  # type: ignore[override] # of netlink
        data = self.recv(size, flags)
        if not data:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return data, (self.sender, 0)


class Wire:
    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self.told, self._kernel = self._pair()
        self.packets = packets.RefusedPackets(self.told, Refusals("s1", folder, self.counts))

    @staticmethod
    def _pair() -> tuple[Told, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        told = Told(fileno=ours.detach())
        told.setblocking(False)
        return told, theirs

    async def send(self, data: bytes) -> None:
        self._kernel.send(data)
        for _ in range(3):
            await asyncio.sleep(0)

    def lines(self) -> list[tuple[str, str, str]]:
        return kept_lines(self._folder)

    def close(self) -> None:
        self.packets.close()
        self._kernel.close()


async def test_the_same_packets_are_summed_up(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    await wire.send(message(ipv4("8.8.8.8", 443)) * 30)
    await wire.send(message(ipv4("9.9.9.9", 443)) + message(ipv4("8.8.8.8", 443)) * 20)
    assert [line[:2] for line in wire.lines()] == [("UDP", "8.8.8.8:443"), ("UDP", "9.9.9.9:443")]
    wire.close()
    assert wire.told.fileno() == -1
    (_, _, reason), _, (*first, again) = wire.lines()
    assert (first, again) == (["UDP", "8.8.8.8:443"], f"{reason} (49 more of the same)")
    assert wire.counts == {"protocol": 51}


async def test_the_same_packets_are_summed_up_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "_SUMMED_UP_EACH_S", 0.05)
    wire = Wire(tmp_path)
    for number in (1, 2):
        await wire.send(message(ipv4("8.8.8.8", 443)) * 30)
        async with asyncio.timeout(10):
            while len(wire.lines()) < 2 * number:
                await asyncio.sleep(0.01)
        assert wire.lines()[-1][2].endswith("(29 more of the same)")
    wire.close()


async def test_of_packets_to_ever_other_targets_a_bounded_number_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "MAX_DIFFERENT", 10)
    wire = Wire(tmp_path)
    for number in range(100):
        await wire.send(message(ipv4("8.8.8.8", number % 25)))
    assert len(wire.packets._more) <= 10
    assert len(wire.lines()) == 100
    wire.close()


async def test_what_the_buffer_lost_and_what_others_send(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    await wire.send(b"")
    await wire.send(message(ipv4("8.8.8.8", 443)))
    wire.told.sender = 4711
    await wire.send(message(ipv4("9.9.9.9", 443)))
    assert [(method, target) for method, target, _ in wire.lines()] == [
        ("IP", "unknown"),
        ("UDP", "8.8.8.8:443"),
    ]
    assert "faster than each" in wire.lines()[0][2]
    wire.close()


async def test_one_message_is_read_at_a_time(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    for number in range(5):
        wire._kernel.send(message(ipv4("8.8.8.8", number)))
    wire.packets._read()
    assert len(wire.lines()) == 1
    wire.close()
