"""Data and members survive the restart of all nodes at once, whatever store each of them keeps it in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from cluster_stories import Writers, assert_nothing_lost, voters, wait_until_voters

from geraft.testing.cluster import Cluster

pytestmark = pytest.mark.slow  # real processes, started and killed

STORAGES = {
    "files": {"n1": "file", "n2": "file", "n3": "file"},
    "one of each": {"n1": "sqlite", "n2": "file", "n3": "rocksdb"},
}


@pytest.mark.parametrize("kind", ["one of each", pytest.param("files", marks=pytest.mark.long)])
def test_all_nodes_are_killed_and_come_back_with_what_they_acknowledged(tmp_path: Path, kind: str) -> None:
    """The others join the first one while it runs, so that it is the logs alone that tell who is a member."""
    storages = STORAGES[kind]
    if "rocksdb" in storages.values() and find_spec("rocksdict") is None:
        pytest.skip("the extra rocksdb is not installed")
    with Cluster(tmp_path, 1, options=("--storage", storages["n1"])) as cluster, cluster.client(30) as client:
        with Writers(cluster, "before") as writers:
            for node in ("n2", "n3"):
                cluster.add(node, options=("--storage", storages[node]))
            wait_until_voters(client, *storages)
            writers.wait_for_more(100)
            for node in cluster.members:
                cluster.kill(node)
            cluster.start(*cluster.members)
            writers.wait_for_more()
            assert voters(client) == set(storages)
        assert_nothing_lost(cluster, writers)
