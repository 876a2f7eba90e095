"""Settings: one frozen value, read once from a TOML file and the environment, then passed in.

``docs/configuration.md`` has the table of all of them; a test compares the two. What the environment says wins over the file.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from ship.errors import ConfigurationError

Tokens = Annotated[int, msgspec.Meta(ge=1)]
Price = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
"""Of things, or seconds."""
Bytes = Annotated[int, msgspec.Meta(ge=1, le=2**50)]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the settings file; unknown keys are refused."""


class ModelSpec(Table, frozen=True):
    """One model of a provider. ``input_tokens`` is the most that a request may bring, where that is less than the context; 0 where
    it is not. ``images`` says whether it takes them. Prices are US dollars per million tokens; 0 means unknown."""

    name: str
    context_tokens: Tokens = 200_000
    input_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    output_tokens: Tokens = 32_000
    images: bool = False
    input_price: Price = 0.0
    output_price: Price = 0.0
    cache_read_price: Price = 0.0
    cache_write_price: Price = 0.0

    def __post_init__(self) -> None:
        if self.input_tokens > self.context_tokens:
            raise ValueError(f"input_tokens of {self.name} is more than its context_tokens")


class Provider(Table, frozen=True):
    """One model API. ``base_url`` ends in the version segment (``…/v1``); ``key_setting`` names the setting that holds
    the key, for messages."""

    name: str
    protocol: Literal["openai", "anthropic"]
    base_url: str
    api_key: str = ""
    key_setting: str = ""
    models: tuple[ModelSpec, ...] = ()

    def is_priced(self, model: str) -> bool:
        """Whether it is known what calls of that model cost."""
        return any(spec.input_price or spec.output_price for spec in self.models if spec.name == model)


class ModelSettings(Table, frozen=True):
    """Which models there are. ``default`` is ``provider/name``; empty means the first one."""

    default: str = ""
    scripted: bool = False
    providers: tuple[Provider, ...] = ()


class SandboxSettings(Table, frozen=True):
    """Where sandboxes come from. An empty ``api_url`` means our own host, started beside the server, which keeps ``warm`` of them waiting."""

    api_url: str = ""
    sandbox_url: str = ""
    api_key: str = ""
    template: str = "ship"
    control_url: str = "http://ship.internal"
    warm: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1


class RepositorySettings(Table, frozen=True):
    """Which repositories sessions may name. ``local_roots`` are the folders below which a path is allowed."""

    local_roots: tuple[str, ...] = ("~",)
    upload_limit_bytes: Bytes = 2 * 1024**3


class LimitSettings(Table, frozen=True):
    """Bounds on what callers send, in bytes."""

    prompt_bytes: Bytes = 1024**2
    artifact_bytes: Bytes = 512 * 1024**2


class SessionSettings(Table, frozen=True):
    """What sessions do by themselves; a time of 0 means never. The ``task_*`` limits hold for each task of a session that names none;
    0 means no limit."""

    idle_pause_s: Count = 600
    stuck_s: Count = 900
    recoveries: Count = 3
    child_depth: Count = 3
    children: Count = 16
    children_at_once: Count = 4
    task_time_s: Count = 0
    task_tokens: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    task_cost_usd: Annotated[float, msgspec.Meta(ge=0, le=10**9)] = 0.0
    pack_after_s: Count = 7 * 24 * 3_600


