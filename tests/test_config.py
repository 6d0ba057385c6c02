"""What Config refuses, and that it says which field and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from geraft import Config
from geraft.errors import ConfigError

ALL = [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"read_threads": 0.5}, "read_threads must be a whole number"),
        ({"append_bytes_max": 1.5}, "append_bytes_max must be a whole number"),
        ({"heartbeat_interval_seconds": 0}, "heartbeat_interval_seconds must be above 0"),
        ({"phi_threshold": float("inf")}, "phi_threshold must be a number"),
        ({"read_threads": True}, "read_threads must be a number"),
        ({"election_timeout_seconds": "1"}, "election_timeout_seconds must be a number"),
        ({"heartbeat_interval_seconds": 0.5}, "at least four times"),
        ({"clock_drift_max": 1.0}, "a fraction below 1"),
        ({"command_bytes_max": 256 * 2**20}, "message_bytes_max must exceed"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Config(**settings)


def test_times_may_be_whole_numbers_and_sizes_floats_without_a_fraction() -> None:
    assert Config(election_timeout_seconds=2, append_bytes_max=1e6).append_bytes_max == 1e6


def test_a_config_is_made_of_settings_by_name() -> None:
    """As a command line has them: each is a float."""
    config = Config.of({"election_timeout_seconds": 2.0, "trailing_entries": 7.0, "read_threads": 2.0})
    assert config == Config(election_timeout_seconds=2, trailing_entries=7, read_threads=2)
    assert (type(config.trailing_entries), type(config.read_threads)) == (int, int)
    assert Config.of({}) == Config()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"no_such": 1}, f"there is no setting 'no_such'; there are {', '.join(ALL)}$"),
        ({"phi_threshold": 9, "trailing_entries": 7.5}, "trailing_entries must be a whole number, not 7.5"),
        ({"heartbeat_interval_seconds": 0.5}, "at least four times"),
        ({"phi_threshold": float("nan")}, "phi_threshold must be a number"),
    ],
)
def test_what_no_config_can_be_made_of_is_said_by_name(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Config.of(settings)


def test_a_config_is_tuned_as_a_whole_or_not_at_all() -> None:
    config = Config().tuned(
        {"election_timeout_seconds": 4, "heartbeat_interval_seconds": 1, "append_bytes_max": 2.0**20}
    )
    assert (config.election_timeout_seconds, config.heartbeat_interval_seconds) == (4, 1)
    assert type(config.append_bytes_max) is int
    assert Config().tuned({"apply_stuck_seconds": 0}).apply_stuck_seconds == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phi_threshold": 9, "no_such": 1}, "there is no setting 'no_such'; there are heartbeat_interval_seconds"),
        ({"phi_threshold": 9, "read_threads": 2}, "read_threads is read when a node starts"),
        ({"heartbeat_interval_seconds": 0.5}, "at least four times"),
        ({"append_bytes_max": 2.5}, "must be a whole number"),
        ({"append_bytes_max": 2**40}, "message_bytes_max must exceed"),
        ({"phi_threshold": float("nan")}, "must be a number"),
        ({"phi_threshold": "9"}, "must be a number"),
    ],
)
def test_what_a_config_can_not_be_tuned_to_is_said_by_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Config().tuned(changes)
