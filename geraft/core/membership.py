"""Who is in the cluster, and who votes.

Source: Raft dissertation 4.1 (the latest configuration in the log is in force, committed or not), 4.2.1 (learners),
4.3 (joint consensus).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple


class Refusal(IntEnum):
    """Why a message was not considered at all."""

    FOREIGN_CLUSTER = 1
    WRONG_RECEIVER = 2
    STORE_REPLACED = 3


class Member(NamedTuple):
    """One server of a cluster.

    id: the name that never changes. address: "host:port" under which others reach it.
    store_id: the identity of the store that holds its log and vote, "" as long as nobody has heard it. A server that
    answers under this id from another store has lost what it promised, and is refused (Raft dissertation 3.8).
    """

    id: str
    address: str
    store_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The members of a cluster, each tuple sorted by id.

    outgoing: the voters of the old configuration while a joint one is in force, else empty; both majorities count.
    """

    voters: tuple[Member, ...]
    learners: tuple[Member, ...] = ()
    outgoing: tuple[Member, ...] = ()

    @cached_property
    def members(self) -> dict[str, Member]:
        """Everyone who gets the log, by id."""
        return {member.id: member for group in (self.outgoing, self.learners, self.voters) for member in group}

    @cached_property
    def voter_ids(self) -> frozenset[str]:
        """Everyone whose vote is asked for."""
        return frozenset(member.id for group in (self.outgoing, self.voters) for member in group)

    @cached_property
    def incoming_ids(self) -> frozenset[str]:
        """The voters that stay once a joint configuration is left; without one, all of them."""
        return frozenset(member.id for member in self.voters)

    @cached_property
    def quorum_groups(self) -> tuple[frozenset[str], ...]:
        """The sets of voters of each of which a majority must agree: one, or two while joint (4.3)."""
        groups = (self.voters, self.outgoing) if self.outgoing else (self.voters,)
        return tuple(frozenset(member.id for member in group) for group in groups)

    def with_store_ids(self, store_ids: Mapping[str, str]) -> Configuration:
        """The same members, with the identities of those stores filled in that were not known so far."""

        def filled(group: tuple[Member, ...]) -> tuple[Member, ...]:
            return tuple(
                member if member.store_id else member._replace(store_id=store_ids.get(member.id, ""))
                for member in group
            )

        return Configuration(voters=filled(self.voters), learners=filled(self.learners), outgoing=filled(self.outgoing))


NO_MEMBERS = Configuration(voters=())
"""The configuration of a server that has not heard of any."""


def refusal_of(
    configuration: Configuration, store_ids: Mapping[str, str], sender: str, sender_store: str
) -> Refusal | None:
    """Why messages of this sender are not considered at all; None if they are.

    store_ids: the store each member was first heard from, for those whose store the configuration does not name yet.
    One that our configuration does not name is heard: it may be a later one that we lack, and the sender's vote, or
    ours for it, may be needed to go on (Raft dissertation 4.1; FLAWS R5). Pre-vote and the silence that we keep while
    a leader lives see to it that one who was removed disturbs nobody (4.2.3).
    """
    member = configuration.members.get(sender)
    known_store = (member.store_id if member is not None else "") or store_ids.get(sender, "")
    if known_store and known_store != sender_store:
        return Refusal.STORE_REPLACED
    return None


def initial_configuration(voters: Mapping[str, str]) -> Configuration:
    """The configuration a cluster starts from. voters: address by id."""
    return Configuration(voters=tuple(Member(id, voters[id]) for id in sorted(voters)))


def initial_cluster_id(voters: Mapping[str, str], name: str = "") -> str:
    """The id of the cluster that starts from these voters: equal on every server that was given the same list.

    So the servers of one bootstrap find each other without talking first, and those of two never mix (FLAWS S12).
    """
    digest = hashlib.sha256(name.encode())
    for id in sorted(voters):
        digest.update(f"\0{id}\0{voters[id]}".encode())
    return digest.hexdigest()[:16]


# What may be asked of the leader --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AddServer:
    """Let a server in: as a learner, which it stays if `learner`; else a voter once it has caught up.

    store_id: of its store, if it asks for itself. A member that asks under another address only moves there.
    """

    id: str
    address: str
    store_id: str = ""
    learner: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveServer:
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteServer:
    """A learner becomes a voter once it has caught up."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoteServer:
    """A voter becomes a learner."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceMembers:
    """These and no others. A member with an empty address keeps the one it has."""

    voters: tuple[Member, ...]
    learners: tuple[Member, ...] = ()


MembershipChange = AddServer | RemoveServer | PromoteServer | DemoteServer | ReplaceMembers


class ChangeRefused(Exception):
    """The change can't be made as it stands; the message says why and what to do."""