class Settings(Table, frozen=True):
    """Everything that can be set. ``database``, ``bus`` and ``blobs`` are URLs with credentials in them; empty means the data folder
    and this process."""

    listen: str = "127.0.0.1:8700"
    data: str = "~/.local/share/ship"
    cache: str = "~/.cache/ship"
    database: str = ""
    bus: str = ""
    blobs: str = ""
    public_url: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    semantic_search: bool = False
    models: ModelSettings = ModelSettings()
    sandboxes: SandboxSettings = SandboxSettings()
    repositories: RepositorySettings = RepositorySettings()
    limits: LimitSettings = LimitSettings()
    sessions: SessionSettings = SessionSettings()

    @property
    def data_path(self) -> Path:
        """The data folder."""
        return Path(self.data).expanduser().resolve()

    @property
    def cache_path(self) -> Path:
        """Where downloads are kept."""
        return Path(self.cache).expanduser().resolve()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on; port 0 means any free one. Raises ValueError."""
        host, _, port = self.listen.rpartition(":")
        host = host.strip("[]")
        # Without a host it would be every address of the machine, which nobody should open by leaving something out.
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"`listen` is HOST:PORT, and not {self.listen!r}")
        return host, int(port)


OPENAI_MODELS = (
    ModelSpec(
        name="gpt-5.1",
        context_tokens=400_000,
        input_tokens=272_000,
        output_tokens=128_000,
        images=True,
        input_price=1.25,
        output_price=10.0,
        cache_read_price=0.125,
    ),
    ModelSpec(
        name="gpt-5-mini",
        context_tokens=400_000,
        input_tokens=272_000,
        output_tokens=128_000,
        images=True,
        input_price=0.25,
        output_price=2.0,
        cache_read_price=0.025,
    ),
)
ANTHROPIC_MODELS = (
    ModelSpec(
        name="claude-sonnet-4-5",
        output_tokens=64_000,
        images=True,
        input_price=3.0,
        output_price=15.0,
        cache_read_price=0.3,
        cache_write_price=3.75,
    ),
    ModelSpec(
        name="claude-haiku-4-5",
        output_tokens=64_000,
        images=True,
        input_price=1.0,
        output_price=5.0,
        cache_read_price=0.1,
        cache_write_price=1.25,
    ),
)

ENVIRONMENT: Mapping[str, tuple[str, ...]] = {
    "SHIP_LISTEN": ("listen",),
    "SHIP_DATA": ("data",),
    "SHIP_CACHE": ("cache",),
    "SHIP_DATABASE": ("database",),
    "SHIP_BUS": ("bus",),
    "SHIP_BLOBS": ("blobs",),
    "SHIP_PUBLIC_URL": ("public_url",),
    "SHIP_LOG_LEVEL": ("log_level",),
    "SHIP_SEMANTIC_SEARCH": ("semantic_search",),
    "SHIP_MODEL": ("models", "default"),
    "SHIP_SCRIPTED_MODEL": ("models", "scripted"),
    "SHIP_SANDBOX_API_URL": ("sandboxes", "api_url"),
    "SHIP_SANDBOX_URL": ("sandboxes", "sandbox_url"),
    "SHIP_SANDBOX_API_KEY": ("sandboxes", "api_key"),
    "SHIP_SANDBOX_TEMPLATE": ("sandboxes", "template"),
    "SHIP_CONTROL_URL": ("sandboxes", "control_url"),
    "SHIP_SANDBOX_WARM": ("sandboxes", "warm"),
    "SHIP_LOCAL_ROOTS": ("repositories", "local_roots"),
}
"""Which variable sets which setting. ``SHIP_LOCAL_ROOTS`` is a list parted by colons."""

PROVIDER_ENVIRONMENT = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_MODELS",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
)
"""The providers' own variables. ``OPENAI_MODELS`` names the models of another OpenAI-compatible API, parted by commas."""


def load(
    path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The settings from the file (if one is given), the environment, and what the command line said (top-level keys and tables, merged).

    Raises:
        ConfigurationError: ``configuration_invalid``, naming the key that is wrong.
    """
    tables = _read(path) if path else {}
    for variable, keys in ENVIRONMENT.items():
        if value := environment.get(variable):
            _set(tables, keys, _parsed(keys, value))
    _merge(tables, overrides or {})
    _add_providers(tables, environment)
    try:
        settings = msgspec.convert(tables, Settings)
        _ = settings.address
        for provider in settings.models.providers:
            if not provider.models:
                raise ValueError(f"the provider {provider.name} lists no models")
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigurationError(
            f"a setting is wrong: {error}",
            code="configuration_invalid",
            hint="docs/configuration.md lists them.",
        ) from error
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}", code="configuration_invalid") from error


def _parsed(keys: tuple[str, ...], value: str) -> Any:
    if _type_of(keys) is bool:
        return value.lower() in ("1", "true", "yes", "on")
    if _type_of(keys) is int and value.removeprefix("-").isdecimal():
        return int(value)
    if keys[-1] == "local_roots":
        return [root for root in value.split(":") if root]
    return value


def _type_of(keys: tuple[str, ...]) -> Any:
    kind: Any = Settings
    for key in keys:
        kind = get_type_hints(kind)[key]
    return kind


def _set(tables: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tables = tables.setdefault(key, {})
    tables[keys[-1]] = value


def _merge(tables: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            _merge(tables.setdefault(key, {}), value)
        elif value is not None:
            tables[key] = value


def _add_providers(tables: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Providers whose keys stand in the environment, unless the file has one of the same name."""
    models = tables.setdefault("models", {})
    providers = models.setdefault("providers", [])
    if not isinstance(providers, list):
        return
    named = {provider.get("name") for provider in providers if isinstance(provider, dict)}
    for provider in _environment_providers(environment):
        if provider.name not in named:
            providers.append(msgspec.to_builtins(provider))


def _environment_providers(environment: Mapping[str, str]) -> list[Provider]:
    found = []
    if key := environment.get("ANTHROPIC_API_KEY"):
        found.append(
            Provider(
                name="anthropic",
                protocol="anthropic",
                base_url=environment.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com/v1",
                api_key=key,
                key_setting="ANTHROPIC_API_KEY",
                models=ANTHROPIC_MODELS,
            )
        )
    key, base_url = environment.get("OPENAI_API_KEY", ""), environment.get("OPENAI_BASE_URL", "")
    if key or base_url:
        known = {model.name: model for model in OPENAI_MODELS}
        names = [name.strip() for name in environment.get("OPENAI_MODELS", "").split(",") if name.strip()]
        found.append(
            Provider(
                name="openai",
                protocol="openai",
                base_url=base_url or "https://api.openai.com/v1",
                api_key=key,
                key_setting="OPENAI_API_KEY",
                models=tuple(known.get(name, ModelSpec(name=name)) for name in names) or OPENAI_MODELS,
            )
        )
    return found
