"""Who may join a running cluster, and who is told why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_parts import Journal, wait_until

from geraft import Config, MemoryStorage, RaftNode, RaftStorage, SqliteStorage
from geraft.errors import ConfigError, JoinRefused, MembershipRefused
from geraft.testing.cluster import free_addresses

BRISK = Config(heartbeat_interval_seconds=0.05, election_timeout_seconds=0.5, acceptable_pause_seconds=2.0)


def node(id: str, storage: RaftStorage | None = None, **arguments: object) -> RaftNode:
    arguments = {"config": BRISK, "listen": f"127.0.0.1:{free_addresses(1)[0].rpartition(':')[2]}", **arguments}
    return RaftNode(Journal(), storage or MemoryStorage(), id=id, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def founder() -> Iterator[RaftNode]:
    (address,) = free_addresses(1)
    with node("n1", listen=address, bootstrap={"n1": address}) as founder:
        founder.wait_for_leader()
        yield founder


def voters(founder: RaftNode) -> set[str]:
    """Once no change is under way."""
    wait_until(lambda: not founder.status().membership_change)
    info = founder.cluster_info()
    return {member.id for member in info.members} - {member.id for member in info.learners}


def test_a_node_joins_by_itself_and_goes_on_after_a_restart(founder: RaftNode, tmp_path: Path) -> None:
    founder.apply(b"before")
    with node("n2", SqliteStorage(tmp_path / "log.db"), join=[founder.address]) as joined:
        wait_until(lambda: voters(founder) == {"n1", "n2"})
        address, cluster_id = joined.address, joined.status().cluster_id
        assert cluster_id == founder.status().cluster_id
    for join in ([founder.address], ["127.0.0.1:1"], None):  # on later starts it does not matter
        with node("n2", SqliteStorage(tmp_path / "log.db"), listen=address, join=join) as joined:
            wait_until(lambda joined=joined: joined.read(b"", "stale") == b"1")
            wait_until(lambda joined=joined: joined.status().membership == "voter")


def test_a_learner_stays_one_and_does_not_count(founder: RaftNode) -> None:
    with node("n2", join=[founder.address], learner=True) as learner:
        wait_until(lambda: learner.status().membership == "learner")
        assert voters(founder) == {"n1"}
    founder.apply(b"without it")
    assert voters(founder) == {"n1"}


def test_an_id_that_another_store_has_is_taken(founder: RaftNode) -> None:
    with node("n2", join=[founder.address], learner=True):
        with pytest.raises(JoinRefused, match="the id 'n2' is taken by another store"):
            node("n2", join=[founder.address]).start(5)
        with pytest.raises(JoinRefused, match="the id 'n1' is taken by another store"):
            node("n1", join=[founder.address]).start(5)


def test_an_address_that_another_has_is_taken(founder: RaftNode) -> None:
    with pytest.raises(JoinRefused, match=f"{founder.address} is the address of 'n1'"):
        node("n2", join=[founder.address], advertise=founder.address).start(5)
    assert voters(founder) == {"n1"}


def test_foreign_and_old_state_are_refused(founder: RaftNode) -> None:
    storage = MemoryStorage()
    (address,) = free_addresses(1)
    with node("n2", storage, listen=address, bootstrap={"n2": address}) as other:
        other.wait_for_leader()
        with pytest.raises(JoinRefused, match="different clusters"):
            node("n3", join=[founder.address, other.address]).start(5)
        with node("n5", storage := MemoryStorage(), join=[other.address], learner=True):
            pass
    with pytest.raises(JoinRefused, match="holds the state of cluster"):
        node("n5", storage, join=[founder.address]).start(5)
    old = MemoryStorage()
    with node("n4", old, join=[founder.address]) as n4:
        wait_until(lambda: voters(founder) == {"n1", "n4"})
        founder.remove_server("n4")
        wait_until(lambda: n4.status().membership == "removed")
    with pytest.raises(JoinRefused, match="old state of cluster"):
        node("n4", old, join=[founder.address]).start(5)
    assert voters(founder) == {"n1"}


def test_without_a_seed_that_answers_the_start_says_so() -> None:
    with pytest.raises(JoinRefused, match=r"no seed of 127\.0\.0\.1:9 tells of a cluster"):
        node("n2", join=["127.0.0.1:9"]).start(4.0)


def test_a_leader_that_does_not_reach_the_node_lets_it_know(founder: RaftNode) -> None:
    """Its own address is wrong: it is a learner that nobody waits for."""
    with pytest.raises(JoinRefused, match=r"does not reach it at 127\.0\.0\.1:9"):
        node("n2", join=[founder.address], advertise="127.0.0.1:9").start(6.0)
    founder.apply(b"unharmed")
    founder.remove_server("n2")


def test_what_does_not_go_together_is_refused_at_once() -> None:
    for arguments, sentence in (
        ({"join": []}, "join is empty"),
        ({"join": ["nowhere"]}, "join address must be host:port"),
        ({"join": ["127.0.0.1:1"], "bootstrap": {"n2": "127.0.0.1:1"}}, "pass one of them"),
        ({"join": ["127.0.0.1:1"], "listen": "0.0.0.0:7001"}, "pass advertise"),
        ({"join": ["127.0.0.1:1"], "listen": ""}, "pass advertise"),
        ({"advertise": "x"}, "advertise must be host:port"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            node("n2", **arguments)


def test_wrong_names_and_addresses_are_refused_before_anybody_is_asked(founder: RaftNode) -> None:
    for call in (
        lambda: founder.add_server("", "127.0.0.1:1"),
        lambda: founder.add_server("n2", "nowhere"),
        lambda: founder.remove_server("a b"),
        lambda: founder.change_membership(voters={"n1": "nowhere"}),
        lambda: founder.promote("n2", timeout_seconds=-1),
    ):
        with pytest.raises(ConfigError):
            call()
    for refused, sentence in (
        (lambda: founder.promote("n2"), "no member is called 'n2'"),
        (lambda: founder.demote("n1"), "without a voter"),
        (lambda: founder.change_membership(voters=["n2"]), "name its address"),
    ):
        with pytest.raises(MembershipRefused, match=sentence):
            refused()


def test_a_joint_change_of_all_voters(founder: RaftNode) -> None:
    """n1 brings two others in, and leaves itself, in one call."""
    with node("n2", join=[founder.address], learner=True) as n2, node("n3", join=[founder.address], learner=True) as n3:
        founder.apply(b"by n1")
        founder.change_membership(voters=["n2", "n3"])
        wait_until(lambda: founder.status().membership == "removed")
        wait_until(lambda: n2.status().leader_id in ("n2", "n3"))
        n3.apply(b"by the others", timeout_seconds=20)
        assert voters(n2) == {"n2", "n3"}
