"""Templates: what there are, how new ones are built, and the tags that point to their builds."""

import base64
import binascii
from typing import Any
from urllib.parse import quote, urlencode

from ..builds.build_log import LEVELS, LogEntry
from ..builds.builds import Builds
from ..builds.catalogue import ERROR, Build, Entry, Size, check_tag
from ..builds.recipes import parse
from ..errors import BadRequest, NotFound, Unsupported
from ..lifecycle.snapshots import Snapshots
from ..templates import Template
from .call import Answer, Call, Route, parse_number, timestamp
from .router import unsupported
from .sandboxes import ENVD_VERSION

MAX_PAGE = 100
MAX_CPUS, MAX_MEMORY_MB, MAX_DISK_MB = 64, 1024 * 1024, 1024 * 1024
LEAST_MEMORY_MB = 128
_NO_BUILD = "00000000-0000-0000-0000-000000000000"
_DEFAULTS = Size()


class TemplateRoutes:
    def __init__(self, builds: Builds, snapshots: Snapshots) -> None:
        self._builds = builds
        self._snapshots = snapshots
        self._catalogue = builds.catalogue

    def table(self) -> list[Route]:
        one = "/templates/{templateID}"
        build = f"{one}/builds/{{buildID}}"
        upload = f"{one}/files/{{hash}}"
        return [
            Route("GET", "/templates", self._list),
            Route("GET", "/v2/templates", self._list),
            Route("GET", "/default-templates", self._defaults),
            Route("POST", "/templates", unsupported),
            Route("POST", one, unsupported),
            Route("POST", build, unsupported),
            Route("POST", "/v2/templates", self._request_v2),
            Route("POST", "/v3/templates", self._request),
            Route("GET", one, self._get),
            Route("PATCH", one, self._update),
            Route("PATCH", f"/v2{one}", self._update),
            Route("DELETE", one, self._delete),
            Route("GET", upload, self._upload_link),
            Route("PUT", upload, self._upload, open=True, streamed=True),
            Route("POST", f"/v2{build}", self._start),
            Route("GET", f"{build}/status", self._status),
            Route("GET", f"{build}/logs", self._logs),
            Route("GET", f"{one}/tags", self._tags),
            Route("GET", f"{one}/tags/count", self._count_tags),
            Route("GET", f"{one}/tags/exists", self._has_tag),
            Route("POST", "/templates/tags", self._assign),
            Route("DELETE", "/templates/tags", self._unassign),
            Route("GET", "/templates/aliases/{alias}", self._alias),
        ]

    async def _request(self, call: Call) -> Answer:
        """A new build, which does not begin before it is told its steps."""
        body = call.body
        name = body.get("name") or body.get("alias")
        if not isinstance(name, str):
            raise BadRequest("name is missing")
        entry, build = self._catalogue.request(
            call.tenant,
            name,
            _tags(body.get("tags") or []),
            _size(body),
        )
        return Answer(
            202,
            {
                "templateID": entry.id,
                "buildID": build.id,
                "public": False,
                "names": [entry.name],
                "aliases": [entry.name],
                "tags": build.tags,
            },
        )

    async def _request_v2(self, call: Call) -> Answer:
        answer = await self._request(call)
        entry = self._catalogue.entry(answer.value["templateID"], call.tenant)
        return Answer(202, {**_listed(entry), "buildID": answer.value["buildID"]})

    async def _start(self, call: Call) -> Answer:
        entry, build = self._build(call)
        self._builds.start(entry, build, parse(call.body))
        return Answer(202)

    async def _upload_link(self, call: Call) -> Answer:
        entry = self._entry(call)
        files_hash = call.variables["hash"]
        present = self._builds.uploads.path(entry.tenant, files_hash).is_file()
        proof = self._builds.uploads.query(entry.id, files_hash)
        path = f"/templates/{entry.id}/files/{quote(files_hash)}?{urlencode(proof)}"
        return Answer(201, {"present": present, "url": f"{_origin(call)}{path}"})

    async def _upload(self, call: Call) -> Answer:
        template_id, files_hash = call.variables["templateID"], call.variables["hash"]
        self._builds.uploads.check(template_id, files_hash, call.query)
        tenant = self._catalogue.tenant_of(template_id)
        await self._builds.uploads.store(tenant, files_hash, call.exchange.body())
        return Answer(200)

    async def _status(self, call: Call) -> Answer:
        entry, build = self._build(call)
        # The state first: an answer that says how a build has ended must not lack its last lines.
        state = build.status
        entries = _of_level((await self._builds.log(build.id)).entries, call.query.get("level", ""))
        offset = parse_number(call.query.get("logsOffset", "0"), "logsOffset")
        page = entries[offset : offset + _limit(call)]
        answer: dict[str, Any] = {
            "templateID": entry.id,
            "buildID": build.id,
            "status": state,
            "logs": [f"{each.message}\n" for each in page],
            "logEntries": [_log_entry(each) for each in page],
        }
        if state == ERROR:
            related = [each for each in entries if build.step and each.step == build.step][-MAX_PAGE:]
            answer["reason"] = {
                "message": build.reason,
                "logEntries": [_log_entry(each) for each in related],
                **({"step": build.step} if build.step else {}),
            }
        return Answer(200, answer)

    async def _logs(self, call: Call) -> Answer:
        _, build = self._build(call)
        entries = _of_level((await self._builds.log(build.id)).entries, call.query.get("level", ""))
        backward = call.query.get("direction") == "backward"
        if call.query.get("cursor"):
            cursor_ms = _milliseconds(call.query["cursor"])
            entries = [
                each
                for each in entries
                if (each.time * 1000 <= cursor_ms if backward else each.time * 1000 >= cursor_ms)
            ]
        page = entries[::-1][: _limit(call)] if backward else entries[: _limit(call)]
        return Answer(200, {"logs": [_log_entry(each) for each in page]})

    async def _list(self, call: Call) -> Answer:
        """A tenant's templates, newest first, then the operator's."""
        listed = [_listed(entry) for entry in self._catalogue.entries(call.tenant)]
        listed += [_operators(template) for template in self._catalogue.operators()]
        if "/v2/" not in call.exchange.request.target:
            return Answer(200, listed)
        page, fields = _page(call, listed, "templateID")
        return Answer(200, page, fields)

    async def _defaults(self, call: Call) -> Answer:
        """Those of the operator, by name."""
        operators = sorted(self._catalogue.operators(), key=lambda template: template.name)
        return Answer(200, [_operators(template) for template in operators])

    async def _get(self, call: Call) -> Answer:
        entry = self._entry(call)
        builds = sorted(entry.builds.values(), key=lambda build: build.created_at, reverse=True)
        page, fields = _page(call, [_build(build) for build in builds], "buildID")
        listed = _listed(entry)
        kept = (
            "templateID",
            "public",
            "aliases",
            "names",
            "createdAt",
            "updatedAt",
            "lastSpawnedAt",
            "spawnCount",
        )
        return Answer(200, {**{key: listed[key] for key in kept}, "builds": page}, fields)

    async def _update(self, call: Call) -> Answer:
        entry = self._entry(call)
        if call.body.get("public"):
            raise Unsupported(
                "a template belongs to its tenant: sharing it (public) is not offered by this host"
            )
        return Answer(200, {"names": [entry.name]})

    async def _delete(self, call: Call) -> Answer:
        """A snapshot is a template to its users."""
        try:
            entry = self._entry(call)
        except NotFound:
            await self._snapshots.delete(call.variables["templateID"], call.tenant)
        else:
            await self._builds.delete(entry)
        return Answer(204)

    async def _tags(self, call: Call) -> Answer:
        entry = self._entry(call)
        return Answer(
            200,
            [
                {"tag": name, "buildID": tag.build_id, "createdAt": timestamp(tag.created_at)}
                for name, tag in entry.tags.items()
            ],
        )

    async def _count_tags(self, call: Call) -> Answer:
        return Answer(200, {"total": len(self._entry(call).ready_tags)})

    async def _has_tag(self, call: Call) -> Answer:
        tag = call.query.get("tag", "")
        check_tag(tag)
        return Answer(200, {"exists": tag in self._entry(call).ready_tags, "normalizedTag": tag})

    async def _assign(self, call: Call) -> Answer:
        target, tags = call.body.get("target"), _tags(call.body.get("tags"))
        if not isinstance(target, str) or not tags:
            raise BadRequest("target (name:tag) and tags are needed")
        build = self._catalogue.assign(target, tags, call.tenant)
        return Answer(201, {"tags": tags, "buildID": build.id})

    async def _unassign(self, call: Call) -> Answer:
        name, tags = call.body.get("name"), _tags(call.body.get("tags"))
        if not isinstance(name, str) or not tags:
            raise BadRequest("name and tags are needed")
        self._catalogue.unassign(name, tags, call.tenant)
        return Answer(204)

    async def _alias(self, call: Call) -> Answer:
        name = call.variables["alias"]
        if self._catalogue.is_operators(name):
            return Answer(200, {"templateID": name, "public": True})
        entry = self._catalogue.entry(name, call.tenant)
        if ":" in name:
            self._catalogue.known(name, call.tenant)
        return Answer(200, {"templateID": entry.id, "public": False})

    def _entry(self, call: Call) -> Entry:
        return self._catalogue.entry(call.variables["templateID"], call.tenant)

    def _build(self, call: Call) -> tuple[Entry, Build]:
        entry = self._entry(call)
        return entry, entry.build(call.variables["buildID"])


