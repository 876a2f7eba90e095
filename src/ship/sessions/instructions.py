"""What the runner is to be told, derived from the state alone: said again after every reconnect, known to it by id."""

from ship.events import frames
from ship.sessions.state import SessionState, Task


def instructions(state: SessionState) -> dict[str, frames.Instruction]:
    """Everything that the state asks of the runner, by a key that names it, in the order of saying. Before its sandbox is ready a
    runner has nothing to do but that."""
    if state.sandbox.status != "ready":
        return {}
    said: dict[str, frames.Instruction] = {}
    if task := state.running:
        if task.ending:
            said[f"cancel:{task.id}"] = frames.Cancel(task_id=task.id)
        else:
            said |= _of_task(task)
            for known in state.answers:
                request_id = known.request.id
                said[f"answer:{request_id}"] = frames.Reply(request_id=request_id, answer=known.answer)
    if wanted := state.wanted_checkpoint:
        said[f"checkpoint:{wanted.id}"] = frames.Checkpoint(checkpoint_id=wanted.id, reason=wanted.reason)
    return said


def _of_task(task: Task) -> dict[str, frames.Instruction]:
    said: dict[str, frames.Instruction] = {
        f"prompt:{task.id}": frames.Prompt(
            task_id=task.id, text=task.prompt, model=task.model, agent=task.agent, recovered=task.recovered
        )
    }
    for steer in task.steers:
        said[f"steer:{steer.steer_id}"] = frames.Steer(
            task_id=task.id, steer_id=steer.steer_id, text=steer.text
        )
    return said
