"""A control plane for tests: speaks the runner link of ``docs/protocol.md`` and holds every frame to Ship's own types."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from tests.ship_runner.scripted import ScriptedModel
from tests.ship_runner.server import Server

from ship.events.facts import Fact
from ship.events.frames import Delta, Hello, Reported
from ship.events.record import decode_fact

TOKEN = "session-token"


class FakeControlPlane:
    """``facts`` holds what was acknowledged, in order; ``deltas`` what grew; ``artifacts`` what was stored."""

    def __init__(self, repositories: Path) -> None:
        self.repositories = repositories
        self.facts: list[Fact] = []
        self.deltas: list[Delta] = []
        self.artifacts: dict[str, bytes] = {}
        self.hellos: list[Hello] = []
        self.acked = 0
        self.acknowledging = True
        self.model = ScriptedModel()
        self.branch = ""
        self.repository = "sample.git"
        self.approval = "auto"
        self.generation = 1
        self.restore: dict[str, Any] | None = None
        self.children: dict[str, dict[str, Any]] = {}
        self.child_keys: list[str] = []
        self.unanswered = 0
        self.looks = 0
        self.refusal: dict[str, str] | None = None
        self.prompts: dict[str, dict[str, str]] = {}
        self._sockets: set[WebSocket] = set()
        self._changed = asyncio.Condition()
        self._server = Server(
            Starlette(
                routes=[
                    Route("/runner/v1/bootstrap", self._bootstrap),
                    Route("/runner/v1/artifacts/{name}", self._artifact, methods=["GET", "PUT"]),
                    Route("/runner/v1/children", self._children, methods=["GET", "POST"]),
                    Route("/runner/v1/children/{child_id}", self._child),
                    WebSocketRoute("/runner/v1/link", self._link),
                    Route("/models/v1/chat/completions", self.model.answer, methods=["POST"]),
                    Route("/git/{path:path}", self._git, methods=["GET", "POST"]),
                ]
            )
        )

    @property
    def url(self) -> str:
        return self._server.url

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()

    async def send(self, **message: Any) -> None:
        if message["t"] == "prompt":
            self.prompts[message["task_id"]] = message
        for socket in list(self._sockets):
            await socket.send_text(json.dumps(message))

    async def prompt(self, task_id: str, text: str, agent: str = "build", *, recovered: bool = False) -> None:
        await self.send(
            t="prompt", task_id=task_id, text=text, model="scripted/m", agent=agent, recovered=recovered
        )

    def replace_sandbox(self, *, lost_task: bool = False) -> None:
        """From now on the next generation is heard, and starts from the last checkpoint, if there is one."""
        known = {fact.checkpoint_id: fact for fact in self.of("checkpoint.created")}
        chain = list(known.values())[-1:]
        while chain and chain[0].parent_id:
            chain.insert(0, known[chain[0].parent_id])
        if chain:
            self.restore = {
                "checkpoint_id": chain[-1].checkpoint_id,
                "bundles": [fact.bundle_artifact for fact in chain],
                "agent_artifact": chain[-1].agent_artifact,
                "lost_task": lost_task,
                "summary": "Earlier they spoke of mangoes.",
            }
        self.generation += 1
        self.facts.clear()
        self.deltas.clear()
        self.prompts.clear()
        self.acked = 0

    async def cut(self) -> None:
        """End every connection; the runner comes back by itself."""
        for socket in list(self._sockets):
            await socket.close(1012)

    async def until(self, condition: Callable[[], Any], timeout_s: float = 90) -> Any:
        """Wait until something of what arrived makes the condition true; its value."""
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: bool(condition()))
            except TimeoutError:
                seen = "\n".join(f"{fact.TYPE} {fact}"[:300] for fact in self.facts)
                raise AssertionError(f"it did not come; what came:\n{seen}") from None
        return condition()

    async def end_of(self, task_id: str, timeout_s: float = 90) -> Fact:
        """The fact that ends a task."""
        ends = {"task.completed", "task.failed", "task.cancelled"}

        def ended() -> list[Fact]:
            return [fact for fact in self.facts if fact.TYPE in ends and fact.task_id == task_id]

        found: list[Fact] = await self.until(ended, timeout_s)
        return found[0]

    def of(self, type_name: str, task_id: str = "") -> list[Any]:
        """The facts of a type, and of a task."""
        return [
            fact
            for fact in self.facts
            if type_name == fact.TYPE and (not task_id or getattr(fact, "task_id", "") == task_id)
        ]

    async def _bootstrap(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({}, status_code=401)
        return JSONResponse(
            {
                "session_id": "ses_test",
                "generation": self.generation,
                "title": "Test",
                "repository": {"clone_url": f"{self.url}/git/{self.repository}", "branch": self.branch},
                "work_branch": "ship/test",
                "base_commit": "c0" if self.generation > 1 else "",
                "restore": self.restore,
                "depth": 0,
                "approval": self.approval,
                "default_model": "scripted/m",
                "providers": [
                    {
                        "name": "scripted",
                        "protocol": "openai",
                        "base_url": f"{self.url}/models/v1",
                        "models": [
                            {
                                "name": "m",
                                "context_tokens": 200_000,
                                "input_tokens": 0,
                                "output_tokens": 32_000,
                                "images": False,
                            }
                        ],
                    }
                ],
            }
        )

    async def _artifact(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "PUT":
            self.artifacts[name] = await request.body()
            return Response(status_code=201)
        return Response(self.artifacts[name]) if name in self.artifacts else Response(status_code=404)

    async def _children(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"items": list(self.children.values())})
        wanted = await request.json()
        self.child_keys.append(request.headers["Idempotency-Key"])
        if self.unanswered:
            self.unanswered -= 1
            return JSONResponse({"detail": "The answer is lost."}, status_code=502)
        child_id = f"ses_child_{len(self.children)}"
        self.children[child_id] = {
            "id": child_id,
            "task_id": "",
            "title": wanted.get("title", ""),
            "status": "running",
            "summary": "",
            "files_changed": 0,
            "additions": 0,
            "deletions": 0,
            "prompt": wanted["prompt"],
        }
        await self._notify()
        return JSONResponse({"child_id": child_id}, status_code=201)

    async def _child(self, request: Request) -> Response:
        self.looks += 1
        await self._notify()
        child = self.children.get(request.path_params["child_id"])
        if child is None:
            return JSONResponse(
                {"detail": "There is no such session.", "hint": "List them."}, status_code=404
            )
        return JSONResponse(child)

    async def _link(self, socket: WebSocket) -> None:
        await socket.accept()
        self.hellos.append(msgspec.json.decode(await socket.receive_text(), type=Hello))
        if self.refusal:
            await socket.send_text(json.dumps({"t": "refused", **self.refusal}))
            await self._notify()
            return
        await socket.send_text(json.dumps({"t": "welcome", "acked": self.acked}))
        self._sockets.add(socket)
        await self._notify()
        try:
            for task_id, prompt in self.prompts.items():
                if not any(
                    getattr(fact, "task_id", "") == task_id and fact.TYPE.startswith("task.")
                    for fact in self.facts
                ):
                    await socket.send_text(json.dumps(prompt))
            while True:
                await self._hear(
                    socket, msgspec.json.decode(await socket.receive_text(), type=Reported | Delta)
                )
        except WebSocketDisconnect:
            pass
        finally:
            self._sockets.discard(socket)

    async def _hear(self, socket: WebSocket, frame: Reported | Delta) -> None:
        if isinstance(frame, Delta):
            self.deltas.append(frame)
        elif frame.n > self.acked and self.acknowledging:
            assert frame.n == self.acked + 1, f"frame {frame.n} after {self.acked}"
            self.facts.append(decode_fact(frame.type, frame.v, bytes(frame.data)))
            self.acked = frame.n
            await socket.send_text(json.dumps({"t": "ack", "n": frame.n}))
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _git(self, request: Request) -> Response:
        """``git http-backend`` for those who carry the token."""
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response("no token", status_code=401)
        environment = {
            "GIT_PROJECT_ROOT": str(self.repositories),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{request.path_params['path']}",
            "QUERY_STRING": request.url.query,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "PATH": "/usr/bin:/bin",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        body = await request.body()
        answered = await asyncio.to_thread(
            subprocess.run,
            ["git", "http-backend"],
            input=body,
            env=environment,
            capture_output=True,
            check=False,
        )
        head, _, content = answered.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        return Response(content, status_code=status, headers=headers)