def _listed(entry: Entry) -> dict[str, Any]:
    newest = entry.newest
    return {
        "templateID": entry.id,
        "buildID": newest.id,
        "cpuCount": newest.cpu_count,
        "memoryMB": newest.memory_mb,
        "diskSizeMB": newest.disk_mb,
        "public": False,
        "aliases": [entry.name],
        "names": [entry.name],
        "createdAt": timestamp(entry.created_at),
        "updatedAt": timestamp(entry.updated_at),
        "createdBy": None,
        "lastSpawnedAt": timestamp(entry.last_spawned_at) if entry.last_spawned_at else None,
        "spawnCount": entry.spawn_count,
        "buildCount": len(entry.builds),
        "envdVersion": ENVD_VERSION,
        "buildStatus": newest.status,
    }


def _operators(template: Template) -> dict[str, Any]:
    """What the operator has laid out was not built, and nothing is known of its age."""
    never = timestamp(0)
    return {
        "templateID": template.name,
        "buildID": _NO_BUILD,
        "cpuCount": template.cpu_count,
        "memoryMB": template.memory_mb,
        "diskSizeMB": template.disk_mb,
        "public": True,
        "aliases": [template.name],
        "names": [template.name],
        "createdAt": never,
        "updatedAt": never,
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 0,
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready",
        "isDefault": True,
    }


