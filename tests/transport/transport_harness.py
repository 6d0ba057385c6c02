"""A transport with a small node behind it: it notes what it is told, and answers every append and heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import gevent

from geraft.config import Config
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member, Refusal
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
)
from geraft.errors import GeraftError
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, CallKind, HubThread, acquire_hub, fail, finish, release_hub
from geraft.runtime.wishes import Transfer, Wish
from geraft.transport.carrier import Carrier
from geraft.transport.grpc_mode import mode_for
from geraft.transport.pulse import RestNote
from geraft.transport.server import RaftServer
from geraft.transport.transport import Transport

CONFIG = Config(election_timeout_seconds=20.0)  # for so long a vote waits for its answer, on a busy machine too
CLUSTER = "c1"
MEMBERS = Configuration(voters=(Member("n1", "127.0.0.1:1", "s1"),), learners=(Member("n2", "127.0.0.1:2"),))


class Peer:
    """The `Services` of a node that is no Raft: appends are acknowledged at once, votes granted, writes echoed."""

    def __init__(
        self,
        node_id: str,
        listen: str = "127.0.0.1:0",
        *,
        cluster_id: str = CLUSTER,
        config: Config = CONFIG,
        hub: HubThread | None = None,
        group: str = "",
        carrier: Carrier | None = None,
        start: bool = True,
    ) -> None:
        """group, carrier: of one among many in a process."""
        self.cluster_id = cluster_id
        self.node_id = node_id
        self.store_id = f"store-{node_id}"
        self.group = group
        self.notes: list[RestNote] = []
        self.refusals: dict[str, Refusal] = {}
        self.answer_calls = True
        self.answer_votes = True
        self.call_error: GeraftError | None = None
        self.leader: tuple[str, str] = ("", "")
        self.members: dict[str, str] = {}
        self.delivered: list[PeerMessage] = []
        self.calls: list[Call] = []
        self.resubmitted: list[Call] = []
        self.wishes: list[Wish] = []
        self.wishes_resubmitted: list[Wish] = []
        self.events: list[tuple[str, ...]] = []
        self.event_times: list[float] = []
        self.on_delivered: Callable[[PeerMessage], None] | None = None
        self._own_hub = hub is None
        self.hub = hub or acquire_hub()
        self.transport = Transport(self, listen, config, self.hub, carrier=carrier)
        if start:
            self.transport.start()

    @property
    def address(self) -> str:
        return self.transport.address

    def stop(self) -> None:
        self.transport.stop(5.0)
        if self._own_hub:
            release_hub(self.hub)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    # Services

    def admit(self, sender: str, sender_store: str) -> Refusal | None:
        return self.refusals.get(sender)

    def deliver(self, message: PeerMessage) -> None:
        send = self.transport.send
        me = {"sender": self.node_id, "sender_store": self.store_id, "term": message.term}
        match message:
            case AppendEntries():
                last = message.batches[-1].last_index if message.batches else message.prev.index
                send(message.sender, AppendEntriesReply(match_index=last, **me))  # type: ignore[arg-type]
            case Heartbeat():
                send(message.sender, HeartbeatReply(round=message.round, **me))  # type: ignore[arg-type]
            case RequestVote():
                if self.answer_votes:
                    send(message.sender, RequestVoteReply(granted=True, call=message.call, **me))  # type: ignore[arg-type]
        if self.on_delivered is not None:
            self.on_delivered(message)
        else:
            self.delivered.append(message)

    def deliver_note(self, note: RestNote) -> None:
        self.notes.append(note)

    def submit(self, call: Call) -> None:
        self.calls.append(call)
        if self.call_error is not None:
            fail([call], self.call_error)
        elif self.answer_calls:
            with_bytes = call.kind in (CallKind.APPLY, CallKind.READ)
            finish([call], [b"echo " + call.message if with_bytes else len(self.calls)])

    def resubmit(self, calls: list[Call]) -> None:
        self.resubmitted.extend(calls)

    def submit_wish(self, wish: Wish) -> None:
        self.wishes.append(wish)
        if self.call_error is not None:
            fail([wish], self.call_error)
        elif self.answer_calls:
            finish([wish], [None if isinstance(wish, Transfer) else MEMBERS])

    def resubmit_wish(self, wish: Wish) -> None:
        self.wishes_resubmitted.append(wish)

    def cluster_info(self) -> pb.ClusterInfoRep:
        info = pb.ClusterInfoRep(cluster_id=self.cluster_id, leader_id=self.leader[0], leader_address=self.leader[1])
        for id, address in self.members.items():
            info.configuration.voters.add(id=id, address=address)
        return info

    def status(self) -> pb.StatusRep:
        return pb.StatusRep(id=self.node_id, cluster_id=self.cluster_id, role="follower", address=self.address)

    def _note(self, *event: str) -> None:
        self.events.append(event)
        self.event_times.append(time.monotonic())

    def peer_connected(self, peer: str) -> None:
        self._note("connected", peer)

    def peer_disconnected(self, peer: str, reason: str) -> None:
        self._note("disconnected", peer, reason)

    def peer_refused(self, peer: str, sentence: str, *, passing: bool = False) -> None:
        self._note("refused", peer, sentence)

    # What tests send

    def append(self, *batches: EntryBatch, prev: EntryId = EntryId(0, 0), term: int = 1) -> AppendEntries:
        return AppendEntries(
            sender=self.node_id, sender_store=self.store_id, term=term, prev=prev, batches=batches, commit_index=0
        )

    def heartbeat(self, round: int) -> Heartbeat:
        return Heartbeat(sender=self.node_id, sender_store=self.store_id, term=1, commit_index=0, round=round)

    def got(self, kind: type) -> list[Any]:
        return [message for message in self.delivered if isinstance(message, kind)]

    def has_event(self, *start: str) -> bool:
        return any(event[: len(start)] == start for event in self.events)


class Process:
    """One that holds a node of each of these groups, behind one port; the cluster of group a is c-a."""

    def __init__(self, *groups: str, node_id: str = "n1") -> None:
        self.hub = acquire_hub()
        mode = mode_for(self.hub)
        self.carrier = Carrier(self.hub, CONFIG)
        self._server = RaftServer([self.carrier], mode, "127.0.0.1:0", CONFIG.message_bytes_max)
        self._server.start()
        self.address = self.carrier.address = self._server.address
        self.peers = {
            group: Peer(node_id, cluster_id=f"c-{group}", hub=self.hub, group=group, carrier=self.carrier)
            for group in groups
        }
        self._beats = self.hub.call(gevent.spawn, self.carrier.run, timeout_seconds=10.0)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self.hub.call(self._beats.kill, timeout_seconds=10.0)
        for peer in self.peers.values():
            peer.stop()
        mode_for(self.hub).call(self.carrier.close, timeout_seconds=10.0)
        self._server.stop()
        release_hub(self.hub)


def batch(first_index: int = 1, count: int = 1, size: int = 100, term: int = 1) -> EntryBatch:
    return EntryBatch(
        term=term, first_index=first_index, kind=EntryKind.COMMAND, commands=tuple(bytes(size) for _ in range(count))
    )


def wait_until(condition: Callable[[], object], what: str = "", timeout_seconds: float = 20.0) -> None:
    end = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"did not come about: {what or condition}")
        time.sleep(0.005)


def wait_for(event: threading.Event, timeout_seconds: float = 20.0) -> None:
    assert event.wait(timeout_seconds)
