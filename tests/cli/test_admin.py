"""geraft cluster-info, status, monitor, log dump and replay, as somebody uses them who looks after a cluster."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_processes import Command, assert_one_line, geraft_command
from click.testing import CliRunner

from geraft.cli import main
from geraft.cli.cluster import LocalCluster
from geraft.cli.serve import LOG_NAMES
from geraft.client import Client
from geraft.kv import decode_value, get, put
from geraft.testing.cluster import NodeProcess, free_addresses, wait_until

pytestmark = pytest.mark.slow  # real nodes are started and asked from the command line


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes that took 40 writes, and were looked at; then they were stopped."""
    cluster = LocalCluster(3, tmp_path_factory.mktemp("stopped"))
    with cluster, Client(cluster.addresses, timeout_seconds=20) as client:
        for number in range(40):
            client.apply(put(f"key-{number % 4}", b"value-%d" % number))
    yield cluster


@pytest.fixture
def geraft() -> Command:
    """The command, in this process: the verbs here need none of their own, and its start takes longer than they do."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = CliRunner().invoke(main, arguments, prog_name="geraft")
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return run


def dumped(geraft: Command, place: Path, *arguments: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    done = geraft("log", "dump", str(place), "--json", *arguments)
    assert done.returncode == 0, done.stderr
    store, *entries = [json.loads(line) for line in done.stdout.splitlines()]
    return store, entries


def test_cluster_info_tells_the_leader_and_the_members(geraft: Command, cluster: LocalCluster) -> None:
    assert geraft("kv", "put", "a", "b", "--timeout", "20", "--seeds", cluster.members["n1"]).returncode == 0

    def told() -> dict[str, Any]:
        return dict(json.loads(geraft("cluster-info", "--json", "--seeds", cluster.members["n3"]).stdout))

    wait_until("n3 knows the leader too", lambda: told()["leader_id"])
    info = told()
    assert {member["id"]: member["address"] for member in info["members"]} == cluster.members
    assert cluster.members[info["leader_id"]] == info["leader_address"]
    table = geraft("cluster-info", "--seeds", cluster.members["n2"]).stdout
    assert f"{info['leader_id']} at {info['leader_address']}  (leader)" in table
    nobody = geraft("cluster-info", "--seeds", "127.0.0.1:9", "--timeout", "1")
    assert nobody.returncode == 1
    assert_one_line(nobody.stderr)


def test_a_frame_of_the_monitor_shows_members_indexes_lag_and_rates(geraft: Command, cluster: LocalCluster) -> None:
    seeds = ("--seeds", cluster.members["n1"])
    with Client(cluster.addresses, timeout_seconds=20) as client:
        client.apply(put("m", b"1"))
        watching = subprocess.Popen(geraft_command("monitor", "--once", *seeds), stdout=subprocess.PIPE, text=True)
        while watching.poll() is None:
            client.apply(put("m", b"2"))
        assert watching.stdout is not None
        frame = watching.stdout.read()
        watching.stdout.close()
        info = client.cluster_info()
    headline, _, heading, *rows = frame.splitlines()
    assert f"{info.leader_id} leads term {info.term}, 3 of 3 answer" in headline
    assert heading.split()[:8] == ["member", "address", "role", "term", "log", "committed", "applied", "commits/s"]
    shown = {row.split()[0]: row.split() for row in rows if row[:1] == "n" and ":" in row.split()[1]}
    assert {id: row[1] for id, row in shown.items()} == cluster.members
    assert [id for id, row in shown.items() if row[2] == "leader"] == [info.leader_id]
    rates = [int(row[7].replace(",", "")) for row in shown.values()]
    assert all(rate > 0 for rate in rates), frame
    assert any(row.startswith(f"{info.leader_id}: leads") for row in rows)


def test_the_monitor_shows_who_does_not_answer_and_that_there_is_no_leader(geraft: Command, tmp_path: Path) -> None:
    with LocalCluster(2, tmp_path) as two:
        assert geraft("kv", "put", "a", "b", "--timeout", "20", "--seeds", two.members["n1"]).returncode == 0
        two.nodes["n2"].kill()
        for _ in range(10):
            frame = geraft("monitor", "--once", "--interval", "0.5", "--seeds", two.members["n1"]).stdout
            if "1 of 2 voters answers" in frame:  # it takes a moment to be sure of it
                break
        assert "no leader, 1 of 2 answer" in frame
        assert "unreachable" in frame and "1 of 2 voters answers (n2 at" in frame
        two.nodes["n1"].kill()
        nobody = geraft("monitor", "--once", "--interval", "0.1", "--seeds", two.members["n1"])
        assert nobody.returncode == 1 and "no node answers" in nobody.stderr


def test_a_log_is_dumped_readable_and_as_json(geraft: Command, stopped: LocalCluster) -> None:
    store, entries = dumped(geraft, stopped.directory / "n1")
    assert (store["node_id"], store["first_index"]) == ("n1", 1)
    assert store["last_index"] == len(entries) and [entry["index"] for entry in entries] == list(
        range(1, len(entries) + 1)
    )
    assert entries[0]["configuration"] == {"voters": stopped.members}
    commands = [base64.b64decode(str(entry["base64"])) for entry in entries if entry["kind"] == "command"]
    assert commands == [put(f"key-{number % 4}", b"value-%d" % number) for number in range(40)]
    _, part = dumped(geraft, stopped.directory / "n1" / "log.db", "--from", "5", "--to", "7")
    assert part == entries[4:7]
    text = geraft("log", "dump", str(stopped.directory / "n2"), "--to", "3").stdout
    assert text.startswith("node n2 of cluster ") and "voters n1=127.0.0.1:" in text
    assert [line.split()[2] for line in text.splitlines()[2:]][:2] == ["configuration", "noop"]


@pytest.mark.parametrize("storage", [name for name in LOG_NAMES if name != "sqlite"])
def test_the_log_of_every_other_storage_is_dumped_and_replayed(geraft: Command, tmp_path: Path, storage: str) -> None:
    with LocalCluster(1, tmp_path, storage=storage) as one, Client(one.addresses, timeout_seconds=20) as client:
        client.apply(put("a", b"1"))
        client.apply(put("a", b"2"))
    store, entries = dumped(geraft, tmp_path / "n1")
    assert store["node_id"] == "n1"
    first, second = [entry for entry in entries if entry["kind"] == "command"]
    assert [base64.b64decode(str(entry["base64"])) for entry in (first, second)] == [put("a", b"1"), put("a", b"2")]
    ask = ("--to", str(first["index"]), "--read-base64", base64.b64encode(get("a")).decode())
    done = geraft("replay", str(tmp_path / "n1" / LOG_NAMES[storage]), "geraft.kv:KeyValueApp", *ask)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("1"), done


def test_what_is_no_store_or_is_in_use_is_said_in_one_line(
    geraft: Command, cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for place, sentence in ((tmp_path / "empty", "holds no log store"), (cluster.directory / "n1", "process")):
        done = geraft("log", "dump", str(place))
        assert done.returncode == 1 and sentence in done.stderr
        assert_one_line(done.stderr)
    assert list((tmp_path / "empty").iterdir()) == [], "nothing was made there"


def test_any_sql_tool_reads_entries_with_plain_columns_also_of_a_running_node(
    geraft: Command, cluster: LocalCluster, stopped: LocalCluster
) -> None:
    database = sqlite3.connect(f"file:{stopped.directory / 'n1' / 'log.db'}?mode=ro", uri=True)
    _, entries = dumped(geraft, stopped.directory / "n1")
    rows = database.execute("SELECT entry_index, term, kind, size_bytes, command FROM entries").fetchall()
    database.close()
    assert [row[:3] for row in rows] == [(entry["index"], entry["term"], entry["kind"]) for entry in entries]
    assert [row[4] for row in rows] == [base64.b64decode(str(entry.get("base64", ""))) for entry in entries]
    assert all(row[3] == len(row[4]) for row in rows)
    running = sqlite3.connect(f"file:{cluster.directory / 'n1' / 'log.db'}?mode=ro", uri=True)
    assert running.execute("SELECT sum(entry_count) = max(last_index) FROM batches").fetchone() == (1,)
    running.close()


def test_a_fresh_app_is_taken_to_any_entry(geraft: Command, stopped: LocalCluster, tmp_path: Path) -> None:
    _, entries = dumped(geraft, stopped.directory / "n1")
    writes = [int(str(entry["index"])) for entry in entries if entry["kind"] == "command"]
    ask = ("--read-base64", base64.b64encode(get("key-1")).decode())

    def value_at(node: str, *to: str) -> bytes | None:
        done = CliRunner().invoke(main, ["replay", str(stopped.directory / node), "geraft.kv:KeyValueApp", *to, *ask])
        assert done.exit_code == 0, done.stderr
        return decode_value(done.stdout_bytes.removesuffix(b"\n"))

    assert value_at("n1", "--to", str(writes[0])) is None
    assert value_at("n1", "--to", str(writes[1])) == b"value-1"
    assert value_at("n2", "--to", str(writes[5])) == b"value-5"
    assert value_at("n3") == b"value-37"
    for node in ("n1", "n3"):
        state = geraft(
            "replay", str(stopped.directory / node), "geraft.kv:KeyValueApp", "--to", str(writes[20]),
            "--snapshot-to", str(tmp_path / node),
        )  # fmt: skip
        assert state.returncode == 0 and f"up to {writes[20]}" in state.stderr
    assert (tmp_path / "n1").read_bytes() == (tmp_path / "n3").read_bytes() != b""


def test_a_log_that_was_cut_off_is_replayed_from_a_snapshot(geraft: Command, tmp_path: Path) -> None:
    (address,) = free_addresses(1)
    place = tmp_path / "n1"
    arguments = ["--id", "n1", "--bootstrap", f"n1={address}", "--data-dir", str(place), "--snapshot-every", "50"]
    node = NodeProcess("n1", arguments, tmp_path / "log")
    node.start()
    try:
        node.wait_until_ready()
        with Client(address, timeout_seconds=20) as client:
            for number in range(120):
                client.apply(put("a", b"%d" % number))
            wait_until("a snapshot", lambda: client.status(address).snapshot_index > 0)
    finally:
        node.terminate()
        node.wait_until_ended()
    store, entries = dumped(geraft, place)
    assert store["snapshots"]
    writes = [entry for entry in entries if entry["kind"] == "command"]
    ask = ("--to", str(writes[-3]["index"]), "--read-base64", base64.b64encode(get("a")).decode())
    done = geraft("replay", str(place), "geraft.kv:KeyValueApp", *ask)
    assert done.returncode == 0 and "on the snapshot of entry" in done.stderr, done.stderr
    assert done.stdout.rstrip().endswith("117")


def test_a_replay_that_can_not_be_is_one_line(geraft: Command, stopped: LocalCluster) -> None:
    place = str(stopped.directory / "n1")
    for arguments, sentence in (
        (("geraft.kv:KeyValueApp", "--to", "9999"), "the log ends at entry"),
        (("geraft.kv:NoSuchApp",), "can't be found"),
        (("cli_broken_app:Broken",), "can't be found"),
        (("geraft.kv:KeyValueApp", "--read-base64", "?"), "--read-base64"),
    ):
        done = geraft("replay", place, *arguments)
        assert done.returncode in (1, 2) and sentence in done.stderr, done.stderr
        assert_one_line(done.stderr)
