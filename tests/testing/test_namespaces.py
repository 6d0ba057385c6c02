"""Nodes in network namespaces: a real cluster whose packets are lost one way. Needs root and the kernel's help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from geraft.testing.namespaces import Namespaces, NamespacesUnavailable, inside_own_namespace, unavailable

STORY = """
import pathlib, sys
from geraft.kv import decode_value, get, put
from geraft.testing.cluster import OUTSIDE, NamespacedCluster, wait_until

with NamespacedCluster(pathlib.Path(sys.argv[1])) as cluster, cluster.client() as client:
    wait_until("the first write", lambda: client.apply(put("key", b"before"), 10) is not None)
    leader = cluster.leader()
    one, another = [node for node in cluster.members if node != leader]
    with cluster.links.cut([(leader, one), (leader, another)]):  # it hears them, and they don't hear it
        assert cluster.leader(other_than=leader) in (one, another)
        # The old one may still take a write, lose its leadership, and say that the write is unknown.
        wait_until("a write is acknowledged", lambda: client.apply(put("key", b"after"), 10) is not None)
        wait_until("it stepped down", lambda: cluster.status(leader).role != "leader")
        print("gave way")
    with cluster.links.cut([(OUTSIDE, another), (another, OUTSIDE)]):
        assert decode_value(client.read(get("key"), timeout_seconds=30)) == b"after"
    cluster.wait_until_even()
    print("even")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_leader_whose_packets_are_lost_gives_way(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(f"there can be no network namespaces here: {reason}")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", STORY, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "gave way\neven\n"), done.stderr


@pytest.mark.skipif(inside_own_namespace(), reason="this process has a network of its own")
def test_a_network_that_is_shared_is_left_alone() -> None:
    with pytest.raises(NamespacesUnavailable, match="shares its network"):
        Namespaces(["n1"], "outside")
