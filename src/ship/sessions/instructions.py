"""What the runner is to be told, derived from the state alone: said again after every reconnect, known to it by id."""

from ship.events import frames
from ship.sessions.state import SessionState


def instructions(state: SessionState) -> dict[str, frames.Instruction]:
    """Everything that the running task asks of the runner, by a key that names it, in the order of saying."""
    task = state.running
    if task is None:
        return {}
    if task.cancel_requested:
        return {f"cancel:{task.id}": frames.Cancel(task_id=task.id)}
    said: dict[str, frames.Instruction] = {
        f"prompt:{task.id}": frames.Prompt(
            task_id=task.id, text=task.prompt, model=task.model, agent=task.agent
        )
    }
    for steer in task.steers:
        said[f"steer:{steer.steer_id}"] = frames.Steer(
            task_id=task.id, steer_id=steer.steer_id, text=steer.text
        )
    for request_id, answer in state.answers:
        said[f"answer:{request_id}"] = frames.Reply(request_id=request_id, answer=answer)
    return said