def changed(configuration: Configuration, change: MembershipChange) -> Configuration:
    """The members as they will be once all of the change is done; those as they are if there is nothing to do.

    configuration: not a joint one. Raises ChangeRefused.
    """
    voters = {member.id: member for member in configuration.voters}
    learners = {member.id: member for member in configuration.learners}
    match change:
        case AddServer():
            known = configuration.members.get(change.id)
            if known is None:
                _refuse_taken_address(configuration, change.id, change.address)
                member = Member(change.id, change.address, change.store_id)
                (learners if change.learner else voters)[change.id] = member
            else:
                member = _same_server(configuration, known, change)
                if not change.learner:
                    learners.pop(change.id, None)
                    voters[change.id] = member
                else:
                    (voters if change.id in voters else learners)[change.id] = member
        case RemoveServer():
            _require_member(configuration, change.id)
            voters.pop(change.id, None)
            learners.pop(change.id, None)
        case PromoteServer():
            voters[change.id] = _require_member(configuration, change.id)
            learners.pop(change.id, None)
        case DemoteServer():
            learners[change.id] = _require_member(configuration, change.id)
            voters.pop(change.id, None)
        case ReplaceMembers():
            voters = {member.id: _kept(configuration, member) for member in change.voters}
            learners = {member.id: _kept(configuration, member) for member in change.learners}
            twice = sorted(voters.keys() & learners.keys())
            if twice:
                raise ChangeRefused(f"{', '.join(twice)} can't be a voter and a learner at once: name it in one list")
    if not voters:
        raise ChangeRefused("this would leave the cluster without a voter: add or promote another server first")
    return configuration_of(voters.values(), learners.values())


def configuration_of(voters: Iterable[Member], learners: Iterable[Member] = ()) -> Configuration:
    return Configuration(voters=tuple(sorted(voters)), learners=tuple(sorted(learners)))


def _require_member(configuration: Configuration, id: str) -> Member:
    member = configuration.members.get(id)
    if member is None:
        raise ChangeRefused(f"no member is called {id!r}: the members are {', '.join(sorted(configuration.members))}")
    return member


def _same_server(configuration: Configuration, known: Member, change: AddServer) -> Member:
    """The member as it is, or moved to the address that it asks for itself."""
    if change.store_id and known.store_id and change.store_id != known.store_id:
        raise ChangeRefused(
            f"the id {known.id!r} is taken by another store, the server at {known.address}: add this server under"
            f" another id, or remove {known.id!r} first if its store is lost"
        )
    if change.address in ("", known.address):
        return known
    if not change.store_id:
        raise ChangeRefused(
            f"{known.id!r} is a member already, at {known.address}: start it where it now is and it will tell its"
            " address itself, or remove it first if this is another server"
        )
    _refuse_taken_address(configuration, known.id, change.address)
    return known._replace(address=change.address, store_id=change.store_id)


def _refuse_taken_address(configuration: Configuration, id: str, address: str) -> None:
    for member in configuration.members.values():
        if member.address == address and member.id != id:
            raise ChangeRefused(f"{address} is the address of {member.id!r}: give {id!r} one of its own")


def _kept(configuration: Configuration, wanted: Member) -> Member:
    known = configuration.members.get(wanted.id)
    if known is None:
        if not wanted.address:
            raise ChangeRefused(f"{wanted.id!r} is no member yet: name its address too")
        return wanted
    if wanted.address not in ("", known.address):
        raise ChangeRefused(
            f"{known.id!r} is a member already, at {known.address}: start it where it now is and it will tell its"
            " address itself"
        )
    return known


def next_step(now: Configuration, target: Configuration, caught_up: Collection[str]) -> Configuration | None:
    """The configuration to go to next on the way from `now` to `target`; None while voters-to-be must catch up first.

    Equal to `now` once there is nothing left to do. Newcomers come in as learners (Raft dissertation 4.2.1). Then
    voters change: one at a time, as any two majorities then meet (4.1), or several at once through a joint
    configuration, which is left as soon as it is committed (4.3).
    """
    if now.outgoing:
        return Configuration(voters=now.voters, learners=now.learners)
    target = target.with_store_ids({member.id: member.store_id for member in now.members.values()})
    newcomers = [member for id, member in sorted(target.members.items()) if id not in now.members]
    if newcomers and any(member.id in target.voter_ids for member in newcomers):
        return configuration_of(now.voters, [*now.learners, *newcomers])
    if any(id not in caught_up for id in target.voter_ids - now.voter_ids):
        return None
    if len(target.voter_ids ^ now.voter_ids) > 1:
        return Configuration(voters=target.voters, learners=target.learners, outgoing=now.voters)
    return target