def _build(build: Build) -> dict[str, Any]:
    return {
        "buildID": build.id,
        "status": build.status,
        "createdAt": timestamp(build.created_at),
        "updatedAt": timestamp(build.finished_at or build.updated_at),
        "cpuCount": build.cpu_count,
        "memoryMB": build.memory_mb,
        "diskSizeMB": build.disk_mb,
        "envdVersion": ENVD_VERSION,
        **({"finishedAt": timestamp(build.finished_at)} if build.finished_at else {}),
    }


def _log_entry(entry: LogEntry) -> dict[str, Any]:
    return {
        "timestamp": timestamp(entry.time),
        "message": entry.message,
        "level": entry.level,
        **({"step": entry.step} if entry.step else {}),
    }


def _of_level(entries: list[LogEntry], level: str) -> list[LogEntry]:
    """The entries that are at least so bad."""
    if not level:
        return entries
    if level not in LEVELS:
        raise BadRequest(f"level must be one of {', '.join(LEVELS)}")
    wanted = LEVELS[LEVELS.index(level) :]
    return [entry for entry in entries if entry.level in wanted]


def _limit(call: Call) -> int:
    return min(parse_number(call.query.get("limit", str(MAX_PAGE)), "limit"), MAX_PAGE)


def _milliseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise BadRequest("cursor must be a time in milliseconds")
    return int(text)


def _page(
    call: Call, items: list[dict[str, Any]], key: str
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The page after the item that `nextToken` names, of items newest first; the header X-Next-Token leads to the next one."""
    token = call.query.get("nextToken", "")
    if token:
        try:
            created_at, last = base64.urlsafe_b64decode(token).decode().split(" ")
        except (binascii.Error, ValueError) as error:
            raise BadRequest("nextToken is not one that this host gave", "next_token_invalid") from error
        ids = [item[key] for item in items]
        if last in ids:
            items = items[ids.index(last) + 1 :]
        else:  # it is gone; what came after it was made before it
            items = [item for item in items if (item["createdAt"], item[key]) < (created_at, last)]
    limit = max(1, _limit(call))
    page = items[:limit]
    if len(items) <= limit:
        return page, []
    token = f"{page[-1]['createdAt']} {page[-1][key]}"
    return page, [("X-Next-Token", base64.urlsafe_b64encode(token.encode()).decode())]


def _tags(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise BadRequest("tags must be a list of strings")
    return list(dict.fromkeys(value))


def _size(body: dict[str, Any]) -> Size:
    """What a template's sandboxes get. Layers lie below their disks, so all of a disk is free at first."""
    free_mb = _number(body, "minFreeDiskMb", 0, 0, MAX_DISK_MB)
    return Size(
        _number(body, "cpuCount", _DEFAULTS.cpu_count, 1, MAX_CPUS),
        _number(body, "memoryMB", _DEFAULTS.memory_mb, LEAST_MEMORY_MB, MAX_MEMORY_MB),
        max(free_mb, _DEFAULTS.disk_mb),
    )


def _number(body: dict[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"{key} must be a whole number from {least} to {most}")
    return value


def _origin(call: Call) -> str:
    """Where the caller has found this host."""
    host = call.header("host")
    if not host:
        raise NotFound("the request has no Host field to make a link with", "host_missing")
    secure = call.exchange.connection.secure or call.header("x-forwarded-proto") == "https"
    return f"{'https' if secure else 'http'}://{host}"
