"""geraft cluster-info, status, monitor, log dump and replay, as somebody uses them who looks after a cluster."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_processes import Command, assert_one_line, geraft_command
from click.testing import CliRunner

from geraft.cli import main
from geraft.cli.cluster import LocalCluster
from geraft.cli.serve import LOG_NAMES
from geraft.client import Client
from geraft.errors import OutcomeUnknown
from geraft.kv import decode_value, get, put
from geraft.runtime.status import ClusterInfo
from geraft.testing.cluster import PATIENT, NodeProcess, free_addresses, wait_until, write_surely

pytestmark = pytest.mark.slow  # real nodes are started and asked from the command line


def are_even(client: Client, addresses: list[str]) -> bool:
    """Whether all have applied the same, whole log."""
    ends = {(status.last_log_index, status.last_applied) for status in map(client.status, addresses)}
    return len(ends) == 1 and all(end == applied for end, applied in ends)


def stopped_after(writes: list[bytes], directory: Path, size: int, storage: str = "sqlite") -> LocalCluster:
    """Nodes that took these writes, each of them once, and were stopped when each node had applied all.

    A write whose outcome is unknown may be in the log or not: then other nodes begin anew.
    """
    for attempt in range(5):
        place = directory / str(attempt)
        place.mkdir()
        cluster = LocalCluster(size, place, storage=storage, options=PATIENT)
        with cluster, Client(cluster.addresses, timeout_seconds=20) as client:
            try:
                for write in writes:
                    client.apply(write)
            except OutcomeUnknown:
                continue
            wait_until("all have applied all", partial(are_even, client, cluster.addresses))
        return cluster
    pytest.fail("no cluster was sure of all its writes")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:
    """Three nodes that took 40 writes; then they were stopped."""
    writes = [put(f"key-{number % 4}", b"value-%d" % number) for number in range(40)]
    return stopped_after(writes, tmp_path_factory.mktemp("stopped"), 3)


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


def put_surely(geraft: Command, address: str) -> None:
    command = ("kv", "put", "a", "b", "--timeout", "20", "--seeds", address)
    wait_until("a write", lambda: geraft(*command).returncode == 0)


def test_cluster_info_tells_the_leader_and_the_members(geraft: Command, cluster: LocalCluster) -> None:
    put_surely(geraft, cluster.members["n1"])

    def told(node: str, *arguments: str) -> str:
        return geraft("cluster-info", "--seeds", cluster.members[node], "--timeout", "10", *arguments).stdout

    def told_of_one_term() -> tuple[dict[str, Any], str] | None:
        as_json, table = told("n3", "--json"), told("n2")
        info = json.loads(as_json) if as_json else {}  # nothing is told while that node stands still
        agreed = info.get("leader_id") and f"term {info['term']}\n" in table and "(leader)" in table
        return (info, table) if agreed else None

    info, table = wait_until("n2 and n3 know the leader too", told_of_one_term)
    assert {member["id"]: member["address"] for member in info["members"]} == cluster.members
    assert cluster.members[info["leader_id"]] == info["leader_address"]
    assert f"{info['leader_id']} at {info['leader_address']}  (leader)" in table
    nobody = geraft("cluster-info", "--seeds", "127.0.0.1:9", "--timeout", "1")
    assert nobody.returncode == 1
    assert_one_line(nobody.stderr)


def members_in(frame: str) -> dict[str, list[str]]:
    """The words of each member's row."""
    rows = [line.split() for line in frame.splitlines() if line[:1] == "n"]
    return {row[0]: row for row in rows if ":" in row[1]}


def rates_in(frame: str) -> list[int]:
    return [int(row[7].replace(",", "")) for row in members_in(frame).values()]


def test_a_frame_of_the_monitor_shows_members_indexes_lag_and_rates(geraft: Command, cluster: LocalCluster) -> None:
    command = geraft_command("monitor", "--once", "--seeds", cluster.members["n1"], "--timeout", "10")
    with Client(cluster.addresses, timeout_seconds=20) as client:
        write_surely(client, "m", b"1")

        def undisturbed() -> tuple[ClusterInfo, str] | None:
            """A frame, and who led all the while; None if another came to lead, or somebody stood still."""
            before = client.cluster_info()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
                while watching.poll() is None:
                    write_surely(client, "m", b"2")
                assert watching.stdout is not None
                frame = watching.stdout.read()
            info = client.cluster_info()
            same = before.leader_id and (before.leader_id, before.term) == (info.leader_id, info.term)
            return (info, frame) if same and all(rate > 0 for rate in rates_in(frame)) else None

        info, frame = wait_until("a frame in which all nodes get on under one leader", undisturbed, 60)
    headline, _, heading, *rows = frame.splitlines()
    assert f"{info.leader_id} leads term {info.term}, 3 of 3 answer" in headline
    assert heading.split()[:8] == ["member", "address", "role", "term", "log", "committed", "applied", "commits/s"]
    shown = members_in(frame)
    assert {id: row[1] for id, row in shown.items()} == cluster.members
    assert [id for id, row in shown.items() if row[2] == "leader"] == [info.leader_id]
    assert all(rate > 0 for rate in rates_in(frame)), frame
    assert any(row.startswith(f"{info.leader_id}: leads") for row in rows)


def test_the_monitor_shows_who_does_not_answer_and_that_there_is_no_leader(geraft: Command, tmp_path: Path) -> None:
    with LocalCluster(2, tmp_path) as two:
        put_surely(geraft, two.members["n1"])
        two.nodes["n2"].kill()
        watch = ("monitor", "--once", "--seeds", two.members["n1"])

        def sure() -> str:
            frame = geraft(*watch, "--interval", "0.5", "--timeout", "10").stdout
            return frame if "1 of 2 voters answers" in frame else ""

        frame = wait_until("n1 is sure of it", sure, 60)
        assert "no leader, 1 of 2 answer" in frame
        assert "unreachable" in frame and "1 of 2 voters answers (n2 at" in frame
        two.nodes["n1"].kill()
        nobody = geraft(*watch, "--interval", "0.1")
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
    place = stopped_after([put("a", b"1"), put("a", b"2")], tmp_path, 1, storage).directory / "n1"
    store, entries = dumped(geraft, place)
    assert store["node_id"] == "n1"
    first, second = [entry for entry in entries if entry["kind"] == "command"]
    assert [base64.b64decode(str(entry["base64"])) for entry in (first, second)] == [put("a", b"1"), put("a", b"2")]
    ask = ("--to", str(first["index"]), "--read-base64", base64.b64encode(get("a")).decode())
    done = geraft("replay", str(place / LOG_NAMES[storage]), "geraft.kv:KeyValueApp", *ask)
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
                write_surely(client, "a", b"%d" % number)
            wait_until("a snapshot", lambda: client.status(address).snapshot_index > 0)
    finally:
        node.terminate()
        node.wait_until_ended()
    store, entries = dumped(geraft, place)
    assert store["snapshots"]
    wanted = base64.b64encode(put("a", b"117")).decode()
    index = [entry["index"] for entry in entries if entry.get("base64") == wanted][-1]
    ask = ("--to", str(index), "--read-base64", base64.b64encode(get("a")).decode())
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
