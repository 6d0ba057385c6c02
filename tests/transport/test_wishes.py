"""Wishes of callers for the leader, over the wire: what is asked is what arrives, and what is wrong is refused."""

from __future__ import annotations

import grpc
import pytest
from transport_harness import MEMBERS, Peer, wait_until

from geraft.core.membership import (
    AddServer,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.errors import CatchUpFailed, GeraftError, MembershipPending, MembershipRefused, NotLeader, OutcomeUnknown
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import finish, monotonic
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.transport import failures, transport
from geraft.transport.wishes import encode_wish

CHANGES = [
    AddServer(id="n4", address="127.0.0.1:4"),
    AddServer(id="n4", address="[::1]:4", store_id="s4", learner=True),
    RemoveServer(id="n2"),
    PromoteServer(id="n2"),
    DemoteServer(id="n2"),
    ReplaceMembers(voters=(Member("n1", ""), Member("n4", "127.0.0.1:4")), learners=(Member("n5", "127.0.0.1:5"),)),
]


def forwarded(leader: Peer, follower: Peer, wish: Wish, timeout_seconds: float = 10.0) -> object:
    """What the leader answers to a wish that the follower hands on."""
    follower.transport.set_peers({leader.node_id: leader.address})
    follower.transport.forward_wish(leader.node_id, wish)
    return wish.result(timeout_seconds, lambda: AssertionError("no answer"))


def ask(peer: Peer, method: str, record: object) -> bytes:
    """Raises the error that the peer answers."""
    with grpc.insecure_channel(peer.address) as channel:
        try:
            call = channel.unary_unary(f"/geraft.Raft/{method}")
            return bytes(call(record.SerializeToString(), timeout=10))  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            raise failures.error_from_rpc(error, peer.address) from None


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_a_change_arrives_as_it_was_asked_and_the_members_come_back(change: MembershipChange) -> None:
    with Peer("n1") as leader, Peer("n2") as follower:
        assert forwarded(leader, follower, Change(change, monotonic() + 60)) == MEMBERS
        (wish,) = leader.wishes
        assert isinstance(wish, Change)
        assert (wish.change, wish.forwarded) == (change, True)
        assert 50 < wish.deadline - monotonic() <= 60


def test_so_does_a_transfer() -> None:
    with Peer("n1") as leader, Peer("n2") as follower:
        assert forwarded(leader, follower, Transfer("n2", monotonic() + 60, forwarded=False)) is None
        (wish,) = leader.wishes
        assert isinstance(wish, Transfer)
        assert (wish.target, wish.forwarded) == ("n2", True)


@pytest.mark.parametrize("kind", [MembershipRefused, MembershipPending, CatchUpFailed, OutcomeUnknown])
def test_the_leaders_reason_comes_back(kind: type[GeraftError]) -> None:
    with Peer("n1") as leader, Peer("n2") as follower:
        leader.call_error = kind("the reason")
        with pytest.raises(kind, match="the reason"):
            forwarded(leader, follower, Change(CHANGES[0], monotonic() + 60))


def test_who_leads_no_more_gives_it_back_to_wait_for_the_next() -> None:
    with Peer("n1") as leader, Peer("n2") as follower:
        leader.call_error = NotLeader("ask n3")
        wish = Change(CHANGES[0], monotonic() + 60)
        with pytest.raises(AssertionError, match="no answer"):
            forwarded(leader, follower, wish, 1.0)
        wait_until(lambda: follower.wishes_resubmitted == [wish])


def test_an_answer_that_is_under_way_outlives_the_membership_of_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is removed by the very wish that it answers."""
    monkeypatch.setattr(transport, "GONE_SECONDS", 30.0)  # what we do meanwhile may take a busy machine long
    with Peer("n1") as leader, Peer("n2") as follower:
        leader.answer_calls = False
        wish = Change(RemoveServer(id="n1"), monotonic() + 60)
        follower.transport.set_peers({"n1": leader.address})
        follower.transport.forward_wish("n1", wish)
        while not leader.wishes:
            assert not wish.wait(0.01)
        follower.transport.set_peers({})
        assert not wish.wait(0.3)
        finish(leader.wishes, [MEMBERS])
        assert wish.result(20, lambda: AssertionError("no answer")) == MEMBERS


@pytest.mark.parametrize(
    ("method", "record"),
    [
        ("AddServer", pb.AddServerReq(address="127.0.0.1:4")),
        ("AddServer", pb.AddServerReq(id="n 4", address="127.0.0.1:4")),
        ("AddServer", pb.AddServerReq(id="n4", address="nowhere")),
        ("AddServer", pb.AddServerReq(id="n4", address="127.0.0.1:0")),
        ("AddServer", pb.AddServerReq(id="n4", address="127.0.0.1:4", store_id="s" * 2000)),
        ("RemoveServer", pb.RemoveServerReq()),
        ("ChangeMembership", pb.ChangeMembershipReq()),
        ("ChangeMembership", pb.ChangeMembershipReq(promote="n2", demote="n3")),
        ("ChangeMembership", pb.ChangeMembershipReq(voters=[pb.Member(id="", address="127.0.0.1:4")])),
        ("ChangeMembership", pb.ChangeMembershipReq(voters=[pb.Member(id="n1", address="127.0.0.1")])),
        ("TransferLeadership", pb.TransferLeadershipReq(target="n" * 2000)),
    ],
)
def test_what_no_node_would_ask_is_refused(method: str, record: object) -> None:
    with Peer("n1") as peer:
        with pytest.raises(GeraftError):
            ask(peer, method, record)
        assert not peer.wishes
        assert ask(peer, "RequestClusterInfo", pb.ClusterInfoReq()), "it lives on"


def test_bytes_that_are_no_message_are_refused() -> None:
    class Garbage:
        def SerializeToString(self) -> bytes:
            return b"\xff\xff\xff"

    with Peer("n1") as peer:
        for method in ("AddServer", "RemoveServer", "ChangeMembership", "TransferLeadership"):
            with pytest.raises(GeraftError):
                ask(peer, method, Garbage())


def test_a_server_of_another_cluster_is_not_let_in() -> None:
    with Peer("n1") as peer:
        wish = Change(CHANGES[1], monotonic() + 5)
        with pytest.raises(MembershipRefused, match="holds the state of cluster other"):
            ask(peer, *encode_wish(wish, forwarded=False, cluster_id="other"))
        assert ask(peer, *encode_wish(wish, forwarded=False, cluster_id=peer.cluster_id))
