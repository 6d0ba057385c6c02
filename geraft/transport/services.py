"""What the transport needs of the node it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from geraft.config import Config
from geraft.core.entries import EntryId
from geraft.core.membership import Refusal
from geraft.core.messages import PeerMessage
from geraft.core.snapshots import Snapshot
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, Waiter
from geraft.runtime.wishes import Wish
from geraft.transport.pulse import RestNote


class Services(Protocol):
    """The node behind a transport. Every method is called from any thread and must not block."""

    @property
    def cluster_id(self) -> str: ...

    @property
    def node_id(self) -> str: ...

    @property
    def store_id(self) -> str: ...

    @property
    def group(self) -> str:
        """Of the cluster, where the process holds nodes of several; else empty."""

    def admit(self, sender: str, sender_store: str) -> Refusal | None:
        """Whether messages of this sender, from this store, are heard: None, or why not."""

    def deliver(self, message: PeerMessage) -> None:
        """A message of an admitted peer, meant for us."""

    def deliver_note(self, note: RestNote) -> None:
        """What another process says of resting, of an admitted peer."""

    def submit(self, call: Waiter) -> None:
        """A caller's write, read or tuning; to be answered with hub.finish or hub.fail."""

    def resubmit(self, calls: list[Call]) -> None:
        """Calls that were forwarded to the leader and certainly did not happen: they wait for a leader again."""

    def submit_wish(self, wish: Wish) -> None:
        """A caller's wish for the leader; to be answered with hub.finish or hub.fail."""

    def resubmit_wish(self, wish: Wish) -> None:
        """A wish that was forwarded to who leads no more: it waits for the next leader."""

    def cluster_info(self) -> pb.ClusterInfoRep: ...

    def status(self) -> pb.StatusRep: ...

    @property
    def config(self) -> Config: ...

    def tuning(self, changes: Mapping[str, float]) -> Waiter:
        """What to submit for settings to be changed; its result is the new Config."""

    def reading_snapshot(self, last_entry: EntryId) -> AbstractContextManager[tuple[Snapshot, Iterator[bytes]]]:
        """A snapshot and its bytes, which stay as long as the context lasts. Raises KeyError if it is not held, and
        what the app raises. May block: for native threads."""

    @property
    def newest_snapshot(self) -> Snapshot | None:
        """The newest one that is recorded."""

    def take_snapshot(self) -> Waiter:
        """Have a snapshot made; the waiter gets its index."""

    def peer_connected(self, peer: str) -> None:
        """The replication stream to the peer is up, and the peer hears us. What was sent before may be lost."""

    def peer_disconnected(self, peer: str, reason: str) -> None:
        """The replication stream to the peer broke."""

    def peer_refused(self, peer: str, sentence: str, *, passing: bool = False) -> None:
        """The peer does not hear us, or we do not hear it; the sentence says why and what to do. passing: it may well
        end by itself."""


class SnapshotSink(Protocol):
    """Where the bytes of a snapshot go that is fetched. One thread or greenlet puts; what it asks never blocks."""

    last_entry: EntryId
    offset: int
    """Bytes that were put."""

    @property
    def ended(self) -> bool:
        """No more is wanted."""

    @property
    def full(self) -> bool:
        """Wait before the next put."""

    @property
    def complete(self) -> bool:
        """All that the record tells of was put."""

    def begin(self, snapshot: Snapshot) -> bool:
        """The record at the head of a stream; False if it is not the one that is wanted, or another than before."""

    def put(self, chunk: bytes) -> None: ...

    def finish(self) -> None:
        """All of it was put."""

    def fail(self, sentence: str) -> None:
        """The rest can't be had."""
