"""A cluster that lost its quorum for good goes on with what one store holds. For people who know what they give up."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from geraft.core.entries import INDEX_MAX, Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member
from geraft.errors import ConfigError, RecoveryRefused
from geraft.storage.base import Identity, RaftStorage, StoredState


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What the store of a stopped node holds. term: the latest that it has heard of."""

    identity: Identity
    term: int
    last_entry: EntryId
    configuration: Configuration
    configuration_index: int


def inspect(storage: RaftStorage) -> Holding:
    """Tell what the store holds, and change nothing. The node must be stopped.

    Raises StorageLocked and the other StorageErrors, and RecoveryRefused for a store that holds no log of a cluster.
    """
    state = storage.open()
    try:
        return _holding(state)
    finally:
        storage.close()


def _holding(state: StoredState) -> Holding:
    if state.identity is None or not state.configurations:
        raise RecoveryRefused("the store holds no log of a cluster: there is nothing to go on with")
    index, configuration = state.configurations[-1]
    return Holding(
        identity=state.identity,
        term=max(state.ballot.term, state.last_entry.term),
        last_entry=state.last_entry,
        configuration=configuration,
        configuration_index=index,
    )


def recover(storage: RaftStorage, *, voters: Mapping[str, str] | None = None) -> Holding:
    """Make the store the beginning of a new cluster, with all entries it holds; tells what it holds then.

    voters: address by id of the new cluster's voters, by default this node alone; others than this node must start over
    empty stores, with join. Appends one configuration in a new term, under a new cluster id, in one atomic durable
    step: so members of the old cluster are foreign from now on, and can't come back into it with what they hold.

    What only the others held is lost, also if it was acknowledged; what this store holds counts as committed, also if
    it never was. Raises as inspect does, and ConfigError for voters without this node.
    """
    state = storage.open()  # and held to the end, so that nothing is written between looking and appending
    try:
        storage.recover(*_new_beginning(_holding(state), voters))
    finally:
        storage.close()
    return inspect(storage)


def _new_beginning(before: Holding, voters: Mapping[str, str] | None) -> tuple[Identity, Ballot, EntryBatch]:
    """What makes a store that holds `before` the beginning of a new cluster."""
    id = before.identity.node_id
    own = before.configuration.members.get(id)
    if voters is None:
        if own is None:
            raise ConfigError(f"the log does not name {id}: pass voters={{{id!r}: its address}}")
        voters = {id: own.address}
    if id not in voters:
        raise ConfigError(f"the voters {sorted(voters)} must name the node of this store, {id!r}")
    if before.term >= INDEX_MAX or before.last_entry.index >= INDEX_MAX:
        raise RecoveryRefused("there is no term or index left")
    members = tuple(
        Member(voter, voters[voter], before.identity.store_id if voter == id else "") for voter in sorted(voters)
    )
    term = before.term + 1
    entry = EntryBatch(
        term=term,
        first_index=before.last_entry.index + 1,
        kind=EntryKind.CONFIGURATION,
        commands=(b"",),
        configuration=Configuration(voters=members),
    )
    return before.identity._replace(cluster_id=uuid.uuid4().hex[:16]), Ballot(term), entry
