"""What a client may ask of the leader: other members, another leader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING

from geraft.client.retry import doubled
from geraft.core.membership import (
    AddServer,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.errors import (
    MembershipRefused,
    NodeStopped,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    UnknownGroup,
    Unreachable,
)
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import monotonic
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.transport import addresses
from geraft.transport.grpc_mode import sleep
from geraft.transport.wishes import encode_wish

if TYPE_CHECKING:
    from geraft.client.gateway import Gateway
    from geraft.runtime.status import ClusterInfo

RETRY_SECONDS = 0.02
RETRY_SECONDS_MAX = 0.1
"""Pauses before the second repetition and later ones: from, doubling, to. The first one asks around at once."""
ANSWER_SECONDS = 0.1
"""How much longer than a wish may take we wait for the server's answer, which knows the reason."""
CHANGE_SECONDS = 30.0
"""What a change of the membership may take if nobody says otherwise."""


class MembershipCalls(ABC):
    """The part of Client that changes the cluster. Any server is asked; it passes the wish on to the leader, once.

    A wish whose answer was lost is repeated: what is done already is answered as done.
    """

    _gateway: Gateway

    def add_server(
        self, id: str, address: str, *, learner: bool = False, timeout_seconds: float = CHANGE_SECONDS
    ) -> None:
        """Let a server into the cluster; blocks until it is a voter, or a learner if `learner`.

        As RaftNode.add_server, also in what it raises; and Unreachable if no server answers.
        """
        addresses.split(address)
        self._change(AddServer(id=id, address=address, learner=learner), timeout_seconds)

    def remove_server(self, id: str, *, timeout_seconds: float = CHANGE_SECONDS) -> None:
        """Take a member out; blocks until that is committed. As RaftNode.remove_server."""
        self._change(RemoveServer(id=id), timeout_seconds)

    def promote(self, id: str, *, timeout_seconds: float = CHANGE_SECONDS) -> None:
        """Make a learner a voter once it has caught up; blocks until then. As RaftNode.promote."""
        self._change(PromoteServer(id=id), timeout_seconds)

    def demote(self, id: str, *, timeout_seconds: float = CHANGE_SECONDS) -> None:
        """Make a voter a learner; blocks until it is committed. As RaftNode.demote."""
        self._change(DemoteServer(id=id), timeout_seconds)

    def change_membership(
        self,
        *,
        voters: Mapping[str, str] | Iterable[str],
        learners: Mapping[str, str] | Iterable[str] = (),
        timeout_seconds: float = CHANGE_SECONDS,
    ) -> None:
        """Make these the members, and no others; blocks until it is so. As RaftNode.change_membership."""
        change = ReplaceMembers(voters=_members(voters), learners=_members(learners))
        self._change(change, timeout_seconds)

    def transfer_leadership(self, target: str = "", *, timeout_seconds: float = 5.0) -> None:
        """Let the leader hand over to the voter `target`, by default the one that holds most of the log.

        Blocks until another term began. Raises TransferFailed, NoLeader, Unreachable.
        """
        self._fulfil(Transfer(target, monotonic() + timeout_seconds, forwarded=False))

    def _change(self, change: MembershipChange, timeout_seconds: float) -> None:
        self._fulfil(Change(change, monotonic() + timeout_seconds))

    def _fulfil(self, wish: Wish) -> None:
        gateway = self._gateway
        uncertain = False
        for attempt in count():
            address = self._someone(attempt, wish.deadline)
            method, record = encode_wish(wish, forwarded=False)
            kind = pb.TransferLeadershipRep if isinstance(wish, Transfer) else pb.MembershipRep
            try:
                gateway.ask(address, method, record, kind, wish.deadline + ANSWER_SECONDS)
            except (NotLeader, NoLeader, NodeStopped, Unreachable, UnknownGroup, OutcomeUnknown) as error:
                if isinstance(error, Unreachable | UnknownGroup):
                    gateway.unreachable(address)
                gateway.not_leader(address, error.leader_address if isinstance(error, NotLeader) else "")
                gateway.check()  # a client that was closed meanwhile says so
                uncertain = uncertain or isinstance(error, Unreachable | OutcomeUnknown)
                if monotonic() + RETRY_SECONDS_MAX >= wish.deadline:
                    raise
                sleep(_pause(attempt))
            except MembershipRefused:
                if uncertain and self._is_out(wish):
                    return  # an earlier attempt did it
                raise
            else:
                return

    def _someone(self, attempt: int, deadline: float) -> str:
        """The leader if it is known, else another server at each attempt: one that was removed answers too."""
        gateway = self._gateway
        if gateway.leader:
            return gateway.leader
        probe = gateway.probe(deadline)
        answering = list(probe.answers)
        if not answering:
            raise probe.nobody()
        return gateway.leader or answering[attempt % len(answering)]

    def _is_out(self, wish: Wish) -> bool:
        if not isinstance(wish, Change) or not isinstance(wish.change, RemoveServer):
            return False
        return all(member.id != wish.change.id for member in self.cluster_info().members)

    @abstractmethod
    def cluster_info(self, timeout_seconds: float | None = None) -> ClusterInfo:
        """Who leads and who is a member, as far as the server knows that answers first."""


def _pause(attempt: int) -> float:
    """Before the repetition of attempt, which is counted from 0."""
    return doubled(RETRY_SECONDS, attempt - 1, RETRY_SECONDS_MAX) if attempt else 0.0


def _members(given: Mapping[str, str] | Iterable[str]) -> tuple[Member, ...]:
    named = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
    for address in filter(None, named.values()):
        addresses.split(address)
    return tuple(Member(id, named[id]) for id in sorted(named))
