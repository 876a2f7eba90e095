"""What the host tells of its sandboxes and of itself: metrics, logs, and numbers for Prometheus."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import CommandExitException, Sandbox

from ship_sandboxd.pids import ProcessIdentity
from ship_sandboxd.telemetry import logbook, usage
from ship_sandboxd.telemetry.metrics import Counter, Histogram, Metrics

pytestmark = pytest.mark.system
MIB = 1024 * 1024


def get(host: Host, path: str, key: str = API_KEY, **query: str | int) -> httpx.Response:
    return httpx.get(host.url + path, headers={"X-API-KEY": key}, params=query)


def test_metrics_are_there_at_once_and_tell_what_a_sandbox_uses(host: Host) -> None:
    sandbox = host.create()
    first = sandbox.get_metrics()
    assert len(first) >= 1
    idle = first[0]
    assert idle.cpu_count == 2
    assert idle.mem_total == 4096 * MIB
    assert 0 < idle.mem_used < 200 * MIB
    assert 0 < idle.disk_used < idle.disk_total
    sandbox.commands.run(
        "python3 -c 'x = bytearray(150_000_000)\nwhile True: pass'", background=True, timeout=0
    )

    def busy() -> bool:
        last = sandbox.get_metrics()[-1]
        return last.mem_used > idle.mem_used + 100 * MIB and last.cpu_used_pct > 2

    eventually(busy, 40)
    assert all(metric.cpu_used_pct <= 100 for metric in sandbox.get_metrics())
    sandbox.kill()


def test_metrics_of_a_time(host: Host, shared: Sandbox) -> None:
    now = datetime.now(UTC)
    assert shared.get_metrics()
    assert shared.get_metrics(start=now - timedelta(minutes=5), end=now + timedelta(minutes=1))
    assert shared.get_metrics(start=now - timedelta(hours=2), end=now - timedelta(hours=1)) == []
    assert get(host, f"/sandboxes/{shared.sandbox_id}/metrics", start="x").status_code == 400


def test_metrics_of_several_sandboxes_leave_out_what_is_not_there(host: Host, shared: Sandbox) -> None:
    found = get(host, "/sandboxes/metrics", sandbox_ids=f"{shared.sandbox_id},nothere").json()
    assert list(found["sandboxes"]) == [shared.sandbox_id]
    assert found["sandboxes"][shared.sandbox_id]["memUsed"] > 0
    for wrong in ("", ",".join(str(number) for number in range(101))):
        assert get(host, "/sandboxes/metrics", sandbox_ids=wrong).status_code == 400


def test_without_a_cgroup_the_processes_are_counted() -> None:
    busy = "x = bytearray(50_000_000)\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen(["python3", "-c", busy], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout and child.stdout.readline() == b"\n"
            before, memory, _ = usage._of_processes(child.pid)
            assert usage._of_processes(os.getpid())[1] > memory > 50_000_000
            eventually(lambda: usage._of_processes(child.pid)[0] > before + 0.1)
        finally:
            child.kill()


async def test_samples_are_kept_for_an_hour_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    clock = iter(range(1_000, 10_000))
    monkeypatch.setattr(usage.time, "time", lambda: float(next(clock)))
    kept = usage.Usage(list)
    for _ in range(800):
        kept._sample([(record, tmp_path)])
    samples = await kept.samples(record, tmp_path)
    assert len(samples) == 3600 / usage.INTERVAL_S == 720
    assert samples[0].time < samples[-1].time


def make_record() -> "usage.SandboxRecord":
    record = object.__new__(usage.SandboxRecord)
    record.id, record.cgroups, record.init = "x", [], ProcessIdentity.of(os.getpid())
    record.started_at, record.cpu_count = time.time(), 2
    return record


def test_the_log_tells_the_life_of_a_sandbox_in_order(host: Host, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"time": 1000.5, "level": "info", "event": "sandbox created", "template": "base"}\n'
        '{"time": 1003, "level": "warning", "event": "out of memory", "pid": 7}\n'
        'not json\n{"event": "no time"}\n{"time": "x"}\n[]\n'
    )
    (tmp_path / "log.1.jsonl").write_text('{"time": 999, "level": "error", "event": "older"}\n')
    (tmp_path / "envd.log").write_text("bwrap says\n1970-01-01 00:16:41,250 ERROR envd it broke\n  a trace\n")
    found = [
        (entry.time_ms, entry.level, entry.logger, entry.message) for entry in logbook.read(tmp_path, 998)
    ]
    assert found == [
        (998_000, "info", "envd", "bwrap says"),
        (999_000, "error", "host", "older"),
        (1_000_500, "info", "host", "sandbox created"),
        (1_001_250, "error", "envd", "it broke"),
        (1_001_250, "info", "envd", "  a trace"),
        (1_003_000, "warn", "host", "out of memory"),
    ]


def test_of_a_log_that_grows_for_ever_the_end_is_read(tmp_path: Path) -> None:
    with (tmp_path / "envd.log").open("w") as file:
        for number in range(300_000):
            file.write(f"line {number}\n")
        file.write("x" * 100_000)
    found = logbook.read(tmp_path, 0)
    assert found[-2].message == "line 299999"
    assert len(found[-1].message) == 4096
    assert len(found) < 120_000


def test_of_a_log_of_very_short_lines_the_last_are_read(tmp_path: Path) -> None:
    (tmp_path / "envd.log").write_text("x\n" * 400_000 + "last\n")
    found = logbook.read(tmp_path, 0)
    assert found[-1].message == "last"
    assert len(found) == 50_000


def test_logs_are_served_by_level_cursor_direction_and_search(host: Host) -> None:
    sandbox = host.create()
    folder = host.data / "sandboxes" / sandbox.sandbox_id
    now = time.time() + 100
    levels = ("debug", "info", "warning", "error")
    with (folder / "log.jsonl").open("a") as file:
        for number, level in enumerate(levels):
            file.write(json.dumps({"time": now + number, "level": level, "event": f"event-{number}"}) + "\n")
    path, at = f"/sandboxes/{sandbox.sandbox_id}/logs", int(now * 1000)

    def messages(**query: str | int) -> list[str]:
        logs = get(host, f"/v2{path}", search="event-", **query).json()["logs"]
        return [entry["message"].removeprefix("event-") for entry in logs]

    assert messages() == ["0", "1", "2", "3"]
    assert messages(level="warn") == ["2", "3"]
    assert messages(cursor=at + 1000) == ["1", "2", "3"]
    assert messages(cursor=at + 1000, direction="backward") == ["1", "0"]
    assert messages(direction="backward", limit=1) == ["3"]
    old = get(host, path, start=at + 2000).json()
    assert [json.loads(line["line"])["message"] for line in old["logs"]] == ["event-2", "event-3"]
    assert [json.loads(line["line"])["level"] for line in old["logs"]] == ["warn", "error"]
    assert [entry["message"] for entry in old["logEntries"]] == ["event-2", "event-3"]
    for wrong in ({"level": "loud"}, {"direction": "up"}, {"search": "x" * 257}, {"limit": "-1"}):
        assert get(host, f"/v2{path}", **wrong).status_code == 400
    sandbox.kill()
    assert get(host, path).status_code == 404


def test_counters_and_histograms_are_written_as_prometheus_reads_them() -> None:
    counter = Counter("things_total", "Things", ("kind",))
    counter.add('a "b"\n\\')
    counter.add('a "b"\n\\', amount=2)
    assert list(counter.lines()) == [
        "# HELP ship_sandboxd_things_total Things",
        "# TYPE ship_sandboxd_things_total counter",
        'ship_sandboxd_things_total{kind="a \\"b\\"\\n\\\\"} 3',
    ]
    histogram = Histogram("wait_seconds", "Waiting")
    for seconds in (0.001, 0.002, 0.4, 100):
        histogram.observe(seconds)
    lines = list(histogram.lines())[2:]
    assert lines[0] == 'ship_sandboxd_wait_seconds_bucket{le="0.001"} 1'
    assert lines[1] == 'ship_sandboxd_wait_seconds_bucket{le="0.0025"} 2'
    assert lines[-4:] == [
        'ship_sandboxd_wait_seconds_bucket{le="30.0"} 3',
        'ship_sandboxd_wait_seconds_bucket{le="+Inf"} 4',
        "ship_sandboxd_wait_seconds_sum 100.403",
        "ship_sandboxd_wait_seconds_count 4",
    ]


def test_readings_are_taken_when_somebody_asks(tmp_path: Path) -> None:
    metrics, rooms = Metrics(tmp_path), {"a": 1.0}
    metrics.read("rooms", "Rooms", "name", lambda: rooms)
    rooms["b"] = 2.0
    text = metrics.text().decode()
    assert 'ship_sandboxd_rooms{name="a"} 1.0\nship_sandboxd_rooms{name="b"} 2.0\n' in text


def test_prometheus_reads_numbers_of_the_whole_host(own_host: Callable[..., Host]) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.commands.run("true")
    get(host, "/nothing/here")
    sandbox.commands.run(
        "curl -s http://127.0.0.2/ || curl -sx http://127.0.0.1:3128 http://169.254.169.254/"
    )
    text = get(host, "/metrics").text
    lines = dict(line.rpartition(" ")[::2] for line in text.splitlines() if not line.startswith("#"))
    assert lines['ship_sandboxd_sandboxes{state="running"}'] == "1"
    assert lines["ship_sandboxd_create_seconds_count"] == "1"
    assert lines["ship_sandboxd_command_seconds_count"] == "2"
    assert lines['ship_sandboxd_requests_total{method="POST",path="/v2/sandboxes",status="201"}'] == "1"
    assert lines['ship_sandboxd_requests_total{method="any",path="unknown",status="404"}'] == "1"
    assert float(lines['ship_sandboxd_egress_refusals_total{kind="address"}']) > 0
    assert float(lines["ship_sandboxd_data_free_bytes"]) > 0
    assert 5 < int(lines["process_open_fds"]) < int(lines["process_max_fds"])
    assert sandbox.sandbox_id not in text


def test_a_shortage_of_memory_is_counted_and_in_the_log(own_host: Callable[..., Host]) -> None:
    host = own_host()
    (host.data / "templates" / "small").mkdir(parents=True)
    (host.data / "templates" / "small" / "template.json").write_text('{"memory_mb": 256}')
    if not httpx.get(f"{host.url}/health").json()["limits"]["memory"]:
        pytest.skip("memory is not limited on this machine")
    sandbox = host.create(template="small")
    with pytest.raises(CommandExitException):
        sandbox.commands.run("python3 -c 'x = bytearray(600_000_000)'")
    eventually(lambda: "memory_shortages_total{backend=" in get(host, "/metrics").text)
    text = get(host, "/metrics").text
    assert float(text.partition('memory_shortages_total{backend="bubblewrap"} ')[2].split()[0]) >= 1
    log = get(host, f"/v2/sandboxes/{sandbox.sandbox_id}/logs", level="warn").json()["logs"]
    assert "out_of_memory" in [entry["fields"].get("code") for entry in log]


def test_numbers_of_the_whole_host_are_not_for_every_tenant(
    own_host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys.json").write_text('{"red": ["a-key-of-the-red-tenant"]}')
    monkeypatch.setenv("SHIP_SANDBOXD_METRICS_KEY", "only-for-metrics")
    host = own_host("--keys", str(tmp_path / "keys.json"))
    status = [
        httpx.get(f"{host.url}/metrics", headers={"Authorization": f"Bearer {key}"}).status_code
        for key in ("only-for-metrics", API_KEY, "a-key-of-the-red-tenant", "x")
    ]
    assert status == [200, 200, 401, 401]
    assert get(host, "/v2/sandboxes", key="only-for-metrics").status_code == 401
    monkeypatch.delenv("SHIP_SANDBOXD_METRICS_KEY")
    public = own_host("--metrics-public")
    assert httpx.get(f"{public.url}/metrics").status_code == 200


def test_each_request_is_logged_for_who_asks_for_it_and_no_key_is(own_host: Callable[..., Host]) -> None:
    host = own_host("--log-level", "debug")
    get(host, "/v2/sandboxes", metadata="secret=1")
    get(host, "/sandboxes/nothere")

    def requests() -> list[dict[str, object]]:
        lines = [json.loads(line) for line in host.log().splitlines()]
        return [line for line in lines if line["event"] == "request"]

    eventually(lambda: len(requests()) == 2)
    assert [(line["path"], line["status"]) for line in requests()] == [
        ("/v2/sandboxes", 200),
        ("/sandboxes/{sandboxID}", 404),
    ]
    assert API_KEY not in host.log() and "secret" not in host.log()
