"""The pytest plugin, in a pytest of its own, as a user's tests load it."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # each test runs a pytest of its own

ROOT = Path(__file__).resolve().parent.parent.parent

APPS = """
from geraft.kv import KeyValueApp, put

class CountsItsWrites(KeyValueApp):
    "What it counts is in no snapshot."
    writes = 0

    def process_write(self, request, entry_index):
        self.writes += 1
        super().process_write(request, entry_index)
        return b"%d" % self.writes
"""


def run_pytest(directory: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "geraft_pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_pytest_finds_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["pytest11"].strip() == "geraft = geraft_pytest"
    assert setup["options"]["py_modules"].strip() == "geraft_pytest"


def test_an_app_that_keeps_its_promises_passes_and_one_that_does_not_is_shown(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        APPS
        + """
def test_sound(simulated_cluster):
    met = simulated_cluster(KeyValueApp, [put("a", b"1"), put("b", b"2")], seconds=5)
    assert met["call forwarded to the leader"] > 0

def test_broken(simulated_cluster):
    simulated_cluster(CountsItsWrites, lambda rng: put("a", b"%d" % rng.randrange(100)), seconds=5)
""",
        "--geraft-seeds=1:3",
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "the app is not deterministic: entry" in done.stdout


def test_an_app_without_commands_is_refused(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        APPS
        + """
import pytest
from geraft.errors import ConfigError

def test_it(simulated_cluster):
    with pytest.raises(ConfigError, match="go together"):
        simulated_cluster(KeyValueApp)
""",
    )
    assert done.returncode == 0, done.stdout


def test_nothing_of_geraft_is_imported_before_a_test_asks_for_it(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "import sys\ndef test_it(): assert 'geraft' not in sys.modules", "--strict-markers")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_real_processes_of_the_size_that_the_marker_says(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
import pytest
from geraft.kv import decode_value, get, put
from geraft.testing.cluster import wait_until

@pytest.mark.raft_cluster(size=2)
def test_it(raft_cluster):
    assert sorted(raft_cluster.members) == ["n1", "n2"]
    with raft_cluster.client() as client:
        # Again, if its outcome is unknown: their first leader may not stay.
        wait_until("a write", lambda: client.apply(put("key", b"value"), timeout_seconds=10) is not None, 60)
        raft_cluster.restart(raft_cluster.leader())
        assert decode_value(client.read(get("key"), timeout_seconds=60)) == b"value"
""",
        "--strict-markers",
    )
    assert done.returncode == 0, done.stdout + done.stderr
