"""One run as it looks from OpenCode's event stream."""

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

from ship_runner import facts
from ship_runner.agent import Outcome, Run, Sink
from ship_runner.facts import Delta
from ship_runner.opencode import mapping

Json = Mapping[str, Any]

GAP = "… "
"""Stands for words that nobody heard."""
LOOP_LIMIT = 20
"""Steps without a reason to end, in a row, that are called a loop."""


class Turn:
    """Takes events in, reports facts, and knows what the run waits for.

    ``stirred`` is set when somebody should look whether the run has ended. ``verdict`` is what the run ends with
    whatever the agent says. ``quiet_since`` is when the last event came, on the monotonic clock. Nothing more may be
    said to a turn that is ``closed``: how it ended has been decided. ``taken_up`` is set when the agent works on the prompt,
    which it will where it was ``prompted``; ``begun`` when it answers it, for which it may first have to make room. Both are set at the end.
    """

    def __init__(self, run: Run, sink: Sink) -> None:
        self.run = run
        self.sink = sink
        self.stirred = asyncio.Event()
        self.begun = asyncio.Event()
        self.taken_up = asyncio.Event()
        self.prompted = False
        self.following = False
        self.closed = False
        self.reread = False
        self.verdict: Outcome | None = None
        self.aborting = False
        self.ask_again_at = math.inf
        self.error: Json | None = None
        self.last_message = run.message
        self.prompted_at = time.monotonic()
        self.quiet_since = self.looked_at = time.monotonic()
        self.retry_until_ms = 0
        self.waiting_for: set[str] = set()
        self.running_tools: set[str] = set()
        self._answers: set[str] = set()
        self._texts: dict[str, Delta] = {}
        self._outputs: dict[str, Delta] = {}
        self._finished: set[str] = set()
        self._unknown_ends = 0

    def handle(self, event: Json) -> None:
        """Take in one event of the stream; those of other conversations only show that the agent is alive."""
        kind, properties = event.get("type", ""), event.get("properties") or {}
        if kind.startswith("server."):
            return
        self.quiet_since = time.monotonic()
        if kind in {"permission.asked", "question.asked"}:
            self._asked(kind, properties)
        elif kind in {"permission.replied", "question.replied", "question.rejected"}:
            self.waiting_for.discard(properties.get("requestID", ""))
            self.sink.answered(properties.get("requestID", ""))
        elif properties.get("sessionID") == self.run.conversation:
            self._own(kind, properties)

    def _own(self, kind: str, properties: Json) -> None:
        match kind:
            case "message.updated":
                self._message(properties["info"])
            case "message.part.updated":
                self._part(properties["part"])
            case "message.part.delta":
                self._delta(properties)
            case "todo.updated":
                self.sink.plan(mapping.todos(properties["todos"]))
            case "session.status":
                self._status(properties["status"])
            case "session.idle":
                self.stirred.set()
            case "session.error":
                self.error = properties.get("error") or {}
                self.stirred.set()

    def read(self, messages: list[Json], *, over: bool) -> None:
        """Report what the conversation's messages hold; the rest of a run that events did not bring."""
        for message in messages:
            info = message["info"]
            self._message(info)
            if not self._is_answer(info):
                continue
            for part in message["parts"]:
                self._track(part)
                if not over and self._grows(info):
                    self._join(part)
                for key, fact in mapping.part_facts(self.run.task_id, part, over=over):
                    self.sink.report(fact, key=key)

    def ask(self, permissions: list[Json], questions: list[Json]) -> None:
        """Report what the agent waits for now; requests of earlier runs, which OpenCode keeps, do not count."""
        for kind, requests in (("permission.asked", permissions), ("question.asked", questions)):
            for request in requests:
                if mapping.order(request["id"]) > mapping.order(self.run.message):
                    self._asked(kind, request)

    def _asked(self, kind: str, request: Json) -> None:
        ask = mapping.permission_asked if kind == "permission.asked" else mapping.question_asked
        key, fact = ask(self.run.task_id, request)
        self.waiting_for.add(request["id"])
        self.sink.report(fact, key=key)

    def _is_answer(self, info: Json) -> bool:
        own = mapping.order(info["id"]) >= mapping.order(self.run.first_message)
        return info["role"] == "assistant" and own and not info.get("summary")

    def _grows(self, info: Json) -> bool:
        """Whether more may come of this message. What an agent had begun to say when it died stays open for ever."""
        over = info.get("error") or "completed" in (info.get("time") or {})
        return not over and self._is_of_this_run(info)

    def _is_of_this_run(self, info: Json) -> bool:
        return mapping.order(info["id"]) >= mapping.order(self.run.message)

    def _message(self, info: Json) -> None:
        of_this_run = self._is_of_this_run(info)
        if info["role"] == "assistant" and of_this_run:
            self.taken_up.set()
        if self._is_answer(info):
            self._answers.add(info["id"])
            if of_this_run:
                self.begun.set()

    def _part(self, part: Json) -> None:
        if part["messageID"] not in self._answers:
            return
        self._count_ends(part)
        self._grow_to(part)
        if self.sink.has_room:
            for key, fact in mapping.part_facts(self.run.task_id, part, over=False):
                self.sink.report(fact, key=key)

    def _count_ends(self, part: Json) -> None:
        if part["type"] == "step-finish":
            self._unknown_ends = self._unknown_ends + 1 if part.get("reason") == "unknown" else 0
            if self._unknown_ends >= LOOP_LIMIT and self.verdict is None:
                reason = f"The model ended {LOOP_LIMIT} steps in a row without saying why; the agent went in circles."
                self.verdict = Outcome("failed", "agent_looping", reason, "Try another model.")
                self.stirred.set()

    def _track(self, part: Json) -> None:
        if part["type"] == "tool":
            if part["state"]["status"] in {"pending", "running"}:
                self.running_tools.add(part["id"])
            else:
                self.running_tools.discard(part["id"])

    def _grow_to(self, part: Json) -> None:
        """Follow a part's text from its beginning."""
        if part["type"] in {"text", "reasoning"}:
            if "end" in (part.get("time") or {}):
                self._texts.pop(part["id"], None)
                self._finished.add(part["id"])
            elif part["text"] == "":
                self._texts[part["id"]] = self._delta_of(part["messageID"], part["id"], part["type"])
        elif part["type"] == "tool":
            self._track(part)
            self._grow_output(part)

    def _join(self, part: Json) -> None:
        """Follow a text that was begun while nobody listened. OpenCode keeps what it says only when the part is finished, so until then
        who watches sees a gap, and what comes after it."""
        growing = part["type"] in {"text", "reasoning"} and "end" not in (part.get("time") or {})
        if growing and part["id"] not in self._texts and part["id"] not in self._finished:
            begun = self._delta_of(part["messageID"], part["id"], part["type"])
            seen = self._texts[part["id"]] = {**begun, "text": part["text"] + GAP}
            self.sink.grow({**seen})

    def _grow_output(self, part: Json) -> None:
        output = mapping.running_output(part)
        if output is None:
            self._outputs.pop(part["id"], None)
            return
        seen = self._outputs.setdefault(part["id"], self._delta_of(part["messageID"], part["id"], "tool"))
        known = len(seen["text"]) if output.startswith(seen["text"]) else 0
        seen["text"] = output
        if len(output) > known:
            self.sink.grow({**seen, "offset": known, "text": output[known:]})

    def _delta(self, properties: Json) -> None:
        seen = self._texts.get(properties["partID"])
        if properties.get("field") == "text" and seen is not None:
            offset = len(seen["text"])
            seen["text"] += properties["delta"]
            self.sink.grow({**seen, "offset": offset, "text": properties["delta"]})

    def growing(self) -> list[Delta]:
        """What has grown so far and is not finished, each part from its beginning."""
        return [dict(delta) for delta in (*self._texts.values(), *self._outputs.values()) if delta["text"]]

    def _delta_of(self, message_id: str, part_id: str, kind: str) -> Delta:
        return {
            "task_id": self.run.task_id,
            "message_id": message_id,
            "part_id": part_id,
            "kind": kind,
            "offset": 0,
            "text": "",
        }

    def _status(self, status: Json) -> None:
        if status["type"] == "retry":
            self.retry_until_ms = int(status.get("next") or 0)
            attempt, reason = int(status.get("attempt") or 0), str(status.get("message") or "")
            fact = facts.agent_retried(self.run.task_id, attempt, reason[:2000], self.retry_until_ms)
            self.sink.report(fact, key=f"retry:{self.run.message}:{attempt}:{self.retry_until_ms}")
        elif status["type"] == "idle":
            self.stirred.set()
