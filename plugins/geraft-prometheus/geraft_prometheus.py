"""Metrics of the geraft nodes of this process: gauges from status() when they are asked for, counters from signals.

GERAFT_PROMETHEUS_PORT: serve /metrics on that port too, on GERAFT_PROMETHEUS_ADDRESS (127.0.0.1).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from geraft import RaftNode, signals
from geraft.errors import GeraftError

ROLES = ("follower", "pre_candidate", "candidate", "leader")
LABELS = ("cluster", "node")

COUNTERS = {
    "geraft_elections": "Elections that the node stood in.",
    "geraft_leader_changes": "Times that the node learned of another leader.",
    "geraft_committed_entries": "Entries that the node learned to be committed.",
    "geraft_apply_failures": "Exceptions of process_write.",
}


class _Counts:
    """What was counted of one node."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.snapshots: dict[str, int] = {}


class Exporter(Collector):
    """Watches every node of the process, from connect() on; what it knows of a node goes with the node."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._nodes: weakref.WeakKeyDictionary[RaftNode, _Counts] = weakref.WeakKeyDictionary()
        self._receivers: dict[str, Any] = {  # kept here: blinker holds receivers weakly
            "node_started": self._started,
            "role_changed": self._role_changed,
            "leader_changed": self._leader_changed,
            "committed": self._committed,
            "apply_failed": self._apply_failed,
        }
        for name in signals.__all__:
            if name.startswith("snapshot_"):
                self._receivers[name] = self._snapshot_receiver(name.removeprefix("snapshot_"))

    def connect(self) -> None:
        """Listen to the nodes, and be asked by the registry."""
        for name, receiver in self._receivers.items():
            getattr(signals, name).connect(receiver)
        self._registry.register(self)

    def disconnect(self) -> None:
        self._registry.unregister(self)
        for name, receiver in self._receivers.items():
            getattr(signals, name).disconnect(receiver)

    # Signals

    def _started(self, node: RaftNode, **_: Any) -> None:
        self._count(node, "geraft_elections", 0)

    def _role_changed(self, node: RaftNode, *, new_role: str, **_: Any) -> None:
        self._count(node, "geraft_elections", int(new_role == "candidate"))

    def _leader_changed(self, node: RaftNode, *, leader_id: str, **_: Any) -> None:
        self._count(node, "geraft_leader_changes", int(bool(leader_id)))

    def _committed(self, node: RaftNode, *, first_index: int, last_index: int, **_: Any) -> None:
        self._count(node, "geraft_committed_entries", last_index - first_index + 1)

    def _apply_failed(self, node: RaftNode, **_: Any) -> None:
        self._count(node, "geraft_apply_failures", 1)

    def _snapshot_receiver(self, event: str) -> Any:
        def count(node: RaftNode, **_: Any) -> None:
            with self._lock:
                snapshots = self._nodes.setdefault(node, _Counts()).snapshots
                snapshots[event] = snapshots.get(event, 0) + 1

        return count

    def _count(self, node: RaftNode, name: str, more: int) -> None:
        with self._lock:
            self._nodes.setdefault(node, _Counts()).counters[name] += more

    # What the registry asks

    def describe(self) -> list[Metric]:
        return []  # the names depend on nothing, but status() must not be asked while no node runs

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "geraft_role": GaugeMetricFamily("geraft_role", "1 for the present role.", labels=[*LABELS, "role"]),
            "geraft_term": GaugeMetricFamily("geraft_term", "Current term.", labels=LABELS),
            "geraft_commit_index": GaugeMetricFamily("geraft_commit_index", "Last committed entry.", labels=LABELS),
            "geraft_last_applied_index": GaugeMetricFamily(
                "geraft_last_applied_index", "Last entry that the app was given.", labels=LABELS
            ),
            "geraft_last_log_index": GaugeMetricFamily("geraft_last_log_index", "End of the log.", labels=LABELS),
            "geraft_snapshot_index": GaugeMetricFamily(
                "geraft_snapshot_index", "Last entry of the newest snapshot.", labels=LABELS
            ),
            "geraft_leader_known": GaugeMetricFamily(
                "geraft_leader_known", "Whether it knows a leader.", labels=LABELS
            ),
            "geraft_app_failing": GaugeMetricFamily(
                "geraft_app_failing", "Whether process_write keeps raising or hangs.", labels=LABELS
            ),
            "geraft_peer_lag_entries": GaugeMetricFamily(
                "geraft_peer_lag_entries",
                "Entries of the leader's log that the peer is not known to hold.",
                labels=[*LABELS, "peer"],
            ),
            "geraft_peer_connected": GaugeMetricFamily(
                "geraft_peer_connected", "Whether the leader's stream to the peer is up.", labels=[*LABELS, "peer"]
            ),
            "geraft_peer_silent_seconds": GaugeMetricFamily(
                "geraft_peer_silent_seconds", "Since the peer was last heard.", labels=[*LABELS, "peer"]
            ),
        }
        counters = {name: CounterMetricFamily(name, text, labels=LABELS) for name, text in COUNTERS.items()}
        snapshots = CounterMetricFamily("geraft_snapshots", "Snapshots, by what happened.", labels=[*LABELS, "event"])
        with self._lock:
            nodes = [(node, dict(counts.counters), dict(counts.snapshots)) for node, counts in self._nodes.items()]
        for node, counted, snapshot_events in nodes:
            try:
                status = node.status()
            except GeraftError:
                continue  # it is stopped
            labels = [status.cluster_id, status.id]
            for role in ROLES:
                gauges["geraft_role"].add_metric([*labels, role], float(status.role == role))
            gauges["geraft_term"].add_metric(labels, status.term)
            gauges["geraft_commit_index"].add_metric(labels, status.commit_index)
            gauges["geraft_last_applied_index"].add_metric(labels, status.last_applied)
            gauges["geraft_last_log_index"].add_metric(labels, status.last_log_index)
            gauges["geraft_snapshot_index"].add_metric(labels, status.snapshot_index)
            gauges["geraft_leader_known"].add_metric(labels, float(bool(status.leader_id)))
            gauges["geraft_app_failing"].add_metric(labels, float(bool(status.apply_error)))
            for peer in status.peers:
                if status.role == "leader":
                    lag = max(status.last_log_index - peer.match_index, 0)
                    gauges["geraft_peer_lag_entries"].add_metric([*labels, peer.id], lag)
                    gauges["geraft_peer_connected"].add_metric([*labels, peer.id], float(peer.connected))
                if peer.heard_seconds_ago is not None:
                    gauges["geraft_peer_silent_seconds"].add_metric([*labels, peer.id], peer.heard_seconds_ago)
            for name, count in counted.items():
                counters[name].add_metric(labels, count)
            for event, count in snapshot_events.items():
                snapshots.add_metric([*labels, event], count)
        yield from gauges.values()
        yield from counters.values()
        yield snapshots


_exporter: Exporter | None = None


def connect() -> None:
    """The plugin."""
    global _exporter
    if _exporter is None:
        _exporter = Exporter()
        _exporter.connect()
    port = os.environ.get("GERAFT_PROMETHEUS_PORT", "")
    if port:
        start_http_server(int(port), addr=os.environ.get("GERAFT_PROMETHEUS_ADDRESS", "127.0.0.1"))
