"""One server on virtual time: a real Raft, a real store, and a disk that writes when it is told to."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeVar

from geraft.core.effects import CompactLog, LoadEntries, Persist, RecordSnapshot, Send
from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.events import EntriesLoaded, Event, LogCompacted, Persisted, SnapshotRecorded
from geraft.core.log import Log
from geraft.core.membership import Configuration, Member
from geraft.core.raft import Raft, Settings
from geraft.core.snapshots import Snapshot
from geraft.storage.base import Identity, StoredState
from geraft.storage.memory import MemoryStorage

AnyRaft = TypeVar("AnyRaft", bound=Raft)


def configuration_of(stores: Mapping[str, str]) -> Configuration:
    """Voters by id with the stores they are known to have ("" for not known yet)."""
    return Configuration(voters=tuple(Member(id, f"{id}.test:1", stores[id]) for id in sorted(stores)))


def bootstrap_batch(configuration: Configuration) -> EntryBatch:
    """The first entry of every log of a cluster."""
    return EntryBatch(term=1, first_index=1, kind=EntryKind.CONFIGURATION, commands=(b"",), configuration=configuration)


def raft_from(
    id: str,
    store_id: str,
    state: StoredState,
    settings: Settings,
    rng: random.Random,
    now_seconds: float,
    kind: type[AnyRaft] = Raft,  # type: ignore[assignment]
) -> AnyRaft:
    """A Raft that goes on from what a store holds, as a node's does."""
    return kind(
        id=id,
        store_id=store_id,
        ballot=state.ballot,
        log=Log(
            base=state.base,
            last_entry=state.last_entry,
            terms=state.terms,
            configurations=state.configurations,
        ),
        settings=settings,
        rng=rng,
        now_seconds=now_seconds,
        snapshot=state.snapshots[-1] if state.snapshots else None,
    )


class VirtualServer:
    """raft is None while the server is down; its store survives a crash, what waits for the disk does not.

    clock_seconds: the server's own; the owner moves it on and tells Tick. starts: how often it was started, so that the
    owner can tell what belongs to an earlier life. ballot, catalogue: what the disk holds.
    """

    def __init__(self, id: str, store_id: str, batches: Sequence[EntryBatch]) -> None:
        self.id = id
        self.store_id = store_id
        self.clock_seconds = 0.0
        self.raft: Raft | None = None
        self.for_disk: deque[Persist | RecordSnapshot | CompactLog] = deque()
        self.catalogue: dict[EntryId, Snapshot] = {}
        self.ballot = Ballot(0)
        self.starts = 0
        self.storage = MemoryStorage()
        self.storage.open()
        self.storage.initialise(Identity("test", id, store_id), batches)
        self.storage.close()

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        """Change what the store of a server that is down holds."""
        assert self.raft is None, "a running server writes for itself"
        self.storage.open()
        self.storage.write(ballot, batches)
        self.storage.close()
        self.ballot = ballot or self.ballot

    def start(self, settings: Settings, rng: random.Random) -> Raft:
        """Read the store and begin, as a node does."""
        assert self.raft is None, "it runs already"
        state = self.storage.open()
        self.catalogue = {snapshot.last_entry: snapshot for snapshot in state.snapshots}
        self.starts += 1
        self.raft = raft_from(self.id, self.store_id, state, settings, rng, self.clock_seconds)
        return self.raft

    def crash(self) -> None:
        """Power off: memory and what the disk has not written are gone."""
        if self.raft is not None:
            self.raft = None
            self.for_disk.clear()
            self.storage.close()

    def write_next(self) -> tuple[tuple[Send, ...], list[Event]]:
        """The disk finishes the oldest of what it was given: what may be sent now, and what to tell Raft after that."""
        work = self.for_disk.popleft()
        if isinstance(work, CompactLog):
            return (), [LogCompacted(base=self.storage.compact(work.index, work.bytes_max))]
        if isinstance(work, RecordSnapshot):
            self.storage.record_snapshot(work.snapshot)
            return (), [self._recorded(work.snapshot)]
        if work.reset is not None:
            self.storage.reset(work.reset)
        self.storage.write(work.ballot, work.batches)
        self.ballot = work.ballot or self.ballot
        last_entry = work.batches[-1].last_entry if work.batches else work.reset.last_entry if work.reset else None
        events: list[Event] = [Persisted(sequence=work.sequence, last_entry=last_entry, ballot=work.ballot)]
        return work.then, events if work.reset is None else [self._recorded(work.reset), *events]

    @property
    def base_index(self) -> int:
        """Of its store, which is open."""
        return self.storage.state.base.index

    def _recorded(self, snapshot: Snapshot) -> SnapshotRecorded:
        """The two newest stay in the catalogue."""
        self.catalogue[snapshot.last_entry] = snapshot
        for outdated in sorted(self.catalogue.values(), key=lambda each: each.index)[:-2]:
            self.storage.forget_snapshot(outdated.index)
            del self.catalogue[outdated.last_entry]
        return SnapshotRecorded(snapshot=snapshot)

    def load(self, effect: LoadEntries) -> EntriesLoaded:
        batches = self.storage.read(effect.first_index, effect.last_index, effect.bytes_max)
        return EntriesLoaded(peer=effect.peer, first_index=effect.first_index, batches=tuple(batches))
