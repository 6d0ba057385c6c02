"""Settings change while a node runs: all of what was asked or nothing, between two steps of the core."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
from runtime_parts import QUICK, Journal, lone_node, wait_until
from test_runtime_rules import Servers

from geraft import Config, MemoryStorage, RaftNode
from geraft.client import Client
from geraft.errors import CommandTooLarge, ConfigError, NodeStopped, Unreachable
from geraft.runtime.supervisor import core_settings


@pytest.fixture
def node() -> Iterator[RaftNode]:
    with lone_node() as node:
        node.wait_for_leader(30)
        yield node


def test_a_tuned_setting_is_in_force_when_the_call_returns(node: RaftNode) -> None:
    before = node.config
    after = node.tune(
        heartbeat_interval_seconds=0.04, storage_stall_seconds=7, apply_retry_seconds=0.5, phi_threshold=9
    )
    assert (after, before) == (node.config, QUICK)
    supervisor = node._supervisor
    assert supervisor._raft.settings == core_settings(after)
    assert supervisor._raft.detector.threshold == 9
    assert (supervisor._ticker.interval_seconds, supervisor._ticker.stall_seconds) == (0.01, 7)
    assert supervisor._applier.retry_seconds == 0.5


def test_a_wrong_value_is_refused_and_nothing_is_changed(node: RaftNode) -> None:
    with pytest.raises(ConfigError, match="at least four times"):
        node.tune(phi_threshold=11, election_timeout_seconds=0.1)
    with pytest.raises(ConfigError, match="no setting 'colour'"):
        node.tune(phi_threshold=11, colour=1)
    with pytest.raises(ConfigError, match="read when a node starts"):
        node.tune(message_bytes_max=2**30)
    assert node.config == QUICK
    assert node._supervisor._raft.settings == core_settings(QUICK)


def test_bounds_bite_at_once(node: RaftNode) -> None:
    node.tune(command_bytes_max=10)
    with pytest.raises(CommandTooLarge, match="command_bytes_max=10"):
        node.apply(b"x" * 11)
    assert node.apply(b"x" * 10)


def test_callers_who_tune_at_once_do_not_undo_each_other(node: RaftNode) -> None:
    names = ["phi_threshold", "acceptable_pause_seconds", "apply_retry_max_seconds", "stop_timeout_seconds"]

    def tune(name: str) -> None:
        for value in range(1, 51):
            node.tune(**{name: float(value)}, timeout_seconds=20)

    threads = [threading.Thread(target=tune, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: getattr(node.config, name) for name in names} == dict.fromkeys(names, 50.0)


def test_a_node_that_does_not_run_is_not_tuned() -> None:
    node = RaftNode(Journal(), MemoryStorage(), id="n1", listen="127.0.0.1:0", bootstrap={"n1": "127.0.0.1:0"})
    with pytest.raises(NodeStopped, match="call start"):
        node.tune(phi_threshold=9)


def test_a_cluster_is_tuned_node_by_node_under_load_without_an_election() -> None:
    """Both cluster-wide settings grow fourfold and come back, followers and leader in the order of `config set`."""
    servers = Servers(3)
    try:
        for node in servers.nodes:
            node.start()
        number = servers.leader()
        leader, followers = servers.nodes[number], [node for node in servers.nodes if node is not servers.nodes[number]]
        leader.apply(b"x", timeout_seconds=20)
        term = leader.status().term
        for factor, order in ((4, [*followers, leader]), (1, [leader, *followers])):
            for node in order:
                node.tune(
                    heartbeat_interval_seconds=factor * QUICK.heartbeat_interval_seconds,
                    election_timeout_seconds=factor * QUICK.election_timeout_seconds,
                )
                for _ in range(20):
                    leader.apply(b"x", timeout_seconds=20)
                    leader.read(b"", "lease", timeout_seconds=20)
        assert (leader.status().role, leader.status().term) == ("leader", term)
        wait_until(lambda: len({len(app.applied) for app in servers.apps}) == 1)
    finally:
        servers.close()


def test_settings_are_read_and_changed_over_the_wire(node: RaftNode) -> None:
    with Client(node.address) as client:
        settings = {setting.name: setting for setting in client.get_config(node.address)}
        assert settings.keys() == {field.name for field in dataclasses.fields(Config)}
        assert all(setting.value == getattr(QUICK, name) for name, setting in settings.items())
        assert settings["election_timeout_seconds"].cluster and not settings["read_threads"].tunable
        changed = client.tune_config({"phi_threshold": 9.5, "append_bytes_max": 2**19}, node.address)
        assert {setting.name: setting.value for setting in changed}["phi_threshold"] == 9.5
        assert (node.config.phi_threshold, node.config.append_bytes_max) == (9.5, 2**19)
        for wrong in ({"phi_threshold": float("nan")}, {"": 1.0}, {"append_bytes_max": 0.5}, {"read_threads": 2}):
            with pytest.raises(ConfigError):
                client.tune_config({"acceptable_pause_seconds": 3, **wrong}, node.address)
        assert node.config.acceptable_pause_seconds == QUICK.acceptable_pause_seconds
    with Client("127.0.0.1:1") as client, pytest.raises(Unreachable):  # nobody listens: it was certainly not tuned
        client.tune_config({"phi_threshold": 9}, "127.0.0.1:1", timeout_seconds=20)
