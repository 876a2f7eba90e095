"""What a tenant may have of a host that it shares, and what is kept free of its disk."""

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import RateLimitException, Sandbox

from ship_sandboxd.builds import places
from ship_sandboxd.errors import DiskFull, QuotaExceeded, SetupError
from ship_sandboxd.quotas import Quota, Quotas

RED, BLUE = "red-" + "1" * 20, "blue-" + "2" * 20


def written(folder: Path, values: object) -> Path:
    path = folder / "quotas.json"
    path.with_suffix(".new").write_text(json.dumps(values))
    path.with_suffix(".new").replace(path)
    return path


def test_a_tenant_has_its_own_quota_or_everyones_and_a_change_counts_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, {"red": {"sandboxes": 1, "disk_mb": 5}, "*": {"sandboxes": 2}})
    quotas = Quotas(tmp_path, path)
    assert quotas.of("red") == Quota(sandboxes=1, disk_mb=5)
    assert quotas.of("blue") == Quota(sandboxes=2)
    assert quotas.of(" builds") == Quota()
    written(tmp_path, {"red": {"sandboxes": 30}})
    assert [quotas.of("red"), quotas.of("blue")] == [Quota(sandboxes=30), Quota()]
    path.write_text("{")
    assert quotas.of("red") == Quota(sandboxes=30)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "object of quotas"),
        ({"red": 5}, "with some of"),
        ({"red": {"sandbox": 5}}, "with some of"),
        ({"red": {"sandboxes": -1}}, "sandboxes of red"),
        ({"red": {"sandboxes": True}}, "sandboxes of red"),
    ],
)
def test_a_file_that_makes_no_sense_stops_the_start(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        Quotas(tmp_path, written(tmp_path, values))
    assert caught.value.code == "quotas_invalid"


def test_what_fits_exactly_is_let_through() -> None:
    Quota(memory_mb=512).check("memory_mb", 256, 256)
    with pytest.raises(
        QuotaExceeded, match="256 of 512 MB of memory for its sandboxes, and asks for 257 more"
    ):
        Quota(memory_mb=512).check("memory_mb", 256, 257)
    Quota().check("sandboxes", 10**6)


def test_a_disk_that_runs_low_takes_nothing_new(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    Quotas(tmp_path, None, 1).check_room()
    with pytest.raises(DiskFull, match="stay free") as caught:
        Quotas(tmp_path, None, status.f_blocks * status.f_frsize // 2**20 + 1).check_room()
    assert caught.value.code == "disk_low"


class Running:
    """Builds that run until they are told to end."""

    def __init__(self) -> None:
        self.places = places.Places()
        self.began: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._end: dict[str, asyncio.Event] = {}

    async def begin(self, *names: str) -> None:
        """Builds of the tenants that their names begin with."""
        for name in names:
            self._end[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._build(name))
        await self.settle()

    async def _build(self, name: str) -> None:
        async with self.places.one(name[0]):
            self.began.append(name)
            await self._end[name].wait()

    async def end(self, name: str) -> None:
        self._end[name].set()
        await self.tasks[name]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await self.settle()


async def test_no_tenant_holds_all_places_of_builds() -> None:
    running = Running()
    await running.begin("a1", "a2", "a3", "a4", "a5")
    assert running.began == ["a1", "a2", "a3"]
    await running.begin("b1", "b2", "c1")
    assert running.began[3:] == ["b1"]
    await running.end("a1")
    assert running.began[4:] == ["c1"], "who holds none comes before who has waited longest"
    await running.end("b1")
    assert running.began[5:] == ["b2"]
    for name in ("a2", "a3", "b2", "c1"):
        await running.end(name)
    assert running.began[6:] == ["a4", "a5"]
    for name in ("a4", "a5"):
        await running.end(name)


async def test_a_build_that_is_cancelled_gives_its_place_and_its_turn_away() -> None:
    running = Running()
    await running.begin("a1", "a2", "a3", "a4", "a5")
    await running.cancel("a4")
    await running.cancel("a1")
    assert running.began == ["a1", "a2", "a3", "a5"]
    for name in ("a2", "a3", "a5"):
        await running.end(name)
    await running.begin("a6", "a7", "a8")
    assert running.began[4:] == ["a6", "a7", "a8"]
    for name in ("a6", "a7", "a8"):
        await running.end(name)


@pytest.fixture
def quotas(tmp_path: Path) -> dict[str, dict[str, int]]:
    return {"red": {"sandboxes": 2, "disk_mb": 25_000, "snapshots": 1, "templates": 1}}


@pytest.fixture
def shared_host(own_host: Callable[..., Host], tmp_path: Path, quotas: object) -> Host:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"red": [RED], "blue": [BLUE]}))
    keys.chmod(0o600)
    return own_host("--keys", str(keys), "--quotas", str(written(tmp_path, quotas)))


