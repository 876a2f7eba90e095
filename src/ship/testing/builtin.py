"""The scenarios that the scripted model comes with. Tool names and arguments are those of OpenCode 1.18."""

from ship.testing.scenario import JSONObject, Scenario, Script, ToolCall, Turn

_TESTS = "python3 -m unittest"

_BUGGY = r"""    parts = re.findall(r"(\d+)\s*([hm])", text.lower())"""
_FIXED = r"""    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([hm])", text.lower())"""
_BUGGY_SUM = "    return sum(int(amount) * MINUTES[unit] for amount, unit in parts)"
_FIXED_SUM = "    return sum(round(float(amount) * MINUTES[unit]) for amount, unit in parts)"

_ELSEWHERE = (
    "This is Ship's scripted model, and this is not the sample repository that it knows by heart, so I stop here and "
    "change nothing. Set a real model's key to work on your own code."
)


def _file(name: str) -> str:
    return "{workspace}/" + name


def _bash(command: str) -> ToolCall:
    return ToolCall("bash", {"command": command})


def _read(name: str) -> ToolCall:
    return ToolCall("read", {"filePath": _file(name)})


def _write(name: str, content: str) -> ToolCall:
    return ToolCall("write", {"filePath": _file(name), "content": content})


def _edit(name: str, old: str, new: str) -> ToolCall:
    return ToolCall("edit", {"filePath": _file(name), "oldString": old, "newString": new})


def _todos(done: int) -> ToolCall:
    """The demo's plan with the first ``done`` lines completed."""
    plan = ("Run the tests and see what fails", "Find the cause", "Fix it", "Show that all tests pass")
    status = ["completed"] * done + ["in_progress"] + ["pending"] * len(plan)
    todos: list[JSONObject] = [
        {"content": content, "status": state, "priority": "high"}
        for content, state in zip(plan, status, strict=False)
    ]
    return ToolCall("todowrite", {"todos": todos})


_FIX = Script(
    first=True,
    turns=(
        Turn(
            reasoning="A test fails. First I want to see which one and how; then I read the code that it is about.",
            text="I'll start with the tests, to see the failure with my own eyes.",
            calls=(_todos(0), _bash(_TESTS)),
        ),
        Turn(
            expects="test_decimal_hours",
            otherwise=_ELSEWHERE,
            text="`test_decimal_hours` fails: `1.5h` gives 300 minutes where 90 is right. Let me read the test and the parser.",
            calls=(_todos(1), _read("tests/test_durations.py"), _read("timesheet/durations.py")),
        ),
        Turn(
            expects="def minutes",
            otherwise=_ELSEWHERE,
            reasoning=(
                r"The pattern `(\d+)\s*([hm])` knows whole numbers only. In `1.5h` it skips `1.` and finds `5h`: 5 × 60 = 300. "
                "So the customer is billed five hours. The pattern has to take an optional fraction, and the amount has to be "
                "read as a number with one. Minutes stay whole: round after multiplying."
            ),
            text=r"Found it: the pattern takes `\d+` only, so in `1.5h` it sees `5h`. I'll let it take a fraction.",
            calls=(
                _todos(2),
                _edit("timesheet/durations.py", _BUGGY, _FIXED),
                _edit("timesheet/durations.py", _BUGGY_SUM, _FIXED_SUM),
            ),
        ),
        Turn(text="Now the tests again.", calls=(_todos(3), _bash(_TESTS))),
        Turn(
            expects="OK",
            otherwise="The tests still fail after my change; somebody should look at it.",
            calls=(_todos(4), _bash("git diff --stat")),
        ),
        Turn(
            text=(
                "All tests pass now.\n\n"
                "**The bug.** `minutes()` in `timesheet/durations.py` matched whole numbers only, so it read `1.5h` as `5h`: "
                "300 minutes in place of 90, and the invoice grew with it.\n\n"
                "**The fix.** The pattern takes an optional fraction, and the result is rounded to whole minutes:\n\n"
                "```python\n"
                r're.findall(r"(\d+(?:\.\d+)?)\s*([hm])", text.lower())'
                "\n```\n\n"
                "No other behaviour changes."
            ),
        ),
    ),
)

_FOLLOW_UP = Script(
    turns=(
        Turn(
            text="Let me look at where we stand.",
            calls=(_bash("git status --short && git diff --stat"), _bash(_TESTS)),
        ),
        Turn(
            text="You said: “{prompt}”. I am the scripted model and know one bug by heart, so I only looked: the state of the "
            "workspace and the tests are above."
        ),
    )
)

_NOTES = "ship-notes.md"

