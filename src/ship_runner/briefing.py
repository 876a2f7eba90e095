"""What the agent is told about what happened to it, in words that a model can act on."""

from collections.abc import Mapping, Sequence
from typing import Any

from ship_runner.control import Bootstrap

CONTINUE = (
    "You were interrupted; a command that was running may have been ended. Look at what is done already and continue "
    "with the task where you left off. Do not start over."
)


def lost(bootstrap: Bootstrap, missing: Sequence[str], *, remembers: bool) -> list[str]:
    """What does not come back in this sandbox, in words; ``missing`` is what a checkpoint lacks."""
    gone = ["running processes"]
    if bootstrap.is_again:
        gone.append(
            "what came after the checkpoint" if bootstrap.restore else "all changes: there was no checkpoint"
        )
    gone += missing
    if not remembers:
        gone.append("the agent's memory of the conversation")
    return gone


def news(lost: Sequence[str], *, remembers: bool, summary: str) -> dict[str, Any]:
    """What the next prompt is to tell after a restore, as a note of the spool. ``summary`` is of the conversation so far, for an agent
    that does not remember it."""
    return {"lost": list(lost), "summary": "" if remembers else summary}


def first_words(text: str, told: Mapping[str, Any] | None, *, recovered: bool) -> str:
    """The text that a task starts with. ``told`` is the note ``news``, where a checkpoint was restored since the last task;
    ``recovered`` says that the sandbox died while this very task ran."""
    if recovered:
        return _recovered(text, told)
    if told is None:
        return text
    note = f"You are in a new sandbox now. {_restored(told)} Where you need what is lost, make or start it again."
    return f"{text}\n\n<note>\n{note}\n</note>{_earlier(told)}"


def _recovered(text: str, told: Mapping[str, Any] | None) -> str:
    happened = "Your sandbox was lost while you worked on the task below, and has been replaced by a new one."
    restored = (
        _restored(told)
        if told is not None
        else "Nothing was kept of the work on this task: the repository is as it was at the beginning."
    )
    return (
        f"{happened} {restored} Look at what is there, do again what is missing, and go on with the task. Do not start over where "
        f"work is done already.{_earlier(told)}\n\nThe task:\n\n{text}"
    )


def _restored(told: Mapping[str, Any]) -> str:
    return (
        "Files, branches and staged changes are as they were at the last checkpoint. This is lost: "
        f"{'; '.join(told['lost'])}."
    )


def _earlier(told: Mapping[str, Any] | None) -> str:
    if told is None or not told["summary"]:
        return ""
    return f"\n\nWhat was said so far, which you do not remember:\n\n<conversation>\n{told['summary']}\n</conversation>"
