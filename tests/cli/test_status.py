"""geraft status: every node is shown, also one that does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_processes import Command

from geraft.cli.cluster import LocalCluster
from geraft.client import Client
from geraft.testing.cluster import PATIENT, wait_until, write_surely

pytestmark = pytest.mark.slow  # real nodes are started and asked from the command line


def test_a_table_and_json_of_three_nodes_one_of_them_dead(geraft: Command, tmp_path: Path) -> None:
    with LocalCluster(3, tmp_path, options=PATIENT) as cluster:
        with Client(cluster.addresses, timeout_seconds=20) as client:
            write_surely(client, "a", b"b")
            wait_until("n1 has heard of it", lambda: client.status(cluster.members["n1"]).commit_index >= 1)
        cluster.nodes["n2"].kill()

        done = geraft("status", "--json", "--seeds", cluster.members["n1"], "--timeout", "10")
        assert done.returncode == 0
        nodes = {node["id"]: node for node in json.loads(done.stdout)["nodes"]}
        assert nodes.keys() == {"n1", "n2", "n3"}, "a seed that answers knows the others"
        assert {node["address"] for node in nodes.values()} == set(cluster.addresses)
        assert nodes["n2"]["error"]
        assert nodes["n1"]["commit_index"] >= 1

        done = geraft("status", "--seeds", cluster.members["n2"] + "," + cluster.members["n3"], "--timeout", "10")
        assert done.returncode == 0
        heading, *rows = done.stdout.splitlines()
        assert heading.split()[:3] == ["id", "address", "role"]
        (dead,) = [row for row in rows if row.startswith("n2")]
        assert cluster.members["n2"] in dead and "unreachable" in dead
