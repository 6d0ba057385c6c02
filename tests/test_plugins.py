"""Signals reach their receivers, and plugins are found by their entry points; a broken one harms nobody."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from geraft import plugins, signals
from geraft.plugins import load_plugins

ROOT = Path(__file__).resolve().parent.parent

PLUGIN = """
from geraft import signals

heard = []
calls = []

def connect():
    calls.append(1)
    signals.leader_changed.connect(hear)

def hear(node, **arguments):
    heard.append((node, arguments))

def broken():
    raise RuntimeError("not today")

def leaves():
    raise SystemExit("no licence")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with four plugins, two of which raise and one of which is not there."""
    (tmp_path / "a_geraft_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "a_geraft_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: a-geraft-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[geraft.plugins]\nworks = a_geraft_plugin:connect\nraises = a_geraft_plugin:broken\nabsent = nowhere:connect\n"
        "leaves = a_geraft_plugin:leaves\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv("GERAFT_PLUGINS_OFF", "audit, prometheus")  # those of the tree have tests of their own
    yield
    sys.modules.pop("a_geraft_plugin", None)


def test_plugins_are_loaded_and_a_broken_one_is_left_out(installed: None, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = {plugin.name: plugin.error for plugin in load_plugins() if not plugin.off}
    assert outcomes.keys() == {"absent", "leaves", "raises", "works"}
    assert outcomes["works"] is None
    assert isinstance(outcomes["absent"], ModuleNotFoundError)
    assert isinstance(outcomes["raises"], RuntimeError)
    assert isinstance(outcomes["leaves"], SystemExit)
    assert "raises" in caplog.text and "not today" in caplog.text

    signals.leader_changed.send("a node", leader_id="n2", term=7)
    assert sys.modules["a_geraft_plugin"].heard == [("a node", {"leader_id": "n2", "term": 7})]


def test_a_plugin_is_called_once_in_a_process(installed: None) -> None:
    first, second = load_plugins(), load_plugins()
    assert first == second
    assert sys.modules["a_geraft_plugin"].calls == [1]


@pytest.mark.parametrize("off", ["works", "raises, works", "all"])
def test_a_plugin_that_is_switched_off_is_not_loaded(
    installed: None, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    monkeypatch.setenv("GERAFT_PLUGINS_OFF", off)
    found = {plugin.name: plugin for plugin in load_plugins()}
    assert found["works"].off and found["works"].error is None
    assert found["absent"].off == (off == "all")
    assert "a_geraft_plugin" not in sys.modules or sys.modules["a_geraft_plugin"].calls == []


def test_the_plugin_of_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (setup,) = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "my_alarm.py").write_text(code)
    metadata = tmp_path / "my_alarm-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-alarm\nVersion: 1.0\n")
    point = setup.partition("geraft.plugins =\n")[2].strip()
    (metadata / "entry_points.txt").write_text(f"[geraft.plugins]\n{point}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv("GERAFT_PLUGINS_OFF", "audit, prometheus")
    (alarm,) = [plugin for plugin in load_plugins() if not plugin.off]
    assert (alarm.name, alarm.error) == ("alarm", None)

    class Node:
        id = "n1"

        def status(self) -> object:
            return type("Status", (), {"explanation": "1 of 3 voters answers"})

    signals.leader_changed.send(Node(), leader_id="", term=4)
    signals.leader_changed.disconnect(sys.modules.pop("my_alarm").leader_changed)
    assert "n1: nobody leads term 4: 1 of 3 voters answers" in caplog.text
