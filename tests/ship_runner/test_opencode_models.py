"""What the real agent knows of models: what the settings say, and nothing of its own catalogue."""

from pathlib import Path

import pytest

from ship_runner.control import Model, Provider
from ship_runner.opencode.configuration import configuration, environment
from ship_runner.opencode.process import AgentProcess
from ship_runner.opencode.terms import Terms

pytestmark = pytest.mark.system

OPENAI = Provider(
    "openai",
    "openai",
    "http://127.0.0.1:9/v1",
    (Model("gpt-5.1", 1000, 100, input_tokens=700, images=True), Model("of-our-own", 2000, 200)),
)


async def test_the_agent_knows_the_models_of_the_settings_and_no_others(tree: Path, tmp_path: Path) -> None:
    """The catalogue has a provider of this name, with a model of this name, which takes more."""
    agent = AgentProcess(str(tree / "bin/opencode"), tmp_path, tmp_path)
    variables = environment({"PATH": f"{tree}/bin:/usr/bin:/bin", "HOME": str(tmp_path)})
    try:
        await agent.start(variables, Terms(configuration((OPENAI,), "openai/gpt-5.1", "auto"), "x", ""))
        assert agent.http is not None
        (provider,) = (await agent.http.get("/config/providers")).json()["providers"]
        known = provider["models"]
    finally:
        await agent.end()
    assert sorted(known) == ["gpt-5.1", "of-our-own"]
    assert known["gpt-5.1"]["limit"] == {"context": 1000, "input": 700, "output": 100}
    assert known["gpt-5.1"]["capabilities"]["input"]["image"] is True
    assert known["of-our-own"]["capabilities"]["input"]["image"] is False
