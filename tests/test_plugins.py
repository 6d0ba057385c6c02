"""Signals reach their receivers, and plugins are found by their entry points; a broken one harms nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from geraft import signals
from geraft.plugins import load_plugins

PLUGIN = """
from geraft import signals

heard = []

def connect():
    signals.leader_changed.connect(hear)

def hear(node, **arguments):
    heard.append((node, arguments))

def broken():
    raise RuntimeError("not today")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with three plugins, one of which raises and one of which is not there."""
    (tmp_path / "a_geraft_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "a_geraft_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: a-geraft-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[geraft.plugins]\nworks = a_geraft_plugin:connect\nraises = a_geraft_plugin:broken\nabsent = nowhere:connect\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("a_geraft_plugin", None)


def test_plugins_are_loaded_and_a_broken_one_is_left_out(installed: None, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = {plugin.name: plugin.error for plugin in load_plugins()}
    assert outcomes.keys() == {"absent", "raises", "works"}
    assert outcomes["works"] is None
    assert isinstance(outcomes["absent"], ModuleNotFoundError)
    assert isinstance(outcomes["raises"], RuntimeError)
    assert "raises" in caplog.text and "not today" in caplog.text

    signals.leader_changed.send("a node", leader_id="n2", term=7)
    assert sys.modules["a_geraft_plugin"].heard == [("a node", {"leader_id": "n2", "term": 7})]
