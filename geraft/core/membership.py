"""Who is in the cluster, and who votes.

Source: Raft dissertation 4.1 (the latest configuration in the log is in force, committed or not), 4.2.1 (learners),
4.3 (joint consensus).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple


class Refusal(IntEnum):
    """Why a message was not considered at all."""

    FOREIGN_CLUSTER = 1
    WRONG_RECEIVER = 2
    UNKNOWN_SENDER = 3
    STORE_REPLACED = 4


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
    A server that knows of no configuration listens to everyone of its cluster.
    """
    member = configuration.members.get(sender)
    if member is None and configuration.voters:
        return Refusal.UNKNOWN_SENDER
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
