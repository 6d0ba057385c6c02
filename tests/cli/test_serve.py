"""geraft serve: one node in a process of its own, from its first line to its end."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_processes import Command, assert_one_line, environment, geraft_command
from click.testing import CliRunner

from geraft.cli import main
from geraft.cli.cluster import free_addresses
from geraft.cli.serve import LOG_NAMES
from geraft.client import Client

pytestmark = pytest.mark.slow  # real nodes are started and asked from the command line


@contextmanager
def serving(*arguments: str, directory: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        geraft_command("serve", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=directory,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_one_line_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    (address,) = free_addresses(1)
    with serving("--id", "n1", "--bootstrap", f"n1={address}", "--data-dir", str(tmp_path / "n1")) as process:
        line = ready_line(process)
        assert "n1" in line and address in line
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (0, "", "")


@pytest.mark.parametrize("storage", LOG_NAMES)
def test_it_keeps_what_it_was_given_over_a_restart_without_the_list(
    tmp_path: Path, geraft: Command, storage: str
) -> None:
    if storage == "rocksdb":
        pytest.importorskip("rocksdict")
    (address,) = free_addresses(1)
    ask = ("--seeds", address, "--timeout", "20")
    settings = ("--set", "election_timeout_seconds=2", "--set", "trailing_entries=7", "--trailing-entries", "9")
    wanted = ("election_timeout_seconds", "trailing_entries")
    for arguments in (["--bootstrap", f"n1={address}", *settings], []):
        with serving("--id", "n1", "--data-dir", str(tmp_path), "--storage", storage, *arguments) as process:
            ready_line(process)
            got = CliRunner().invoke(main, ["config", "get", *wanted, "--json", *ask])
            assert got.exit_code == 0, got.stderr
            if arguments:
                assert geraft("kv", "put", "color", "green", *ask).returncode == 0
                assert json.loads(got.stdout) == {"n1": {"election_timeout_seconds": 2, "trailing_entries": 7}}
            else:
                assert geraft("kv", "get", "color", *ask).stdout == "green"
                assert json.loads(got.stdout) == {"n1": {"election_timeout_seconds": 1, "trailing_entries": 10_000}}


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("no_such=1", 1, "there is no setting 'no_such'; there are heartbeat_interval_seconds, "),
        ("election_timeout_seconds=long", 2, "'election_timeout_seconds=long' is not of the form NAME=VALUE"),
        ("trailing_entries", 2, "'trailing_entries' is not of the form NAME=VALUE"),
        ("heartbeat_interval_seconds=0.5", 1, "must be at least four times heartbeat_interval_seconds"),
    ],
)
def test_a_setting_that_can_not_be_is_refused_before_anything_is_made(
    tmp_path: Path, geraft: Command, setting: str, code: int, said: str
) -> None:
    (address,) = free_addresses(1)
    place = ("--id", "n1", "--bootstrap", f"n1={address}", "--data-dir", str(tmp_path / "n1"))
    refused = geraft("serve", *place, "--set", "trailing_entries=7", "--set", setting)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert_one_line(refused.stderr)
    assert said in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_advertise_and_listen_name_this_node_in_the_list(tmp_path: Path, geraft: Command) -> None:
    (address,) = free_addresses(1)
    port = address.rpartition(":")[2]
    others = free_addresses(1)[0]
    with serving(
        *("--id", "n1", "--data-dir", str(tmp_path), "--listen", f"0.0.0.0:{port}", "--advertise", address),
        *("--bootstrap", f"n2={others}"),
    ) as process:
        ready_line(process)
        done = geraft("status", "--seeds", address, "--timeout", "10")
        assert address in done.stdout and others in done.stdout


def test_a_second_node_on_the_same_data_is_refused(tmp_path: Path, geraft: Command) -> None:
    first, second = free_addresses(2)
    with serving("--id", "n1", "--bootstrap", f"n1={first}", "--data-dir", str(tmp_path)) as process:
        ready_line(process)
        done = geraft("serve", "--id", "n1", "--listen", second, "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert str(tmp_path) in done.stderr


def test_a_taken_port_is_refused(tmp_path: Path, geraft: Command) -> None:
    (address,) = free_addresses(1)
    with serving("--id", "n1", "--bootstrap", f"n1={address}", "--data-dir", str(tmp_path / "n1")) as process:
        ready_line(process)
        done = geraft("serve", "--id", "n2", "--bootstrap", f"n2={address}", "--data-dir", str(tmp_path / "n2"))
    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert address in done.stderr


def test_it_stops_when_the_process_that_started_it_is_gone() -> None:
    (address,) = free_addresses(1)
    arguments = ["--id", "n1", "--bootstrap", f"n1={address}", "--storage", "memory"]
    with serving(*arguments, "--until-stdin-closes") as process:
        ready_line(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_another_storage_beside_the_log_that_is_there_is_refused(tmp_path: Path, geraft: Command) -> None:
    (tmp_path / "log.db").touch()
    refused = geraft("serve", "--id", "n1", "--data-dir", str(tmp_path), "--storage", "file")
    assert refused.returncode == 2
    assert "--storage sqlite" in refused.stderr
    refused = geraft("serve", "--id", "n1", "--data-dir", str(tmp_path / "new"), "--storage", "file", "--sync", "off")
    assert refused.returncode == 2
    assert "--sync off" in refused.stderr


COUNTER = """
from geraft import SimpleRaftApp

class Counter(SimpleRaftApp):
    value = 0
    def process_write(self, request, entry_index):
        self.value += int(request)
        return b"%d" % self.value
    def process_read(self, request): return b"%d" % self.value
    def snapshot(self): return b"%d" % self.value
    def restore(self, snapshot): self.value = int(snapshot or 0)

def nothing(): return "no app"
"""


def test_it_runs_an_app_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(COUNTER)
    (address,) = free_addresses(1)
    arguments = ["--id", "n1", "--bootstrap", f"n1={address}", "--data-dir", "n1", "--app", "own:Counter"]
    for total in (b"5", b"10"):  # the second time over what the first one left
        with serving(*arguments, directory=tmp_path) as process:
            ready_line(process)
            with Client(address, timeout_seconds=20) as client:
                assert client.apply(b"5") == total
                assert client.read(b"") == total


@pytest.mark.parametrize(
    ("app", "code", "said"),
    [
        ("own", 2, "not of the form module:name"),
        ("nowhere:App", 2, "No module named 'nowhere'"),
        ("own:App", 2, "has no attribute 'App'"),
        ("own:COUNT", 2, "which makes no app"),
        ("own:nothing", 1, "neither a RaftApp nor a SimpleRaftApp"),
    ],
)
def test_an_app_that_is_none_is_refused(tmp_path: Path, app: str, code: int, said: str) -> None:
    (tmp_path / "own.py").write_text(COUNTER + "COUNT = 3\n")
    with serving(
        "--id", "n1", "--bootstrap", "n1=127.0.0.1:1", "--storage", "memory", "--app", app, directory=tmp_path
    ) as one:
        _, stderr = one.communicate(timeout=30)
    assert one.returncode == code
    assert_one_line(stderr)
    assert said in stderr
