"""The configuration and the environment that OpenCode runs with; neither has a secret in it, only the name of the file with one."""

from collections.abc import Mapping
from typing import Any

from ship_runner.control import Model, Provider
from ship_runner.opencode.terms import TOKEN

_PACKAGES = {"openai": "@ai-sdk/openai-compatible", "anthropic": "@ai-sdk/anthropic"}

_ENVIRONMENT = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_CLAUDE_CODE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_EMBEDDED_WEB_UI": "1",
    "OPENCODE_DISABLE_EXTERNAL_SKILLS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_SHARE": "1",
    "OPENCODE_ENABLE_QUESTION_TOOL": "1",
    # Plugins of a repository would run inside the agent, before any permission is asked.
    "OPENCODE_PURE": "1",
}
"""Variables that keep OpenCode to itself: no updates, downloads, sharing or plugins; the question tool works."""

_OF_NO_MATTER = frozenset({"_", "OLDPWD", "PWD", "SHLVL"})

TOOLS_TIMEOUT_MS = 7 * 24 * 3600 * 1000
"""A call that waits for another session may take days; OpenCode would give it up after a minute."""


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What the agent and its commands see of a process's environment; the same for each process of a sandbox that may start one."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name not in _OF_NO_MATTER and not name.startswith(("SHIP_", "OPENCODE_", "PYTHON", "GIT_"))
    }
    return {**kept, **_ENVIRONMENT}


def configuration(
    providers: tuple[Provider, ...],
    default_model: str,
    approval: str,
    *,
    tools: tuple[str, ...] = (),
    tools_environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """OpenCode's configuration document, https://opencode.ai/docs/config. ``tools`` is the command of the runner's own tools,
    which get the token, too."""
    document: dict[str, Any] = {
        "autoupdate": False,
        "share": "disabled",
        "lsp": False,
        "formatter": False,
        "snapshot": False,
        "enabled_providers": [provider.name for provider in providers],
        "provider": {provider.name: _provider(provider) for provider in providers},
        **_permissions(approval),
    }
    if tools:
        document["mcp"] = {
            "ship": {
                "type": "local",
                "command": list(tools),
                "environment": {**(tools_environment or {}), "SHIP_TOKEN": TOKEN},
                "timeout": TOOLS_TIMEOUT_MS,
            }
        }
    if default_model:
        document.update(model=default_model, small_model=default_model)
    return document


def _provider(provider: Provider) -> dict[str, Any]:
    models = {model.name: _model(model, provider.protocol) for model in provider.models}
    return {
        "npm": _PACKAGES[provider.protocol],
        "name": provider.name,
        "options": {"baseURL": provider.base_url, "apiKey": TOKEN},
        "models": models,
    }


def _model(model: Model, protocol: str) -> dict[str, Any]:
    limit = {"context": model.context_tokens, "output": model.output_tokens}
    if model.input_tokens:
        limit["input"] = model.input_tokens
    # A temperature is sent only where an agent of the repository, or OpenCode for this family of models, names one.
    document: dict[str, Any] = {
        "name": model.name,
        "limit": limit,
        "tool_call": True,
        "reasoning": True,
        "temperature": True,
    }
    if model.images:
        media = ["text", "image", *(["pdf"] if protocol == "anthropic" else [])]
        document.update(attachment=True, modalities={"input": media, "output": ["text"]})
    return document


def _permissions(approval: str) -> dict[str, Any]:
    """``ask`` asks before commands and edits. Editing is never set at the top level: that would override the plan agent's refusal."""
    if approval == "ask":
        asking = {"permission": {"edit": "ask"}}
        return {"permission": {"bash": "ask"}, "agent": {"build": asking, "general": asking}}
    return {"permission": {"external_directory": "allow", "doom_loop": "allow", "read": "allow"}}
