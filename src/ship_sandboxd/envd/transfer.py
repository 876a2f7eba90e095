"""`/files`: download, upload and compose, streamed in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from .account import Account
from .filesystem import METADATA_PREFIX, read_metadata
from .http1 import CHUNK_BYTES, Exchange, ProtocolError
from .multipart import parameter, parts
from .rpc import MAX_MESSAGE_BYTES, Message, RpcError, basic_username, decode, encode
from .splice import save

METADATA_HEADER_PREFIX = "x-metadata-"
MAX_METADATA_KEY_BYTES = 246
MAX_METADATA_BYTES = 4096
COPY_BYTES = 1 << 30
_STATUS = {
    errno.ENOENT: 404,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.EISDIR: 400,
    errno.ENOTDIR: 400,
    errno.ENAMETOOLONG: 400,
    errno.ELOOP: 400,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}


Save = Callable[[int], Awaitable[None]]


class TransferError(Exception):
    """A transfer that failed; `status` is what HTTP answers."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Transfer:
    """The methods of `/files`."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def download(self, exchange: Exchange, query: dict[str, str]) -> None:
        """Send a file: status 200, or 206 for one byte range."""
        user = self._user(exchange, query.get("username", ""))
        path = self._account.path(query.get("path", ""), user)
        with _Opened(path) as file:
            start, stop, fields = _range(exchange.request.headers.get("range"), file.size)
            fields += [("Content-Type", "application/octet-stream"), ("Content-Length", str(stop - start))]
            fields.append(("Accept-Ranges", "bytes"))
            await exchange.send_head(206 if "Content-Range" in dict(fields) else 200, fields)
            if exchange.request.method != "HEAD":
                await exchange.connection.send_file(file.fd, start, stop - start)

    async def upload(self, exchange: Exchange, query: dict[str, str]) -> None:
        """Write one file (octet-stream) or several (multipart); answers what was written."""
        user = self._user(exchange, query.get("username", ""))
        headers = exchange.request.headers
        metadata = _metadata(headers.fields)
        encoding, content_type = headers.get("content-encoding"), headers.get("content-type")
        if content_type.lower().startswith("multipart/form-data"):
            body = _decoded(exchange.body(), encoding)
            written = await self._upload_parts(body, content_type, query.get("path", ""), metadata, user)
        elif query.get("path"):
            how = exchange.save_body if not encoding else partial(save, _decoded(exchange.body(), encoding))
            written = [await self._write(self._account.path(query["path"], user), how, metadata)]
        else:
            raise TransferError(400, "the query parameter 'path' is missing")
        await exchange.respond(200, encode_list(written), "application/json")

    async def _upload_parts(
        self, body: AsyncIterator[bytes], content_type: str, path: str, metadata: dict[str, str], user: str
    ) -> list[Message]:
        boundary = parameter(content_type, "boundary")
        if not boundary:
            raise TransferError(400, "the multipart boundary is missing")
        written: list[Message] = []
        async for part in parts(body, boundary):
            if part.name != "file":
                continue
            if path and written:
                raise TransferError(400, "several files, but one path")
            target = path or part.filename
            if not target:
                raise TransferError(400, "a file has neither a path nor a file name")
            written.append(
                await self._write(self._account.path(target, user), partial(save, part.data), metadata)
            )
        if not written:
            raise TransferError(400, "no file was sent")
        return written

    async def compose(self, exchange: Exchange) -> None:
        """Make one file of several, in order, and delete those. The old files go last, so a failure loses nothing."""
        wanted = decode(await exchange.read_all(MAX_MESSAGE_BYTES))
        user = self._user(exchange, str(wanted.get("username") or ""))
        names = wanted.get("source_paths")
        if not isinstance(names, list) or not names or not wanted.get("destination"):
            raise TransferError(400, "source_paths (a list) and destination are needed")
        sources = [self._account.path(str(name), user) for name in names]
        destination = self._account.path(str(wanted["destination"]), user)
        try:
            await asyncio.get_running_loop().run_in_executor(None, _compose, sources, destination)
        except OSError as error:
            raise transfer_error(error, str(error.filename or destination)) from error
        await exchange.respond(200, encode(_written(destination)), "application/json")

    async def _write(self, path: str, how: Save, metadata: dict[str, str]) -> Message:
        try:
            fd = await asyncio.get_running_loop().run_in_executor(None, _create, path)
            try:
                await how(fd)
                _set_metadata(fd, metadata)
            finally:
                os.close(fd)
        except OSError as error:
            raise transfer_error(error, path) from error
        return _written(path)

    def _user(self, exchange: Exchange, username: str) -> str:
        try:
            asked = basic_username(exchange.request.headers.get("authorization"))
            return self._account.require(username or asked)
        except RpcError as error:
            raise TransferError(401, str(error)) from error


def encode_list(messages: list[Message]) -> bytes:
    return b"[" + b",".join(encode(message) for message in messages) + b"]"


def transfer_error(error: OSError, path: str) -> TransferError:
    text = "file not found" if error.errno == errno.ENOENT else (error.strerror or str(error)).lower()
    return TransferError(_STATUS.get(error.errno or 0, 500), f"{text}: '{path}'")


class _Opened:
    """A regular file that is open for reading; opening never waits for the other side of a pipe."""

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise transfer_error(error, path) from error
        info = os.fstat(self.fd)
        self.size = info.st_size
        if not stat.S_ISREG(info.st_mode):
            os.close(self.fd)
            kind = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise TransferError(400, f"path '{path}' is {kind}")

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _range(field: str, size: int) -> tuple[int, int, list[tuple[str, str]]]:
    """The (start, stop) that `Range: bytes=a-b` asks for; anything else means the whole file."""
    unit, _, span = field.partition("=")
    first, dash, last = span.strip().partition("-")
    digits = (first or "0") + (last or "0")
    if (
        unit.strip() != "bytes"
        or not dash
        or not (first or last)
        or not (digits.isascii() and digits.isdigit())
    ):
        return 0, size, []
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise TransferError(416, f"the range '{field}' lies outside of the file's {size} bytes")
    return start, stop, [("Content-Range", f"bytes {start}-{stop - 1}/{size}")]


def _create(path: str) -> int:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EISDIR, "path is not a regular file")
    os.fchown(fd, os.getuid(), os.getgid())  # as envd does; who watches the folder counts on that event
    return fd


def _compose(sources: list[str], destination: str) -> None:
    scratch = f"{destination}.{os.urandom(8).hex()}"
    opened: list[int] = []
    try:
        target = _create(scratch)
        opened.append(target)
        for source in sources:
            fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.append(fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EISDIR, "path is not a regular file", source)
            while os.sendfile(target, fd, None, COPY_BYTES):
                pass
            os.close(opened.pop())
        os.replace(scratch, destination)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    finally:
        for fd in opened:
            os.close(fd)
    for source in set(sources) - {destination}:
        os.unlink(source)


def _written(path: str) -> Message:
    info: Message = {"name": os.path.basename(path), "type": "file", "path": path}
    metadata = read_metadata(path)
    if metadata:
        info["metadata"] = metadata
    return info


def _metadata(fields: list[tuple[str, str]]) -> dict[str, str]:
    """What the X-Metadata-… fields ask for; of a field that comes twice the first one holds."""
    metadata: dict[str, str] = {}
    for field, value in fields:
        key = field.lower()
        if key.startswith(METADATA_HEADER_PREFIX):
            metadata.setdefault(key[len(METADATA_HEADER_PREFIX) :], value)
    for key, value in metadata.items():
        if not (key + value).isascii() or not (key + value).isprintable():
            raise TransferError(400, f"the metadata '{key}' is not printable ASCII")
        if not 0 < len(key) <= MAX_METADATA_KEY_BYTES:
            raise TransferError(400, f"a metadata key must have 1 to {MAX_METADATA_KEY_BYTES} characters")
    if sum(len(METADATA_PREFIX + key + value) for key, value in metadata.items()) > MAX_METADATA_BYTES:
        raise TransferError(400, f"the metadata of a file is larger than {MAX_METADATA_BYTES} bytes")
    return metadata


def _set_metadata(fd: int, metadata: dict[str, str]) -> None:
    """Make these the file's metadata; what an earlier upload gave is gone."""
    try:
        stale = [name for name in os.listxattr(fd) if name.startswith(METADATA_PREFIX)]
    except OSError:
        stale = []  # the file system keeps none
    for name in stale:
        if name[len(METADATA_PREFIX) :] not in metadata:
            os.removexattr(fd, name)
    for key, value in metadata.items():
        os.setxattr(fd, METADATA_PREFIX + key, value.encode("ascii"))


async def _decoded(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The body without its content encoding; gzip is expanded piece by piece."""
    if encoding.lower() in ("", "identity"):
        async for piece in body:
            yield piece
        return
    if encoding.lower() != "gzip":
        raise ProtocolError(f"the content encoding '{encoding}' is not supported", 415)
    expand = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        async for piece in body:
            while piece:
                if expand.eof:  # another member follows
                    expand = zlib.decompressobj(16 + zlib.MAX_WBITS)
                yield expand.decompress(piece, CHUNK_BYTES)
                piece = expand.unconsumed_tail or expand.unused_data
    except zlib.error as error:
        raise ProtocolError("the body is not valid gzip") from error
    yield expand.flush()
    if not expand.eof:
        raise ProtocolError("the gzip body is cut short")
