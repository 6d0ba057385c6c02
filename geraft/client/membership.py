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
    GeraftError,
    MembershipPending,
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
PENDING_SECONDS = 0.2
"""Pause before we ask again, if a change is under way that may be our own."""
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
        changes = isinstance(wish, Change)
        uncertain = False
        for attempt in count():
            address = ""
            method, record = encode_wish(wish, forwarded=False)
            kind = pb.MembershipRep if changes else pb.TransferLeadershipRep
            try:
                address = self._someone(attempt, wish.deadline)
                self._gateway.ask(
                    address, method, record, kind, wish.deadline + ANSWER_SECONDS, changes_something=changes
                )
            except MembershipRefused:
                if uncertain and self._is_out(wish):
                    return  # an earlier attempt did it
                raise
            except MembershipPending as error:
                if not uncertain:
                    raise
                self._pause_before(wish, PENDING_SECONDS, error, uncertain)  # the change may be ours
            except (NotLeader, NoLeader, NodeStopped, Unreachable, UnknownGroup, OutcomeUnknown) as error:
                uncertain = uncertain or (changes and isinstance(error, OutcomeUnknown))
                if address:
                    self._look_elsewhere(address, error)
                    self._pause_before(wish, _pause(attempt), error, uncertain)
                else:
                    raise _final(error, uncertain) from None
            else:
                return

    def _pause_before(self, wish: Wish, seconds: float, error: GeraftError, uncertain: bool) -> None:
        """Before the wish is repeated. Raises what it came to if there is no time for that."""
        if monotonic() + max(seconds, RETRY_SECONDS_MAX) >= wish.deadline:
            raise _final(error, uncertain) from None
        sleep(seconds)

    def _look_elsewhere(self, address: str, error: GeraftError) -> None:
        if isinstance(error, Unreachable | UnknownGroup):
            self._gateway.unreachable(address)
        self._gateway.not_leader(address, error.leader_address if isinstance(error, NotLeader) else "")
        self._gateway.check()  # a client that was closed meanwhile says so

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


def _final(error: GeraftError, uncertain: bool) -> GeraftError:
    """What the caller gets. uncertain: an attempt was not answered."""
    if not uncertain or isinstance(error, OutcomeUnknown):
        return error
    return OutcomeUnknown(f"an answer was lost, so it may still be done: look at the members; at last: {error}")


def _pause(attempt: int) -> float:
    """Before the repetition of attempt, which is counted from 0."""
    return doubled(RETRY_SECONDS, attempt - 1, RETRY_SECONDS_MAX) if attempt else 0.0


def _members(given: Mapping[str, str] | Iterable[str]) -> tuple[Member, ...]:
    named = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
    for address in filter(None, named.values()):
        addresses.split(address)
    return tuple(Member(id, named[id]) for id in sorted(named))
