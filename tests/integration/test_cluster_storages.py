"""Data survives the restart of all nodes at once, whatever store each of them keeps it in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from cluster_stories import Writers, assert_nothing_lost

from geraft.testing.cluster import Cluster

pytestmark = pytest.mark.slow  # real processes, started and killed

STORAGES = {
    "files": {"n1": "file", "n2": "file", "n3": "file"},
    "one of each": {"n1": "sqlite", "n2": "file", "n3": "rocksdb"},
}


@pytest.mark.parametrize("kind", STORAGES)
def test_all_nodes_are_killed_and_come_back_with_what_they_acknowledged(tmp_path: Path, kind: str) -> None:
    storages = STORAGES[kind]
    if "rocksdb" in storages.values() and find_spec("rocksdict") is None:
        pytest.skip("the extra rocksdb is not installed")
    with Cluster(tmp_path, options_of=lambda node: ("--storage", storages[node])) as cluster:
        with Writers(cluster, "before") as writers:
            writers.wait_for_more(100)
            for node in cluster.members:
                cluster.kill(node)
            cluster.start(*cluster.members)
            writers.wait_for_more()
        assert_nothing_lost(cluster, writers)
