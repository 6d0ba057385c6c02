"""geraft config: what all members go by, changed on all of them while they run."""

from __future__ import annotations

import json

import pytest
from cli_processes import assert_one_line, run_here

from geraft.cli.cluster import LocalCluster
from geraft.client import Client
from geraft.testing.cluster import wait_until

pytestmark = pytest.mark.slow  # real nodes are started and asked from the command line


def test_settings_are_set_on_all_members_without_an_election(cluster: LocalCluster) -> None:
    seeds = ("--seeds", cluster.members["n2"], "--timeout", "20")
    assert run_here("kv", "put", "a", "b", *seeds).returncode == 0
    with Client(cluster.addresses, timeout_seconds=20) as client:
        wait_until("a leader is known", lambda: client.cluster_info().leader_id)
        before = client.cluster_info()
        leader = before.leader_id
        rarer = run_here("config", "set", "heartbeat_interval_seconds=0.3", "election_timeout_seconds=3", *seeds)
        assert rarer.returncode == 0, rarer.stderr
        told = [line.split()[0] for line in rarer.stdout.splitlines()]
        assert sorted(told) == ["n1", "n2", "n3"] and told[-1] == leader
        got = run_here("config", "get", "election_timeout_seconds", "heartbeat_interval_seconds", "--json", *seeds)
        wanted = {"heartbeat_interval_seconds": 0.3, "election_timeout_seconds": 3}
        assert json.loads(got.stdout) == dict.fromkeys(["n1", "n2", "n3"], wanted) | {leader: wanted}
        back = run_here("config", "set", "heartbeat_interval_seconds=0.1", "election_timeout_seconds=1", *seeds)
        assert back.stdout.split()[0] == leader
        info = client.cluster_info()
        assert (info.leader_id, info.term) == (leader, before.term)


def test_what_a_node_refuses_changes_nothing_and_is_one_line(cluster: LocalCluster) -> None:
    seeds = ("--seeds", cluster.members["n1"], "--timeout", "20")
    for change, sentence in {
        "heartbeat_interval_seconds=5": "at least four times",
        "no_such=1": "there is no setting 'no_such'",
        "read_threads=9": "restart the node",
    }.items():
        done = run_here("config", "set", "phi_threshold=12", change, *seeds)
        assert done.returncode == 1 and sentence in done.stderr and "nothing was changed" in done.stderr
        assert_one_line(done.stderr)
    assert "phi_threshold = 8\n" in run_here("config", "get", "phi_threshold", *seeds).stdout
    assert run_here("config", "set", "phi_threshold", *seeds).returncode == 2


def test_nodes_that_differ_are_shown(cluster: LocalCluster) -> None:
    seeds = ("--seeds", cluster.members["n1"], "--timeout", "20")
    one = ("--node", cluster.members["n3"])
    assert run_here("config", "set", "election_timeout_seconds=2", *seeds, *one).returncode == 0
    try:
        done = run_here("config", "get", "election_timeout_seconds", *seeds)
        assert done.returncode == 1 and "nodes differ in what must be equal" in done.stderr
        assert "2 on n3" in done.stdout and "1 on n1" in done.stdout
    finally:
        assert run_here("config", "set", "election_timeout_seconds=1", *seeds, *one).returncode == 0
    everything = run_here("config", "get", *seeds)
    assert everything.returncode == 0
    assert "message_bytes_max = 268435456  (read at the start)" in everything.stdout
