"""Settings from the file, the environment and the command line."""

from pathlib import Path

import pytest

from ship.config import load
from ship.errors import ConfigurationError

PROVIDER = """
[[models.providers]]
name = "x"
protocol = "openai"
base_url = "http://x/v1"
[[models.providers.models]]
name = "m"
"""


def test_nothing_needs_to_be_set() -> None:
    settings = load(None, {})
    assert settings.address == ("127.0.0.1", 8700)
    assert settings.models.providers == ()


def test_the_environment_wins_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    file = tmp_path / "ship.toml"
    file.write_text('listen = "127.0.0.1:1"\ndata = "/a"\nlog_level = "debug"\n[models]\ndefault = "a/b"\n')
    settings = load(file, {"SHIP_LISTEN": "[::1]:2", "SHIP_DATA": "/b"}, {"data": "/c", "listen": None})
    assert settings.address == ("::1", 2)
    assert (settings.data, settings.log_level, settings.models.default) == ("/c", "debug", "a/b")


def test_keys_in_the_environment_make_providers() -> None:
    settings = load(
        None, {"ANTHROPIC_API_KEY": "a", "OPENAI_BASE_URL": "http://x/v1", "OPENAI_MODELS": "m, n"}
    )
    anthropic, openai = settings.models.providers
    assert (anthropic.protocol, anthropic.api_key) == ("anthropic", "a")
    assert [model.name for model in openai.models] == ["m", "n"]
    assert not openai.models[0].images, "nothing is known of another API's models"
    assert load(None, {"SHIP_LOCAL_ROOTS": "/a:/b", "SHIP_SCRIPTED_MODEL": "1"}).models.scripted


def test_a_model_of_openai_that_is_named_has_the_limits_that_are_known() -> None:
    settings = load(None, {"OPENAI_API_KEY": "a", "OPENAI_MODELS": "gpt-5-mini,new"})
    known, new = settings.models.providers[0].models
    assert (known.context_tokens, known.input_tokens, known.images) == (400_000, 272_000, True)
    assert (new.name, new.input_tokens, new.images) == ("new", 0, False)


@pytest.mark.parametrize(
    "text",
    [
        "surprise = 1",
        "[models]\nsurprise = 1",
        'listen = "nowhere"',
        "listen = 5",
        'listen = "8700"',
        'listen = ":8700"',
        'listen = "127.0.0.1:99999"',
        "[sessions]\nidle_pause_s = -1",
        "[sessions]\npack_after_s = 9999999999999999",
        "[sessions]\ntask_cost_usd = nan",
        "[sessions]\ntask_cost_usd = inf",
        "[sessions]\ntask_tokens = -1",
        "[limits]\nprompt_bytes = 0",
        'log_level = "loud"',
        "not toml",
        '[[models.providers]]\nname = "x"',
        '[[models.providers]]\nname = "x"\nprotocol = "openai"\nbase_url = "http://x/v1"',
        PROVIDER + "input_tokens = -5",
        PROVIDER + "output_tokens = 0",
        PROVIDER + "context_tokens = 10\ninput_tokens = 11",
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ship.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load(file, {})
    assert refused.value.code == "configuration_invalid"


def test_a_number_of_the_environment_is_read_as_one() -> None:
    assert load(None, {"SHIP_SANDBOX_WARM": "3"}).sandboxes.warm == 3
    for wrong in ("-1", "1001", "many"):
        with pytest.raises(ConfigurationError, match=r"sandboxes\.warm"):
            load(None, {"SHIP_SANDBOX_WARM": wrong})


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        load(tmp_path / "none.toml", {})
