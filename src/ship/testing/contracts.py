"""What every adapter of a port must do, as checks to be run on each of them, fakes included."""

from collections.abc import AsyncIterator, Awaitable
from hashlib import sha256

from ship.errors import NotFound, ShipError, TooLarge
from ship.ports.blobs import BlobStore
from ship.ports.sandboxes import SandboxHost


async def check_blob_store(blobs: BlobStore) -> None:
    """Every sentence of ``BlobStore``. Raises AssertionError."""
    pieces = [b"abc", b"", b"x" * 3_000_000]
    stored = await blobs.put(_each(pieces), 4_000_000)
    whole = b"".join(pieces)
    assert stored.sha256 == sha256(whole).hexdigest()
    assert stored.size_bytes == len(whole)
    read = [piece async for piece in blobs.get(stored.sha256)]
    assert b"".join(read) == whole
    assert max(map(len, read)) <= 1 << 20
    assert await blobs.put(_each([whole]), 4_000_000) == stored
    assert await blobs.read(stored.sha256, 2, 5) == b"cxxxx"
    assert await blobs.read(stored.sha256, len(whole) - 2, 2) == b"xx"
    empty = await blobs.put(_each([]), 10)
    assert [piece async for piece in blobs.get(empty.sha256)] == []
    assert await _error(blobs.put(_each([b"12345", b"678901"]), 10)) == (TooLarge, "blob_too_large")
    for unknown in ("0" * 64, "../../etc/passwd", ""):
        assert await _error(anext(aiter(blobs.get(unknown)))) == (NotFound, "blob_not_found")
        assert await _error(blobs.read(unknown, 0, 1)) == (NotFound, "blob_not_found")


async def check_sandbox_host(host: SandboxHost, template: str) -> None:
    """Every sentence of ``SandboxHost`` that a host in memory can keep too. Raises AssertionError."""
    sandbox_id = await host.create(template, {"a": "1", "b": "2"}, 120)
    other_id = await host.create(template, {"a": "1", "b": "3"}, 120)
    assert {found for found, _ in await host.find({"a": "1"})} == {sandbox_id, other_id}
    ((found, metadata),) = await host.find({"a": "1", "b": "3"})
    assert (found, metadata["b"]) == (other_id, "3")
    await host.extend(sandbox_id, 60)
    assert (await host.run(sandbox_id, "exit 3", 10)).exit_code == 3
    failed = await host.run(sandbox_id, "no-such-command-here", 10)
    assert failed.exit_code == 127
    assert "not found" in failed.stderr
    assert not await host.running(sandbox_id, "sleep 61.5")
    await host.start(sandbox_id, "exec sleep 61.5", {"NAME": "value"})
    assert await host.running(sandbox_id, "sleep 61.5")
    assert not await host.running(other_id, "sleep 61.5")
    await host.pause(sandbox_id)
    await host.pause(sandbox_id)
    assert sandbox_id in {found for found, _ in await host.find({"a": "1"})}
    await host.resume(sandbox_id, 60)
    await host.resume(sandbox_id, 60)
    assert await host.running(sandbox_id, "sleep 61.5")
    await host.pause(other_id)
    assert await _error(host.list_files(sandbox_id, "/no/such")) == (NotFound, "file_not_found")
    assert await _error(anext(aiter(host.read_file(sandbox_id, "/no/such")))) == (NotFound, "file_not_found")
    await host.kill(sandbox_id)
    await host.kill(sandbox_id)
    assert [found for found, _ in await host.find({"a": "1"})] == [other_id]
    gone = (NotFound, "sandbox_not_found")
    assert await _error(host.extend(sandbox_id, 60)) == gone
    assert await _error(host.pause(sandbox_id)) == gone
    assert await _error(host.resume(sandbox_id, 60)) == gone
    assert await _error(host.run(sandbox_id, "exit 0", 10)) == gone
    assert await _error(host.running(sandbox_id, "x")) == gone
    assert await _error(host.start(sandbox_id, "true", {})) == gone
    await host.kill(other_id)


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _error(call: Awaitable[object]) -> tuple[type[ShipError], str] | None:
    try:
        await call
    except ShipError as error:
        return type(error), error.code
    return None
