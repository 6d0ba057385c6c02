"""A running cluster is backed up under load, and a new one is made of the backup."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from cli_processes import Command, assert_one_line, run_here

from geraft.cli.cluster import LocalCluster
from geraft.client import Client, gateway
from geraft.kv import decode_pairs, list_pairs
from geraft.testing.cluster import PATIENT, NodeProcess, free_addresses, wait_until, write_surely

pytestmark = pytest.mark.slow  # real nodes


@pytest.fixture
def geraft(monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in this process. It waits for a node that stands still, as one may on a busy machine."""
    monkeypatch.setattr(gateway, "PROBE_SECONDS", 20.0)
    return run_here


def pairs(client: Client) -> dict[str, bytes]:
    return dict(decode_pairs(client.read(list_pairs(""), timeout_seconds=30)))


def test_what_was_answered_before_a_backup_is_there_after_a_restore(geraft: Command, tmp_path: Path) -> None:
    """The new cluster's nodes have stores of different kinds."""
    file = tmp_path / "backup"
    with LocalCluster(3, tmp_path, options=PATIENT) as old, Client(old.addresses, timeout_seconds=20) as client:
        before = {f"before-{number}": b"%d" % number for number in range(50)}
        for key, value in before.items():
            write_surely(client, key, value)
        stopping = threading.Event()
        written: list[str] = []

        def write() -> None:
            while not stopping.is_set():
                key = f"during-{len(written)}"
                write_surely(client, key, b"x")  # until it is known to be there: the backup may hold it
                written.append(key)

        writer = threading.Thread(target=write)
        writer.start()
        done = geraft("backup", str(file), "--seeds", old.members["n2"])
        stopping.set()
        writer.join(30)
        assert done.returncode == 0, done.stderr
        assert "from n" in done.stdout and "after entry" in done.stdout
        write_surely(client, "after", b"too late")
        assert len(written) > 0

        # The old cluster still runs when the new one is made, under the same names.
        members = dict(zip(old.members, free_addresses(3), strict=True))
        bootstrap = ("--bootstrap", ",".join(f"{id}={address}" for id, address in members.items()))
        nodes = []
        for id, storage in zip(members, ["sqlite", "file", "sqlite"], strict=True):
            place = tmp_path / "new" / id
            done = geraft("restore", str(file), "--id", id, "--data-dir", str(place), *bootstrap, "--storage", storage)
            assert done.returncode == 0, done.stderr
            serve = ["--id", id, "--data-dir", str(place), "--storage", storage, "--log-level", "info"]
            nodes.append(NodeProcess(id, [*serve, *PATIENT], tmp_path / f"new-{id}.log"))
        try:
            for node in nodes:
                node.start()
            for node in nodes:
                node.wait_until_ready()
            with Client(list(members.values()), timeout_seconds=20) as new:
                held = pairs(new)
                assert {key: held.get(key) for key in before} == before
                assert "after" not in held
                during = [key for key in held if key.startswith("during-")]
                assert sorted(during) == sorted(written[: len(during)]), "a prefix of what was written meanwhile"
                write_surely(new, "goes", b"on")
                nodes[0].kill()
                nodes[0].start()
                nodes[0].wait_until_ready()

                def on_n1() -> dict[str, bytes]:
                    return dict(decode_pairs(new.read(list_pairs(""), "stale", address=members["n1"])))

                wait_until("n1 holds all of it again", lambda: on_n1().get("goes") == b"on")
                assert new.cluster_info().cluster_id != client.cluster_info().cluster_id
        finally:
            for node in nodes:
                node.kill()


def test_a_damaged_file_and_a_directory_in_use_are_refused(geraft: Command, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    with LocalCluster(1, tmp_path) as old, Client(old.addresses, timeout_seconds=20) as client:
        write_surely(client, "a", b"1")
        assert geraft("backup", str(file), "--seeds", old.members["n1"]).returncode == 0
    whole = file.read_bytes()
    one = ("--id", "n1", "--data-dir", str(tmp_path / "new"), "--bootstrap", "n1=127.0.0.1:1")
    for name, damaged in {
        "torn": whole[:-1],
        "flipped": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "head": whole[:30] + bytes([whole[30] ^ 1]) + whole[31:],
        "another": b"PK" + whole,
        "empty": b"",
    }.items():
        (tmp_path / name).write_bytes(damaged)
        done = geraft("restore", str(tmp_path / name), *one)
        assert done.returncode == 1 and ("damaged" in done.stderr or "no backup" in done.stderr), (name, done.stderr)
        assert_one_line(done.stderr)
        assert not (tmp_path / "new").exists() and not (tmp_path / "new.restoring").exists()
    done = geraft("restore", str(file), "--id", "n1", "--data-dir", str(tmp_path / "n1"), "--bootstrap", "n1=h:1")
    assert done.returncode == 1 and "is not empty" in done.stderr
    assert geraft("restore", str(file), *one[2:], "--id", "n9").returncode == 2
    assert geraft("restore", str(file), *one).returncode == 0


def test_a_backup_that_can_not_be_had_leaves_no_file(geraft: Command, tmp_path: Path) -> None:
    with LocalCluster(1, tmp_path) as old:
        never = geraft("backup", str(tmp_path / "file"), "--node", "127.0.0.1:9", "--timeout", "2")
        assert never.returncode == 1
        assert_one_line(never.stderr)
        assert list(tmp_path.glob("file*")) == []
        assert old.addresses
