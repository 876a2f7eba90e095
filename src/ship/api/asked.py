"""What callers ask for, checked against what this server has."""

from ship.api.inputs import MAX_SEQ, LimitsIn
from ship.api.services import Services
from ship.errors import InvalidInput, TooLarge
from ship.events import FACTS
from ship.model import NO_LIMITS, LimitsPatch

TITLE_CHARACTERS = 80

_EVENT_TYPES = frozenset(fact.TYPE for fact in FACTS)


def title(text: str) -> str:
    """What a session is called that nobody named: the first line of its prompt."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"


def prompt(serving: Services, text: str) -> str:
    """The prompt. Raises TooLarge (``prompt_too_large``)."""
    size_bytes = len(text.encode())
    if size_bytes > serving.limits.prompt_bytes:
        raise TooLarge(
            f"the prompt has {size_bytes} bytes, the limit is {serving.limits.prompt_bytes}",
            code="prompt_too_large",
            hint="Put the long part into a file of the repository and name it.",
        )
    return text.strip()


def model(serving: Services, wanted: str) -> str:
    """The model, or the default one. Raises InvalidInput (``model_not_configured``, ``model_unknown``)."""
    chosen = wanted or serving.default_model
    if not chosen:
        raise InvalidInput(
            "no model is configured",
            code="model_not_configured",
            hint="Set ANTHROPIC_API_KEY, OPENAI_API_KEY or a provider in the settings file, and restart Ship.",
        )
    provider_name, _, name = chosen.partition("/")
    provider = next((known for known in serving.providers if known.name == provider_name), None)
    if provider is None or name not in {known.name for known in provider.models}:
        known = ", ".join(f"{p.name}/{m.name}" for p in serving.providers for m in p.models)
        raise InvalidInput(
            f"there is no model {chosen}",
            code="model_unknown",
            hint=f"These are configured: {known}." if known else "No model is configured.",
        )
    return chosen


def limits(serving: Services, wanted: LimitsIn | None, of_model: str) -> LimitsPatch:
    """The limits. Raises InvalidInput (``model_price_unknown``) for a cost limit on a model whose calls cost nobody knows what."""
    if wanted is None:
        return NO_LIMITS
    if wanted.cost_usd and of_model and not _is_priced(serving, of_model):
        raise InvalidInput(
            f"the cost of {of_model} cannot be limited: its price is not known",
            code="model_price_unknown",
            hint="Give the model its prices in the settings file, or limit tokens or time.",
        )
    return LimitsPatch(time_s=wanted.time_s, tokens=wanted.tokens, cost_usd=wanted.cost_usd)


def _is_priced(serving: Services, of_model: str) -> bool:
    provider_name, _, name = of_model.partition("/")
    return any(provider.is_priced(name) for provider in serving.providers if provider.name == provider_name)


def place(text: str) -> int:
    """The seq that a stream's ``after`` means. Raises InvalidInput (``after_invalid``)."""
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) > MAX_SEQ:
        raise InvalidInput("`after` is the last seq that you have seen", code="after_invalid")
    return int(text)


def event_types(text: str) -> list[str]:
    """The event types that a query names, parted by commas. Raises InvalidInput (``event_type_unknown``)."""
    chosen = [name for name in text.split(",") if name]
    if unknown := [name for name in chosen if name not in _EVENT_TYPES]:
        raise InvalidInput(f"there is no event type {unknown[0]}", code="event_type_unknown")
    return chosen
