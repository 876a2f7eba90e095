"""Settings: one frozen value, read once from a TOML file and the environment, then passed in."""

from typing import Literal

import msgspec


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model of a provider. Prices are US dollars per million tokens; 0 means unknown."""

    name: str
    context_tokens: int = 200_000
    output_tokens: int = 32_000
    input_price: float = 0.0
    output_price: float = 0.0
    cache_read_price: float = 0.0
    cache_write_price: float = 0.0


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model API. ``base_url`` ends in the version segment (``…/v1``); ``key_setting`` names the setting that holds
    the key, for messages."""

    name: str
    protocol: Literal["openai", "anthropic"]
    base_url: str
    api_key: str = ""
    key_setting: str = ""
    models: tuple[ModelSpec, ...] = ()
