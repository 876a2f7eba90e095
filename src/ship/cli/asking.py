"""Asks the person at the terminal what the agent wants to know."""

import asyncio
import contextlib
import sys

from rich.console import Console
from rich.text import Text

from ship.cli.terminal import clean
from ship.events import facts
from ship.model import Answer, PermissionReply, Question, RequestKind

_REPLIES = {
    "y": PermissionReply.ONCE,
    "yes": PermissionReply.ONCE,
    "once": PermissionReply.ONCE,
    "a": PermissionReply.ALWAYS,
    "always": PermissionReply.ALWAYS,
    "n": PermissionReply.REJECT,
    "no": PermissionReply.REJECT,
    "reject": PermissionReply.REJECT,
}


async def read_line(console: Console, prompt: str) -> str | None:
    """One line from standard input, None at its end. Cancelling it leaves the line unread."""
    console.print(Text(prompt, "bold"), end="")
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), readable.set)
    try:
        # A terminal is readable once the line is complete, so this does not block the loop.
        await readable.wait()
        line = sys.stdin.readline()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return line.strip() if line else None


async def ask(console: Console, request: facts.RequestAsked) -> Answer | None:
    """The person's answer; None when they would rather not (end of input)."""
    if request.kind is RequestKind.PERMISSION:
        return await _permission(console)
    answers = []
    for question in request.questions:
        answer = await _question(console, question)
        if answer is None:
            return None
        answers.append(answer)
    return Answer(answers=tuple(answers))


async def _permission(console: Console) -> Answer | None:
    while True:
        line = await read_line(console, "  allow? [y]es once, [a]lways, [n]o, or no: why › ")
        if line is None:
            return None
        word, _, why = line.partition(":")
        if reply := _REPLIES.get(word.strip().lower()):
            return Answer(reply=reply, message=why.strip())


async def _question(console: Console, question: Question) -> tuple[str, ...] | None:
    how = "numbers, parted by commas" if question.multiple else "a number"
    hint = f"{how}{', or your own words' if question.custom else ''}" if question.options else "your answer"
    while True:
        line = await read_line(console, f"  {clean(question.header or question.question)} ({hint}) › ")
        if line is None:
            return None
        if chosen := choose(question, line):
            return chosen


def choose(question: Question, line: str) -> tuple[str, ...]:
    """The labels that a line picks by number or name, or its own words where they are welcome; empty when it picks nothing."""
    labels = [option.label for option in question.options]
    picked = []
    for word in line.split(",") if question.multiple else [line]:
        word = word.strip()
        with contextlib.suppress(ValueError):
            if 1 <= int(word) <= len(labels):
                picked.append(labels[int(word) - 1])
                continue
        if match := next((label for label in labels if label.lower() == word.lower()), None):
            picked.append(match)
        elif word and question.custom:
            return (line.strip(),)
        else:
            return ()
    return tuple(picked)
