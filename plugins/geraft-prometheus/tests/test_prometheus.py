"""Metrics of real nodes, as Prometheus would scrape them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

geraft_prometheus = pytest.importorskip("geraft_prometheus", reason="make .venv/dev installs it")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from geraft import Config, MemoryStorage, RaftNode  # noqa: E402
from geraft.kv import KeyValueApp, put  # noqa: E402
from geraft.simple import MemoryRepository, to_raft_app  # noqa: E402
from geraft.testing.cluster import free_addresses, wait_until  # noqa: E402

PATIENT = Config(
    heartbeat_interval_seconds=0.05,
    election_timeout_seconds=0.5,
    acceptable_pause_seconds=2.0,  # nobody is to campaign because a busy machine has let a thread stall
    apply_retry_seconds=0.02,
)


class Refusing(KeyValueApp):
    """Raises as long as `broken` is set."""

    broken = False

    def process_write(self, request: bytes, entry_index: int) -> bytes:
        if self.broken:
            raise OSError("the database is down")
        return super().process_write(request, entry_index)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def three(registry: CollectorRegistry) -> Iterator[dict[str, RaftNode]]:
    exporter = geraft_prometheus.Exporter(registry)
    exporter.connect()
    voters = dict(zip(["n1", "n2", "n3"], free_addresses(3), strict=True))
    nodes = {
        id: RaftNode(
            to_raft_app(Refusing(), MemoryRepository()), MemoryStorage(), id=id, bootstrap=voters, config=PATIENT
        )
        for id in voters
    }
    for node in nodes.values():
        node.start()
    yield nodes
    for node in nodes.values():
        node.stop(5.0)
    exporter.disconnect()


def scraper(registry: CollectorRegistry) -> Callable[..., float | None]:
    def value(name: str, **labels: str) -> float | None:
        """Of the one sample with that name and these labels, out of the text that a scrape gets; None for none."""
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    return value


def test_the_figures_are_those_of_the_nodes(registry: CollectorRegistry, three: dict[str, RaftNode]) -> None:
    leader = three[three["n1"].wait_for_leader(20)]
    for number in range(20):
        leader.apply(put(f"k{number}", b"v"), timeout_seconds=20)
    value = scraper(registry)
    wait_until("all hold it", lambda: len({node.status().last_applied for node in three.values()}) == 1)
    for id, node in three.items():
        wait_until("the figures are those of its status", partial(shows_status, value, node))
        assert value("geraft_role", node=id, role="leader") == float(node is leader)
        assert value("geraft_leader_known", node=id) == 1
        wait_until("commits are counted", lambda id=id: value("geraft_committed_entries_total", node=id) >= 21)
        assert value("geraft_leader_changes_total", node=id) >= 1
    assert value("geraft_elections_total", node=leader.id) >= 1
    other = next(id for id in three if id != leader.id)
    wait_until("no lag", lambda: value("geraft_peer_lag_entries", node=leader.id, peer=other) == 0)
    assert value("geraft_peer_connected", node=leader.id, peer=other) == 1
    assert value("geraft_peer_lag_entries", node=other, peer=leader.id) is None, "a follower does not know"


def shows_status(value: Callable[..., float | None], node: RaftNode) -> bool:
    """Asked again if it is not so: an entry may have been committed in between."""
    status = node.status()
    return (
        value("geraft_commit_index", node=node.id, cluster=status.cluster_id) == status.commit_index >= 21
        and value("geraft_last_applied_index", node=node.id) == status.last_applied
        and value("geraft_term", node=node.id) == status.term
    )


def test_an_app_that_fails_and_a_peer_that_lags_are_seen(
    registry: CollectorRegistry, three: dict[str, RaftNode]
) -> None:
    leader = three[three["n1"].wait_for_leader(20)]
    value = scraper(registry)
    gone, stays = (id for id in three if id != leader.id)
    three[gone].stop(5.0)
    assert value("geraft_term", node=gone) is None, "a node that stopped has no figures"
    assert leader.status().role == "leader"
    app = three[stays]._supervisor._app.app
    app.broken = True
    leader.apply(put("a", b"v"), timeout_seconds=20)
    wait_until("the failure is seen", lambda: value("geraft_app_failing", node=stays) == 1)
    wait_until("and counted", lambda: value("geraft_apply_failures_total", node=stays) >= 2)
    wait_until("the lag is seen", lambda: value("geraft_peer_lag_entries", node=leader.id, peer=gone) >= 1)
    app.broken = False
    wait_until("it recovers", lambda: value("geraft_app_failing", node=stays) == 0)


@pytest.mark.slow
def test_geraft_serve_has_a_port_for_them(tmp_path: Path) -> None:
    listen, metrics = free_addresses(2)
    environment = {**os.environ, "GERAFT_PROMETHEUS_PORT": metrics.rpartition(":")[2]}
    arguments = ["--id", "n1", "--data-dir", str(tmp_path), "--bootstrap", f"n1={listen}", "--until-stdin-closes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "geraft", "serve", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert process.stdout is not None and process.stdout.readline()
        deadline = time.monotonic() + 60
        while 'geraft_role{cluster="' not in (text := fetch(metrics)) or 'role="leader"} 1.0' not in text:
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait(20)


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
