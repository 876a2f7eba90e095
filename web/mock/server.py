"""A stand-in for the server while the web app is worked on: made-up sessions in every state, behind the real routes' addresses.

    python web/mock/server.py [--port 8700] [--mode full|empty|broken|signed-out]

It keeps everything in memory, knows no sandbox and no agent, and serves the built app too.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from scenes import DIFF, FILES, Scene, scenes
from starlette.websockets import WebSocketDisconnect

from ship.app import web

Json = dict[str, Any]
api = APIRouter(prefix="/api/v1")


class World:
    """All sessions and who listens."""

    def __init__(self, sessions: dict[str, Scene]) -> None:
        self.sessions = sessions
        self.changed = asyncio.Condition()

    async def append(self, session_id: str, kind: str, **data: Any) -> int:
        """One more event by the person at the browser."""
        scene = self.sessions[session_id]
        scene.add(kind, "you", **data)
        async with self.changed:
            self.changed.notify_all()
        return len(scene.records)


def problem(status: int, code: str, detail: str, hint: str = "") -> JSONResponse:
    """An error as the server words it."""
    body = {
        "type": "about:blank",
        "title": detail,
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
    }
    return JSONResponse(body, status, media_type="application/problem+json")


@api.get("/me")
async def me() -> Json:
    return {"name": "you", "search_modes": ["words", "meaning"]}


@api.get("/models")
async def models() -> Json:
    names = ["anthropic/claude-sonnet-5", "openai/gpt-6-codex", "scripted/demo"]
    items = [{"id": name, "provider": name.split("/")[0], "name": name.split("/")[1]} for name in names]
    return {"items": items, "default": names[0]}


@api.get("/sessions")
async def list_sessions(request: Request, status: str = "") -> Json:
    rows = [scene.summary() for scene in request.app.state.world.sessions.values()]
    rows.sort(key=lambda row: -row["created_at_ms"])
    return {"items": [row for row in rows if not status or row["status"] == status], "next_cursor": None}


@api.get("/sessions/stream")
async def stream(request: Request) -> Response:
    world: World = request.app.state.world

    async def lines() -> AsyncIterator[bytes]:
        yield b": listening\n\n"
        while True:
            async with world.changed:
                await world.changed.wait()
            for scene in world.sessions.values():
                yield b"data: %s\n\n" % json.dumps(scene.summary()).encode()

    return StreamingResponse(lines(), media_type="text/event-stream")


@api.post("/sessions")
async def create(request: Request) -> Response:
    body = await request.json()
    if "missing" in body["repository"]["source"]:
        hint = "Check the address, or sign in to the forge in the settings."
        return problem(422, "repository_not_found", "There is no repository at that address.", hint)
    world: World = request.app.state.world
    scene = Scene(f"ses_{len(world.sessions)}", body["prompt"][:80], body["repository"]["source"])
    world.sessions[scene.id] = scene
    scene.queue(body["prompt"])
    await world.append(scene.id, "sandbox.requested", generation=1, reason="")
    return JSONResponse({"id": scene.id}, 201)


@api.get("/sessions/{session_id}/events")
async def events(request: Request, session_id: str, after: int = 0, limit: int = 500) -> Response:
    scene = request.app.state.world.sessions.get(session_id)
    if scene is None:
        return problem(404, "session_not_found", "There is no such session.")
    return JSONResponse({"items": scene.records[after : after + limit], "head_seq": len(scene.records)})


@api.websocket("/sessions/{session_id}/events/ws")
async def follow(socket: WebSocket, session_id: str, after: int = 0) -> None:
    world: World = socket.app.state.world
    scene = world.sessions[session_id]
    await socket.accept()
    try:
        for delta in scene.deltas:
            await socket.send_json(delta)
        await socket.send_json({"t": "live", "head_seq": len(scene.records)})
        typing = asyncio.create_task(_type(socket, scene))
        sent = after
        while True:
            while sent < len(scene.records):
                await socket.send_json(scene.records[sent])
                sent += 1
            try:
                async with asyncio.timeout(10), world.changed:
                    await world.changed.wait()
            except TimeoutError:
                await socket.send_json({"t": "head", "head_seq": len(scene.records)})
    except (WebSocketDisconnect, RuntimeError):
        typing.cancel()


async def _type(socket: WebSocket, scene: Scene) -> None:
    """Let the growing parts grow, a few characters at a time."""
    for delta, more in zip(scene.deltas, scene.growth, strict=True):
        offset = len(delta["text"])
        for start in range(0, len(more), 7):
            text = more[start : start + 7]
            await socket.send_json({**delta, "offset": offset + start, "text": text})
            await asyncio.sleep(0.04)


@api.get("/sessions/{session_id}/diff")
async def diff(request: Request, session_id: str) -> Response:
    scene: Scene = request.app.state.world.sessions[session_id]
    return PlainTextResponse(DIFF if scene.has_diff else "", media_type="text/x-diff")


@api.get("/sessions/{session_id}/files")
async def files(path: str = "") -> Json:
    items: dict[str, Json] = {}
    inside = f"{path}/" if path else ""
    for name, content in FILES.items():
        if name.startswith(inside):
            first, _, rest = name[len(inside) :].partition("/")
            kind = "directory" if rest else "file"
            items[first] = {"name": first, "path": inside + first, "kind": kind, "size_bytes": len(content)}
    return {"items": list(items.values())}


@api.get("/sessions/{session_id}/files/content")
async def content(path: str) -> Response:
    return PlainTextResponse(FILES[path], media_type="application/octet-stream")


NO_LIMITS = {"time_s": 0, "tokens": 0, "cost_usd": 0.0}


@api.post("/sessions/{session_id}/tasks", status_code=202)
async def task(request: Request, session_id: str) -> Json:
    body = await request.json()
    world: World = request.app.state.world
    await _wake(world, session_id, "task")
    if body.get("mode") == "steer":
        steer = {"task_id": "t1", "steer_id": f"s{time.time_ns()}", "text": body["prompt"]}
        return {"task_id": "t1", "seq": await world.append(session_id, "task.steered", **steer)}
    queued = {
        "task_id": f"t{time.time_ns()}",
        "prompt": body["prompt"],
        "model": body.get("model") or "scripted/demo",
        "agent": body.get("agent") or "build",
        "limits": {**NO_LIMITS, **(body.get("limits") or {})},
    }
    return {"task_id": queued["task_id"], "seq": await world.append(session_id, "task.queued", **queued)}


@api.patch("/sessions/{session_id}/tasks/{task_id}", status_code=202)
async def edit(request: Request, session_id: str, task_id: str) -> Json:
    world: World = request.app.state.world
    known = world.sessions[session_id].state().task(task_id)
    assert known is not None
    limits = {"time_s": known.limits.time_s, "tokens": known.limits.tokens, "cost_usd": known.limits.cost_usd}
    edited = {
        "prompt": known.prompt,
        "model": known.model,
        "agent": known.agent,
        "limits": limits,
        **await request.json(),
    }
    return {"seq": await world.append(session_id, "task.edited", task_id=task_id, **edited)}


@api.post("/sessions/{session_id}/tasks/{task_id}/move", status_code=202)
async def move(request: Request, session_id: str, task_id: str) -> Json:
    before = (await request.json())["before"]
    world: World = request.app.state.world
    return {"seq": await world.append(session_id, "task.moved", task_id=task_id, before=before)}


@api.post("/sessions/{session_id}/tasks/{task_id}/cancel", status_code=202)
async def cancel(request: Request, session_id: str, task_id: str) -> Json:
    world: World = request.app.state.world
    is_running = world.sessions[session_id].summary()["running_task"] == task_id
    kind = "task.cancel_requested" if is_running else "task.cancelled"
    return {"seq": await world.append(session_id, kind, task_id=task_id)}


@api.post("/sessions/{session_id}/pause", status_code=202)
async def pause(request: Request, session_id: str) -> Json:
    world: World = request.app.state.world
    await world.append(session_id, "session.paused", reason="asked")
    generation = world.sessions[session_id].state().sandbox.generation
    return {"seq": await world.append(session_id, "sandbox.paused", generation=generation)}


@api.post("/sessions/{session_id}/resume", status_code=202)
async def resume(request: Request, session_id: str) -> Json:
    await _wake(request.app.state.world, session_id, "asked")
    return {"seq": len(request.app.state.world.sessions[session_id].records)}


async def _wake(world: World, session_id: str, reason: str) -> None:
    state = world.sessions[session_id].state()
    if state.status == "paused":
        await world.append(session_id, "session.resumed", reason=reason)
        generation = state.sandbox.generation
        await world.append(session_id, "sandbox.resumed", generation=generation, memory=True)


@api.post("/sessions/{session_id}/checkpoints", status_code=202)
async def checkpoint(request: Request, session_id: str) -> Json:
    world: World = request.app.state.world
    wanted = {"checkpoint_id": f"c{time.time_ns()}", "reason": "asked"}
    await world.append(session_id, "checkpoint.requested", **wanted)
    made = {"task_id": "", "commit": "9d0e77", "base_commit": "3f9c2ab81d", "files": [], "diff_artifact": ""}
    return {**wanted, "seq": await world.append(session_id, "checkpoint.created", **wanted, **made)}


@api.post("/sessions/{session_id}/fork")
async def fork(request: Request, session_id: str) -> Response:
    body = await request.json()
    if "refuse" in body.get("prompt", ""):
        return problem(404, "checkpoint_not_found", "There is no such checkpoint.", "Choose a newer one.")
    world: World = request.app.state.world
    old = world.sessions[session_id]
    title = body.get("title") or f"Fork of {old.title}"
    scene = Scene(f"ses_{len(world.sessions)}", title, old.repository["source"])
    origin = {"session_id": session_id, "checkpoint_id": body["checkpoint_id"], "seq": 20}
    scene.records[0]["data"]["origin"] = origin
    world.sessions[scene.id] = scene
    await world.append(scene.id, "sandbox.requested", generation=1, reason="")
    return JSONResponse({"id": scene.id}, 201)


@api.get("/search")
async def search(request: Request, q: str) -> Json:
    if q.startswith("-"):
        raise HTTPException(503)
    found = []
    for scene in request.app.state.world.sessions.values():
        hits = [r for r in scene.records if q.lower() in _said(r).lower()]
        if hits:
            text = _said(hits[0])
            at = text.lower().index(q.lower())
            parts = [
                (text[max(0, at - 60) : at], False),
                (text[at : at + len(q)], True),
                (text[at + len(q) :][:120], False),
            ]
            snippet = [{"text": text, "match": match} for text, match in parts if text]
            found.append(
                {
                    "session": scene.summary(),
                    "seq": hits[0]["seq"] % len(scene.records),
                    "matches": len(hits),
                    "snippet": snippet,
                }
            )
    return {"items": found, "next_cursor": None}


def _said(record: Json) -> str:
    data = record["data"]
    return str(data.get("text") or data.get("prompt") or data.get("title") or "")


@api.post("/sessions/{session_id}/messages", status_code=201)
async def note(request: Request, session_id: str) -> Json:
    body = await request.json()
    message = {"message_id": f"n{time.time_ns()}", "text": body["text"]}
    return {"seq": await request.app.state.world.append(session_id, "message.posted", **message)}


@api.post("/sessions/{session_id}/requests/{request_id}/answer", status_code=202)
async def answer(request: Request, session_id: str, request_id: str) -> Json:
    given = {"reply": None, "answers": [], "message": "", **await request.json()}
    world: World = request.app.state.world
    return {"seq": await world.append(session_id, "request.answered", request_id=request_id, answer=given)}


@api.post("/sessions/{session_id}/archive", status_code=202)
async def archive(request: Request, session_id: str) -> Json:
    return {"seq": await request.app.state.world.append(session_id, "session.archived")}


@api.post("/sessions/{session_id}/retry", status_code=202)
async def retry(request: Request, session_id: str) -> Json:
    world: World = request.app.state.world
    return {"seq": await world.append(session_id, "sandbox.requested", generation=2, reason="a retry")}


def app(mode: str) -> FastAPI:
    """The stand-in in one of its moods."""
    made = FastAPI()
    made.state.world = World({} if mode == "empty" else {scene.id: scene for scene in scenes()})

    @made.middleware("http")
    async def mood(request: Request, call_next: Callable[[Request], Any]) -> Response:
        if request.url.path.startswith("/api/"):
            if mode == "signed-out":
                return problem(401, "unauthenticated", "Nobody is signed in.")
            if mode == "broken" and not request.url.path.endswith("/me"):
                return problem(
                    503, "disk_full", "The disk is full.", "Make room below the data folder, then try again."
                )
        answered: Response = await call_next(request)
        return answered

    made.include_router(api)
    made.router.routes.extend(web.routes())
    return made


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=8700)
    arguments.add_argument("--mode", choices=["full", "empty", "broken", "signed-out"], default="full")
    chosen = arguments.parse_args()
    uvicorn.run(app(chosen.mode), host="127.0.0.1", port=chosen.port, log_level="warning")
