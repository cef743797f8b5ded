"""Settings: layers, sources, and errors that name what was meant."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx.config import SETTINGS, RunConfig, load_config
from longctx.errors import UsageError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('target-tokens = "8k"\nchunk_tokens = 500\nseed = 7\n')
    config, sources = load_config(
        file, env={"LONGCTX_CHUNK_TOKENS": "600", "LONGCTX_SEED": "8"}, flags={"seed": "9"}
    )
    assert (config.target_tokens, config.chunk_tokens, config.seed) == (8000, 600, 9)
    assert (sources["target_tokens"], sources["chunk_tokens"], sources["seed"], sources["mode"]) == (
        "file", "env", "flag", "default",
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    config, sources = load_config(path, env={})
    assert sources["target_tokens"] == "file"
    assert config.target_tokens >= 4000


def test_the_shipped_configs_are_the_four_of_the_readme() -> None:
    assert {p.name for p in CONFIGS.glob("*.toml")} == {
        "smoke.toml", "spark-reprefill-16k.toml", "spark-persistent-64k.toml", "gpu-128k.toml",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("target_tokenz = 5", "Did you mean target_tokens?"),
        ('mode = "persistant"', "did you mean 'persistent'?"),
        ("chunk_tokens = 0", "the least is 1"),
        ("target_tokens = true", "not a number of tokens"),
        ("target_tokens = 1.5", "not a number of tokens"),
        ('ceiling = "lots"', "not a size"),
        ('ceiling = "120%"', "outside 0..100"),
        ('secret_depth = "2"', "outside 0..1"),
        ('poll_min_s = "1s"', "above --poll-max"),
        ('secret = ["A", "B"]\nsecret_depth = [0.1, 0.2, 0.3]', "2 secrets but 3 depths"),
        ('inject_text = "remember"', "does not hold {secret}"),
        ("mode = ", "not valid TOML"),
    ],
)
def test_a_bad_setting_is_an_error_with_exit_2_that_says_what_is_meant(
    tmp_path: Path, content: str, part: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_config(file, env={})
    assert part in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.exit_code == 2


def test_an_unknown_environment_variable_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_config(env={"LONGCTX_CHUNK_TOKEN": "5"})
    assert caught.value.hint == "Did you mean LONGCTX_CHUNK_TOKENS?"


def test_a_missing_or_binary_config_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no config file"):
        load_config(tmp_path / "none.toml", env={})
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError):
        load_config(tmp_path / "b.toml", env={})


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.text(max_size=12), max_size=4))
def test_any_text_in_any_setting_is_a_value_or_a_usage_error(flags: dict[str, str]) -> None:
    try:
        config, _ = load_config(env={}, flags=flags)
    except UsageError as error:
        assert error.message
    else:
        assert isinstance(config, RunConfig)
