"""Made-up sessions, one for each state that the web app draws."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec

from ship.events import decode
from ship.sessions import views
from ship.sessions.fold import fold
from ship.sessions.state import SessionState

Json = dict[str, Any]
USAGE = {
    "model_calls": 1, "input_tokens": 4210, "output_tokens": 388, "reasoning_tokens": 40,
    "cache_read_tokens": 3100, "cache_write_tokens": 0, "cost_usd": 0.021,
}  # fmt: skip


class Scene:
    """One made-up session: its log, and text that is still growing."""

    def __init__(
        self, session_id: str, title: str, source: str, minutes_ago: float = 0, branch: str = "main"
    ) -> None:
        self.id = session_id
        self.records: list[Json] = []
        self.deltas: list[Json] = []
        self.growth: list[str] = []
        self.has_diff = False
        self._now_ms = int(time.time() * 1000 - minutes_ago * 60_000)
        repository = {"source": source, "branch": branch}
        self.title, self.repository = title, repository
        self.add(
            "session.created",
            "mara",
            title=title,
            repository=repository,
            model="anthropic/claude-sonnet-5",
            approval="auto",
        )

    def add(self, kind: str, by: str = "", /, *, after_s: float = 0.4, **data: Any) -> None:
        """One more event."""
        self._now_ms = min(self._now_ms + int(after_s * 1000), int(time.time() * 1000))
        actor = {"kind": "user", "name": by} if by else {"kind": "agent", "name": "agent"}
        self.records.append(
            {
                "seq": len(self.records) + 1,
                "at_ms": self._now_ms,
                "type": kind,
                "v": 1,
                "actor": actor,
                "data": data,
                "frame": None,
            }
        )

    def queue(self, prompt: str, task_id: str = "t1", agent: str = "build") -> None:
        """Somebody asks for work."""
        self.add(
            "task.queued",
            "mara",
            task_id=task_id,
            prompt=prompt,
            model="anthropic/claude-sonnet-5",
            agent=agent,
        )

    def provision(self, until: str = "") -> None:
        """The sandbox is made, up to a step that still runs."""
        self.add("sandbox.requested", generation=1, reason="")
        for step, took_ms, detail in [
            ("create", 38, "template ship"), ("runner", 412, ""),
            ("clone", 2310, self.repository["source"]), ("agent", 4120, "opencode 1.18"),
        ]:  # fmt: skip
            self.add("sandbox.step_started", generation=1, step=step, detail=detail)
            if step == until:
                return
            if step == "create":
                self.add("sandbox.created", generation=1, sandbox_id="sbx_7f3k2m9q")
            self.add(
                "sandbox.step_finished",
                generation=1,
                step=step,
                took_ms=took_ms,
                detail="",
                after_s=took_ms / 1000,
            )
        self.add("sandbox.ready", generation=1, base_commit="3f9c2ab81d", work_branch="ship/fix-parser-3f9c")

    def tool(self, name: str, given: Json, output: str = "", error: str = "", took_ms: int = 60) -> None:
        """A call that ended."""
        part = {
            "task_id": "t1",
            "message_id": "m1",
            "part_id": f"p{len(self.records)}",
            "tool": name,
            "title": "",
        }
        self.add("tool.started", **part, input=given)
        self.add(
            "tool.finished",
            **part,
            output=output,
            error=error,
            truncated=False,
            took_ms=took_ms,
            after_s=took_ms / 1000,
        )

    def say(self, text: str, kind: str = "text") -> None:
        """A finished part; with it the model call that it came from."""
        part = {"task_id": "t1", "message_id": "m1", "part_id": f"p{len(self.records)}", "text": text}
        if kind == "reasoning":
            self.add("reasoning.finished", **part, took_ms=3200, after_s=3.2)
        else:
            self.add("text.finished", **part, after_s=2)
        self.add(
            "model.called",
            task_id="t1",
            provider="anthropic",
            model="claude-sonnet-5",
            status=200,
            took_ms=2400,
            usage=USAGE,
            failure=None,
        )

    def todos(self, *lines: tuple[str, str]) -> None:
        """The agent's plan."""
        self.add(
            "todos.updated",
            task_id="t1",
            todos=[{"content": text, "status": status, "priority": "medium"} for text, status in lines],
        )

    def grow(self, part_id: str, kind: str, text: str, more: str) -> None:
        """Text that is there and text that comes while one watches."""
        self.deltas.append(
            {
                "t": "delta",
                "task_id": "t1",
                "message_id": "m1",
                "part_id": part_id,
                "kind": kind,
                "offset": 0,
                "text": text,
            }
        )
        self.growth.append(more)

    def checkpoint(self) -> None:
        """The workspace after the task."""
        self.has_diff = True
        files = [
            {"path": "src/parser/tokens.py", "status": "M", "additions": 9, "deletions": 4},
            {"path": "tests/test_tokens.py", "status": "A", "additions": 12, "deletions": 0},
            {"path": "docs/old-grammar.md", "status": "D", "additions": 0, "deletions": 3},
        ]
        self.add(
            "artifact.stored", name="t1.diff", sha256="0" * 64, size_bytes=1834, media_type="text/x-diff"
        )
        self.add(
            "checkpoint.created", checkpoint_id="c1", task_id="t1", commit="9d0e", base_commit="3f9c2ab81d",
            files=files, diff_artifact="t1.diff", bundle_artifact="",
        )  # fmt: skip

    def state(self, seq: int | None = None) -> SessionState:
        """What the log folds to, or what so many events of it do."""
        state = fold(decode(json.dumps(record)) for record in self.records[:seq])
        assert state is not None
        return state

    def summary(self) -> Json:
        """The session's line in the list."""
        line: Json = json.loads(msgspec.json.encode(views.summary(self.id, self.state())))
        return line


