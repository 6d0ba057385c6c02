"""What a write or a compaction does to a log, told without saying where the log is kept; every store follows it.

A write may drop a tail and put another in its place: one batch after the other, each dropping what is stored at or
after its first index (Raft dissertation 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from geraft.core.entries import ZERO, Ballot, EntryBatch, EntryId
from geraft.core.membership import Configuration
from geraft.core.snapshots import Snapshot
from geraft.errors import CompactionRefused, LogGap
from geraft.storage.base import Identity, StoredState, TermStart

EMPTY = StoredState(identity=None, ballot=Ballot(0), first_index=1, last_entry=ZERO, terms=(), configurations=())
"""What a new store holds."""


class BatchOutline(Protocol):
    """What a state tells of a batch."""

    @property
    def term(self) -> int: ...
    @property
    def first_index(self) -> int: ...
    @property
    def last_entry(self) -> EntryId: ...
    @property
    def configuration(self) -> Configuration | None: ...


def settle(batches: Sequence[EntryBatch]) -> Sequence[EntryBatch]:
    """The batches that a write leaves behind, without the parts that later ones of the same write replace.

    They are consecutive, and whatever is stored at or after the first index of the first one goes.
    """
    if all(left.last_index + 1 == right.first_index for left, right in pairwise(batches)):
        return batches
    settled: list[EntryBatch] = []
    for batch in batches:
        while settled and settled[-1].first_index >= batch.first_index:
            settled.pop()
        if settled and settled[-1].last_index >= batch.first_index:
            settled[-1] = settled[-1].slice(settled[-1].first_index, batch.first_index - 1)
        settled.append(batch)
    return settled


def check_no_gap(state: StoredState, batches: Sequence[EntryBatch], *, path: str = "") -> None:
    """Raises LogGap if the batches, each in turn, would not join the log that the state tells of."""
    last_index = state.last_entry.index
    for batch in batches:
        if not state.first_index <= batch.first_index <= last_index + 1:
            where = path or "the log"
            raise LogGap(
                f"{where} holds entries {state.first_index} to {last_index}: a batch that starts at"
                f" {batch.first_index} does not join them. Append from {last_index + 1} on, or from an earlier index to"
                " replace what is there",
                path=path,
            )
        last_index = batch.last_index


def after_write(
    state: StoredState, identity: Identity | None, ballot: Ballot | None, settled: Sequence[BatchOutline]
) -> StoredState:
    """The state of a store once it holds the settled batches. Tuples that stay as they are stay the same objects."""
    terms, configurations, last_entry = state.terms, state.configurations, state.last_entry
    if settled and settled[0].first_index <= last_entry.index:
        terms, configurations = outline_before(settled[0].first_index, terms, configurations)
    for batch in settled:
        if not terms or terms[-1].term != batch.term:
            terms = (*terms, TermStart(batch.first_index, batch.term))
        if batch.configuration is not None:
            configurations = (*configurations, (batch.first_index, batch.configuration))
        last_entry = batch.last_entry
    return StoredState(
        identity=identity or state.identity,
        ballot=ballot or state.ballot,
        first_index=state.first_index,
        last_entry=last_entry,
        terms=terms,
        configurations=configurations,
        base=state.base,
        snapshots=state.snapshots,
    )


def outline_before(
    index: int, terms: tuple[TermStart, ...], configurations: tuple[tuple[int, Configuration], ...]
) -> tuple[tuple[TermStart, ...], tuple[tuple[int, Configuration], ...]]:
    """What remains of terms and configurations when the log is cut before index."""
    return (
        tuple(start for start in terms if start.first_index < index),
        tuple(pair for pair in configurations if pair[0] < index),
    )


def after_record(state: StoredState, snapshot: Snapshot) -> StoredState:
    """The state of a store once the snapshot stands in its catalogue."""
    others = (other for other in state.snapshots if other.index != snapshot.index)
    return replace(state, snapshots=tuple(sorted((*others, snapshot), key=lambda each: each.index)))


def after_forget(state: StoredState, index: int) -> StoredState:
    """The state of a store once no snapshot of that index stands in its catalogue."""
    return replace(state, snapshots=tuple(other for other in state.snapshots if other.index != index))


def check_compaction(state: StoredState, index: int, *, path: str = "") -> None:
    """Raises CompactionRefused if entries up to index could not be made good from a snapshot."""
    reached = state.snapshots[-1].index if state.snapshots else 0
    if index > reached:
        where = path or "the log"
        raise CompactionRefused(
            f"{where} must keep its entries after {reached}: its newest snapshot reaches no further, so they can't be"
            f" dropped up to {index}. Record a snapshot first",
            path=path,
        )


def after_compact(state: StoredState, base: EntryId) -> StoredState:
    """The state of a store once the entries up to base, which is one of them, are dropped."""
    if base == state.base:
        return state
    first_index = base.index + 1
    terms = tuple(start for start in state.terms if start.first_index > first_index)
    if state.last_entry.index > base.index:
        covering = [start for start in state.terms if start.first_index <= first_index]
        terms = (TermStart(first_index, covering[-1].term), *terms)
    dropped = [pair for pair in state.configurations if pair[0] <= base.index]
    configurations = (*dropped[-1:], *state.configurations[len(dropped) :])
    return replace(state, first_index=first_index, base=base, terms=terms, configurations=configurations)


def after_reset(state: StoredState, snapshot: Snapshot) -> StoredState:
    """The state of a store once its log has given way to the snapshot."""
    return replace(
        after_record(state, snapshot),
        first_index=snapshot.index + 1,
        base=snapshot.last_entry,
        last_entry=snapshot.last_entry,
        terms=(),
        configurations=((snapshot.configuration_index, snapshot.configuration),),
    )