_THIRTY: tuple[ToolCall, ...] = (
    _bash("git log --oneline | head -n 5"),
    ToolCall("glob", {"pattern": "**/*.md"}),
    ToolCall("glob", {"pattern": "**/*.py"}),
    ToolCall("grep", {"pattern": "import"}),
    ToolCall("read", {"filePath": "{workspace}"}),
    _bash("git ls-files | wc -l"),
    _write(_NOTES, "# Notes\n\n- entry: 1\n"),
    _read(_NOTES),
    _edit(_NOTES, "- entry: 1", "- entry: 1\n- entry: 2"),
    _bash(f"cat {_NOTES}"),
    ToolCall("grep", {"pattern": "TODO|FIXME"}),
    ToolCall("grep", {"pattern": "class "}),
    _bash("git status --short"),
    _edit(_NOTES, "- entry: 2", "- entry: 2\n- entry: 3"),
    _bash("for i in $(seq 1 200); do echo line $i; done"),
    ToolCall("glob", {"pattern": "*"}),
    _write("ship-notes/one.txt", "one\n"),
    _write("ship-notes/two.txt", "two\n"),
    _read("ship-notes/one.txt"),
    _edit("ship-notes/one.txt", "one", "uno"),
    _bash("ls -la ship-notes"),
    _bash("test -f does-not-exist"),
    _read("does-not-exist.txt"),
    ToolCall("grep", {"pattern": "uno", "path": "{workspace}/ship-notes"}),
    _edit(_NOTES, "- entry: 3", "- entry: 3\n- entry: 4"),
    _bash("git diff --stat"),
    _bash("sleep 1; echo rested"),
    _read(_NOTES),
    _bash("wc -c ship-notes/*.txt"),
    _bash(f"tail -n 1 {_NOTES}"),
)

_QUESTIONS: list[JSONObject] = [
    {
        "question": "Which greeting shall I write?",
        "header": "Greeting",
        "options": [
            {"label": "Hello (Recommended)", "description": "Short and friendly"},
            {"label": "Good day", "description": "More formal"},
        ],
        "multiple": False,
    }
]

_ECHO = Script(turns=(Turn(reasoning="Nothing to do but to answer.", text="You said: {prompt}"),))

DEMO = Scenario(name="demo", summary="fixes the bug of the sample repository", scripts=(_FIX, _FOLLOW_UP))
THIRTY_TOOLS = Scenario(
    name="thirty_tools",
    summary="makes 30 varied tool calls in any repository",
    scripts=(
        Script(
            turns=(
                *(
                    Turn(text=f"Step {number} of 30.", calls=(call,))
                    for number, call in enumerate(_THIRTY, start=1)
                ),
                Turn(text="Thirty calls made; the notes are in `ship-notes.md`."),
            )
        ),
    ),
)
PERMISSION = Scenario(
    name="permission",
    summary="runs one command, which needs a person's leave when the session asks for approval",
    scripts=(
        Script(
            turns=(
                Turn(
                    text="I need to run a command.",
                    calls=(_bash("echo granted > approved.txt && cat approved.txt"),),
                ),
                Turn(
                    expects="granted", otherwise="I was not allowed to, so I leave it.", text="Done, it ran."
                ),
            )
        ),
    ),
)
QUESTION = Scenario(
    name="question",
    summary="asks a person a question",
    scripts=(
        Script(
            turns=(
                Turn(
                    text="One thing I need to know.", calls=(ToolCall("question", {"questions": _QUESTIONS}),)
                ),
                Turn(text="Thank you.", calls=(_write("greeting.txt", "{results}\n"),)),
                Turn(text="I wrote your answer to `greeting.txt`."),
            )
        ),
    ),
)
LONG = Scenario(
    name="long",
    summary="talks steadily for five minutes, or the time that the prompt names, then writes a file",
    scripts=(
        Script(
            turns=(
                Turn(steady_s=300, calls=(_write("long.txt", "done\n"),)),
                Turn(text="That was all."),
            )
        ),
    ),
)
LONG_COMMAND = Scenario(
    name="long_command",
    summary="runs a command that prints a line each second for a minute, or the time that the prompt names",
    scripts=(
        Script(
            turns=(
                Turn(
                    text="This takes a while.",
                    calls=(
                        ToolCall(
                            "bash",
                            {
                                "command": "for i in $(seq 1 {seconds}); do echo tick $i; sleep 1; done; echo done > long.txt",
                                "timeout": 3_600_000,
                            },
                        ),
                    ),
                ),
                Turn(text="It ran to its end."),
            )
        ),
    ),
)
ECHO = Scenario(name="echo", summary="says back what it was told", scripts=(_ECHO,))

SCENARIOS: tuple[Scenario, ...] = (DEMO, ECHO, THIRTY_TOOLS, PERMISSION, QUESTION, LONG, LONG_COMMAND)
"""Every built-in scenario. Each name may be followed by ``+fault`` and ``*times``, as in ``demo+cut_stream*2``. A
fault's name alone is the ``echo`` scenario with that fault."""