def scenes() -> list[Scene]:
    """Every state once."""
    return [
        running(), life(), paused(), asking(), questioning(), done(), task_failed(), stopped(), starting(), failed(), lost(), long(), archived(),
    ]  # fmt: skip


def _work(scene: Scene) -> None:
    scene.say(
        "The failing test is about escaped quotes. Let me look at how the tokenizer reads a string before I change anything.",
        "reasoning",
    )
    scene.say("I'll start with the failing test and the tokenizer it exercises.")
    scene.todos(
        ("Find out why `test_escaped_quote` fails", "in_progress"),
        ("Fix the tokenizer", "pending"),
        ("Add a regression test", "pending"),
        ("Run the whole suite", "pending"),
    )
    scene.tool(
        "bash",
        {"command": "pytest -x -q tests/test_tokens.py", "description": "Run the failing test"},
        FAILING,
        took_ms=1840,
    )
    scene.tool(
        "grep",
        {"pattern": "def read_string", "path": "src"},
        "src/parser/tokens.py:41:def read_string(text, start):",
    )
    scene.tool("read", {"filePath": "/workspace/repo/src/parser/tokens.py"}, FILES["src/parser/tokens.py"])
    scene.tool(
        "read",
        {"filePath": "/workspace/repo/src/parser/missing.py"},
        "",
        "File not found: /workspace/repo/src/parser/missing.py",
    )
    scene.todos(
        ("Find out why `test_escaped_quote` fails", "completed"),
        ("Fix the tokenizer", "in_progress"),
        ("Add a regression test", "pending"),
        ("Run the whole suite", "pending"),
    )
    scene.say(
        "`read_string` stops at the first quote, even when a backslash stands before it:\n\n```python\nwhile text[end] != '\"':\n    end += 1\n```\n\nIt has to skip **escaped** characters. The change is small."
    )
    scene.tool(
        "edit",
        {
            "filePath": "/workspace/repo/src/parser/tokens.py",
            "oldString": "    while text[end] != '\"':\n        end += 1",
            "newString": '    while text[end] != \'"\':\n        end += 2 if text[end] == "\\\\" else 1',
        },
        "Edit applied.",
    )


def running() -> Scene:
    scene = Scene(
        "ses_running",
        "Fix the failing test in the tokenizer and add a regression test",
        "https://github.com/acme/parser.git",
        3,
    )
    scene.queue(
        "Fix the failing test in the tokenizer and add a regression test.\n\nKeep the public API as it is."
    )
    scene.provision()
    scene.add("task.started", task_id="t1")
    _work(scene)
    scene.add(
        "task.steered",
        "jo",
        task_id="t1",
        steer_id="s1",
        text="Please also cover a backslash at the very end of the input.",
    )
    scene.add("message.posted", "mara", message_id="n1", text="@jo good catch, that one bit us in March.")
    scene.add("agent.retried", task_id="t1", attempt=2, reason="429 Too Many Requests", next_at_ms=0)
    scene.add(
        "tool.started",
        task_id="t1",
        message_id="m1",
        part_id="run",
        tool="bash",
        title="",
        input={"command": "pytest -q"},
        after_s=4,
    )
    scene.grow(
        "run",
        "tool",
        "tests/test_ast.py ........\ntests/test_grammar.py ................\n",
        "tests/test_tokens.py .....\ntests/test_unicode.py ........\ntests/test_zzz.py ....",
    )
    scene.grow(
        "txt",
        "text",
        "While the whole suite runs, here is what I changed:\n\n1. `read_string` skips a character after a **backslash**\n2. A new test covers an escaped quote",
        "\n3. Another covers a backslash at the very end of the input, where the tokenizer now raises `UnterminatedString` with the position instead of an `IndexError`.\n\nNothing else calls `read_string`, so the public API stays as it is.",
    )
    scene.queue("Then update the changelog", "t2")
    scene.queue(
        "Have a look at whether the same bug is in the lexer of the query language, and tell me what you find",
        "t3",
        "plan",
    )
    scene.has_diff = True
    return scene