def ask(host: Host, key: str, method: str, path: str, **body: Any) -> httpx.Response:
    return httpx.request(method, host.url + path, headers={"X-API-KEY": key}, json=body, timeout=60)


def refused(answer: httpx.Response) -> bool:
    said = answer.json()
    return (answer.status_code, said["code"], said["error_code"]) == (429, 429, "quota_exceeded")


@pytest.mark.system
def test_a_tenant_gets_no_more_than_its_quota_and_the_others_go_on(
    shared_host: Host, tmp_path: Path, quotas: dict[str, dict[str, int]]
) -> None:
    host = shared_host
    red = {**host.options_of_sdk, "api_key": RED, "validate_api_key": False}
    first, second = (Sandbox.create(timeout=300, **red) for _ in range(2))
    second.pause()  # a paused one counts as well
    with pytest.raises(RateLimitException, match="2 of 2 sandboxes"):
        Sandbox.create(**red)
    answer = ask(host, RED, "POST", "/v2/sandboxes", templateID="base")
    assert refused(answer)
    assert answer.headers["Should-Retry"] == "false"
    forks = ask(host, RED, "POST", f"/sandboxes/{first.sandbox_id}/fork").json()
    assert "429" in json.dumps(forks)
    assert ask(host, BLUE, "POST", "/v2/sandboxes", templateID="base").status_code == 201
    second.kill()
    Sandbox.create(timeout=300, **red).kill()
    written(tmp_path, {"red": {**quotas["red"], "disk_mb": 15_000}})
    with pytest.raises(RateLimitException, match="MB of disk"):
        Sandbox.create(**red)
    assert len(list((host.data / "sandboxes").iterdir())) == 2


@pytest.mark.system
@pytest.mark.parametrize("options", [("--warm", "base=4"), ("--spares", "4")], ids=["warm", "spares"])
def test_callers_at_once_get_no_more_than_their_quota(
    own_host: Callable[..., Host], tmp_path: Path, options: tuple[str, str]
) -> None:
    host = own_host("--quotas", str(written(tmp_path, {"*": {"sandboxes": 1}})), *options)
    if options[0] == "--warm" or os.geteuid() == 0:
        eventually(lambda: [record["state"] for record in host.records()] == ["warm"] * 4)
    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(ask, host, API_KEY, "POST", "/v2/sandboxes", templateID="base") for _ in range(4)
        ]
    assert sorted(one.result().status_code for one in asked) == [201, 429, 429, 429]


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="layers need a sandbox host that runs as root")
def test_snapshots_and_templates_have_their_quotas(shared_host: Host) -> None:
    host = shared_host
    sandbox_id = ask(host, RED, "POST", "/v2/sandboxes", templateID="base").json()["sandboxID"]
    one = f"/sandboxes/{sandbox_id}/snapshots"
    assert ask(host, RED, "POST", one, name="kept").status_code == 201
    assert ask(host, RED, "POST", one, name="kept").status_code == 201, "it takes the place of the first"
    assert refused(ask(host, RED, "POST", one, name="another"))
    assert refused(ask(host, RED, "POST", one))
    assert ask(host, RED, "POST", "/v3/templates", name="first").status_code == 202
    assert ask(host, RED, "POST", "/v3/templates", name="first").status_code == 202, "one more build of it"
    assert refused(ask(host, RED, "POST", "/v3/templates", name="second"))
    assert ask(host, BLUE, "POST", "/v3/templates", name="second").status_code == 202


@pytest.mark.system
def test_a_build_is_no_larger_than_what_its_tenant_may_have(shared_host: Host, tmp_path: Path) -> None:
    written(tmp_path, {"red": {"memory_mb": 2048, "disk_mb": 11_000}})

    def announced(**size: int) -> httpx.Response:
        return ask(shared_host, RED, "POST", "/v3/templates", name="sized", **size)

    assert refused(announced()), "the default is 4096 MB"
    assert refused(announced(memoryMB=1024, minFreeDiskMb=11_001))
    assert announced(memoryMB=2048, minFreeDiskMb=11_000).status_code == 202
    written(tmp_path, {"red": {"memory_mb": 512}})
    assert refused(announced(memoryMB=512)), "the sandboxes of a build get more"
    assert ask(shared_host, BLUE, "POST", "/v3/templates", name="sized").status_code == 202


@pytest.mark.system
def test_nothing_new_is_made_on_a_disk_that_runs_low(own_host: Callable[..., Host]) -> None:
    host = own_host("--min-free", str(10**9))
    for path, body in (("/v2/sandboxes", {"templateID": "base"}), ("/v3/templates", {"name": "new"})):
        answer = ask(host, API_KEY, "POST", path, **body)
        assert (answer.status_code, answer.json()["error_code"]) == (507, "disk_low")
    assert list((host.data / "sandboxes").iterdir()) == []