def life() -> Scene:
    """All that can befall a session: the log that the tests of the folds share, ended a moment ago."""
    lines = (Path(__file__).parents[2] / "tests/golden/streams/life.jsonl").read_text().splitlines()
    records: list[Json] = [json.loads(line) for line in lines]
    later_ms = int(time.time() * 1000) - records[-1]["at_ms"] - 20_000
    scene = Scene("ses_life", "Port the tests", "/srv/git/app")
    scene.records = [{**record, "at_ms": record["at_ms"] + later_ms} for record in records]
    scene.queue("Then write down what was learned, " + "with every detail that matters later, " * 8, "t6")
    scene.queue("And tidy up", "t7", "plan")
    scene.has_diff = True
    return scene


def paused() -> Scene:
    scene = Scene("ses_paused", "Replace the home-grown cache", "https://github.com/acme/portal.git", 40)
    scene.queue("Replace the home-grown cache by the one of the framework")
    scene.provision()
    scene.add("task.started", task_id="t1")
    scene.say("I'll look at who calls the cache.")
    scene.add("session.paused", "mara", reason="asked")
    scene.add("sandbox.paused", generation=1)
    return scene


def asking() -> Scene:
    scene = Scene(
        "ses_ask", "Upgrade the database driver", "https://github.com/acme/billing.git", 12, "release/2.4"
    )
    scene.queue("Upgrade the database driver to the newest minor version")
    scene.provision()
    scene.add("task.started", task_id="t1")
    scene.say("I need to install the new version first.")
    scene.add(
        "request.asked",
        task_id="t1",
        request_id="r1",
        kind="permission",
        title="Run a command",
        detail="pip install --upgrade 'psycopg[binary]>=3.3,<3.4' --requirement requirements/production.txt",
        questions=[],
    )
    return scene


def questioning() -> Scene:
    scene = Scene("ses_question", "Add rate limiting to the public API", "/srv/git/gateway", 25, "")
    scene.queue("Add rate limiting to the public API", agent="plan")
    scene.provision()
    scene.add("task.started", task_id="t1")
    scene.add(
        "request.asked", task_id="t1", request_id="r1", kind="question", title="Two decisions before I go on", detail="",
        questions=[
            {"question": "Where should the counters live?", "header": "Storage", "multiple": False, "custom": True, "options": [
                {"label": "In process", "description": "Simple; each worker counts for itself."},
                {"label": "Redis", "description": "Shared; one more service to run."}]},
            {"question": "Which routes are limited?", "header": "Routes", "multiple": True, "custom": False, "options": [
                {"label": "/api/public", "description": ""}, {"label": "/api/login", "description": ""}]},
        ],
    )  # fmt: skip
    return scene


def done() -> Scene:
    scene = Scene(
        "ses_done", "Fix escaped quotes in string literals", "https://github.com/acme/parser.git", 95
    )
    scene.queue("Fix escaped quotes in string literals")
    scene.provision()
    scene.add("task.started", task_id="t1")
    _work(scene)
    scene.tool(
        "write",
        {"filePath": "/workspace/repo/tests/test_tokens.py", "content": FILES["tests/test_tokens.py"]},
        "Wrote file.",
    )
    scene.tool("bash", {"command": "pytest -q"}, "\x1b[32m214 passed\x1b[0m in 6.02s", took_ms=6400)
    scene.todos(
        ("Find out why `test_escaped_quote` fails", "completed"),
        ("Fix the tokenizer", "completed"),
        ("Add a regression test", "completed"),
        ("Run the whole suite", "completed"),
    )
    scene.say(
        "Fixed. All **214 tests** pass.\n\n| file | change |\n|---|---|\n| `src/parser/tokens.py` | `read_string` skips escaped characters |\n| `tests/test_tokens.py` | two new tests |\n\nSee [the grammar](https://example.org/grammar) for why `\\\\` alone is legal. ![tracker](https://evil.example/pixel.png)"
    )
    scene.checkpoint()
    scene.add("task.completed", task_id="t1")
    return scene


def starting() -> Scene:
    scene = Scene("ses_starting", "Translate the error messages", "https://github.com/acme/portal.git", 0.05)
    scene.queue("Translate the error messages into German and French")
    scene.provision(until="clone")
    return scene


def failed() -> Scene:
    scene = Scene("ses_failed", "Tidy the build scripts", "https://github.com/acme/privat.git", 200)
    scene.queue("Tidy the build scripts")
    scene.provision(until="clone")
    failure = {
        "code": "clone_denied",
        "reason": "fatal: Authentication failed for 'https://github.com/acme/privat.git/'",
        "hint": "Give Ship a token for github.com, or check the address. Then retry.",
    }
    scene.add("sandbox.failed", generation=1, failure=failure)
    scene.add("session.failed", failure=failure)
    return scene


def task_failed() -> Scene:
    scene = Scene("ses_taskfailed", "Explain the error messages better", "https://github.com/acme/parser", 75)
    scene.queue("Say in each error message what to do about it")
    scene.provision()
    scene.add("task.started", task_id="t1")
    failure = {
        "code": "model_key_refused",
        "reason": "the key was refused",
        "hint": "Check the key of the provider in Ship's settings.",
    }
    scene.add("task.failed", task_id="t1", failure=failure)
    return scene


def stopped() -> Scene:
    scene = Scene("ses_stopped", "Rename the packages", "https://github.com/acme/parser", 90)
    scene.queue("Rename every package to its singular")
    scene.provision()
    scene.add("task.started", task_id="t1")
    scene.say("I'll list the packages first.")
    scene.checkpoint()
    scene.add("task.cancelled", task_id="t1")
    return scene


def lost() -> Scene:
    scene = Scene("ses_lost", "Speed up the import", "/srv/git/import", 400)
    scene.queue("Make the import of large files twice as fast")
    scene.provision()
    scene.add("task.started", task_id="t1")
    scene.say("Let me profile it first.")
    failure = {
        "code": "sandbox_lost",
        "reason": "the sandbox was lost: its host was restarted",
        "hint": "Retry: a new sandbox starts from the last checkpoint.",
    }
    scene.add("sandbox.lost", generation=1, reason="its host was restarted")
    scene.add("task.failed", task_id="t1", failure=failure)
    scene.add("session.failed", failure=failure)
    return scene


def long() -> Scene:
    """Two thousand events, long words and long lines."""
    scene = Scene(
        "ses_long",
        "Rename `AbstractSingletonProxyFactoryBeanConfigurationProvider` across the whole monorepo without breaking anything at all",
        "https://github.com/an-organisation-with-a-long-name/a-repository-with-an-even-longer-name.git",
        2000,
        "feature/a-very-long-branch-name-that-never-ends",
    )
    scene.queue(
        "Rename it everywhere. " + "Mind the generated files, the documentation and the configuration. " * 12
    )
    scene.provision()
    scene.add("task.started", task_id="t1")
    for number in range(960):
        scene.tool(
            "edit",
            {
                "filePath": f"/workspace/repo/packages/module-{number}/src/main/java/com/example/AbstractSingletonProxyFactoryBean{number}.java",
                "oldString": "a",
                "newString": "b",
            },
            "Edit applied.",
            took_ms=20,
        )
    scene.say(
        "Done with "
        + "averylongwordwithoutanyspaces" * 12
        + ".\n\n```\n"
        + "one very long line of code " * 20
        + "\n```"
    )
    scene.add("task.completed", task_id="t1")
    return scene


def archived() -> Scene:
    scene = Scene("ses_archived", "Add a health check", "/srv/git/gateway", 9000)
    scene.queue("Add a health check")
    scene.provision()
    scene.add("task.started", task_id="t1")
    scene.say("`GET /healthz` answers 204 now.")
    scene.checkpoint()
    scene.add("task.completed", task_id="t1")
    scene.add("session.archived")
    return scene


FAILING = """\
F
=================================== FAILURES ===================================
______________________________ test_escaped_quote ______________________________

    def test_escaped_quote():
>       assert tokens('"a\\\\"b"') == [String('a"b')]
E       AssertionError: assert [String('a\\\\'), Name('b'), ...] == [String('a"b')]

tests/test_tokens.py:18: AssertionError
=========================== short test summary info ============================
FAILED tests/test_tokens.py::test_escaped_quote
1 failed in 0.41s
"""

FILES = {
    "README.md": "# Parser\n\nA small parser.\n",
    "pyproject.toml": '[project]\nname = "parser"\n',
    "src/parser/__init__.py": "",
    "src/parser/tokens.py": '"""Tokens."""\n\nfrom dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass String:\n    value: str\n\n\ndef read_string(text: str, start: int) -> tuple[String, int]:\n    # The opening quote is at `start`.\n    end = start + 1\n    while text[end] != \'"\':\n        end += 1\n    return String(text[start + 1 : end]), end + 1\n',
    "tests/test_tokens.py": "from parser.tokens import String, tokens\n\n\ndef test_escaped_quote():\n    assert tokens('\"a\\\\\"b\"') == [String('a\"b')]\n",
}

DIFF = (Path(__file__).parent / "sample.diff").read_text()
