"""What the nodes of many groups share in one process: a server, a connection to each other process, and its pulses.

All that leaves for another process in one moment, of whatever groups, goes in one message. Two streams lead there: one
for appends, one for what must not wait behind them, heartbeats above all. On the second both ends tell each other that
they live, a few times a second; those pulses stand for the heartbeats of every group that rests (runtime/rest.py), so a
group that has nothing to do costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gevent
import grpc

from geraft.config import Config
from geraft.core.messages import PeerMessage, RequestVote
from geraft.errors import GeraftError, NodeStopped, Rejected, UnknownGroup
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, HubThread, monotonic, native_lock
from geraft.transport import codec, failures
from geraft.transport.calls import CallStream, Returned
from geraft.transport.codec import BadMessage
from geraft.transport.groups import GROUP_CHARACTERS_MAX, group_of, unknown_group
from geraft.transport.grpc_mode import LazyChannel, Outbox, mode_for
from geraft.transport.health import Health
from geraft.transport.peer import Lane, PeerLink, PeerStream, channel_options
from geraft.transport.pulse import Pulse, RestOffer
from geraft.transport.server import SERVICE, CallStreams, RaftHandlers, say_up
from geraft.transport.services import Services

log = logging.getLogger(__name__)

METHOD = f"/{SERVICE}/Carry"
CALL_METHOD = f"/{SERVICE}/Call"
PARCEL_BYTES = 1024 * 1024
"""About what one message carries when much waits; a larger item goes alone."""
PARCEL_ITEMS = 4096
ITEM_BYTES = 16
"""What an item takes beside its message, at most."""
ITEMS_WAITING_MAX = 100_000
"""On one stream."""
BIG_KINDS = frozenset({pb.ITEM_KIND_APPEND_ENTRY_REQ, pb.ITEM_KIND_APPEND_ENTRY_REP})
"""What goes over the first stream; all else goes over the second."""


def parcels(outbox: Outbox) -> Iterator[bytes]:
    """Messages with what waits in the outbox, (kind, bytes) each, until it is closed."""
    for kind, encoded in outbox:
        record = pb.Parcel()
        size_bytes = 0
        while True:
            record.items.add(kind=kind, message=encoded)
            size_bytes += len(encoded) + ITEM_BYTES
            if size_bytes >= PARCEL_BYTES or len(record.items) >= PARCEL_ITEMS:
                break
            more = outbox.take_more()
            if more is None:
                break
            if size_bytes + len(more[1]) + ITEM_BYTES > PARCEL_BYTES:
                yield record.SerializeToString()
                record, size_bytes = pb.Parcel(), 0
            kind, encoded = more
        yield record.SerializeToString()


class _ProcessStream(PeerStream):
    """A stream to another process. It is kept up as long as a link of a group needs it."""

    def __init__(self, link: ProcessLink, *, bytes_max: int, big: bool) -> None:
        super().__init__(
            link,
            METHOD,
            link.take,
            bytes_max=bytes_max,
            newest_waits=False,
            reports=big,
            opening_count_max=ITEMS_WAITING_MAX,
            waiting_count_max=ITEMS_WAITING_MAX,
        )
        self._process = link
        self._feels_pulse = not big

    def put_item(self, kind: int, encoded: bytes) -> None:
        """Any thread; never blocks. Dropped while the stream is not up, nor about to be, or when too much waits."""
        if kind == pb.ITEM_KIND_REST_REQ:
            # Never dropped by a stream that lives: the follower would take pulses for heartbeats of who rests no more.
            outbox = self._outbox
            if outbox is not None:
                outbox.put((kind, encoded), len(encoded))
        else:
            self._put((kind, encoded), len(encoded), monotonic())

    @property
    def _wanted(self) -> bool:
        return self._process.in_use

    def _requests(self, outbox: Outbox) -> Iterator[bytes]:
        return parcels(outbox)

    def _came_up(self, outbox: Outbox) -> None:
        if self._feels_pulse:
            self._process.pulse = Pulse(self._process.hub.post)
        super()._came_up(outbox)

    def _went_down(self, reason: str) -> None:
        pulse = self._process.pulse
        if self._feels_pulse and pulse is not None:
            self._process.pulse = None
            pulse.end()
        super()._went_down(reason)


class _Lane:
    """Of one kind of message, in a stream to another process."""

    def __init__(self, stream: _ProcessStream, kind: int) -> None:
        self._stream = stream
        self._kind = kind
        self.bytes_max = 0  # the stream's own limit counts

    @property
    def up(self) -> bool:
        return self._stream.up

    def put(self, encoded: bytes | None) -> None:
        if encoded is not None:
            self._stream.put_item(self._kind, encoded)

    def close(self) -> None:
        pass  # others use the stream


class ProcessLink:
    """Everything open towards one other process, for all groups: the links of their peers put into it and get from it.

    pulse: the process's, while the second stream is up. users: links that have it, counted by the carrier.
    """

    def __init__(self, carrier: Carrier, address: str) -> None:
        self._carrier = carrier
        self.hub = carrier.hub
        self.mode = mode_for(carrier.hub)
        self.peer = self.address = address
        self.channel = LazyChannel(address, channel_options(carrier.config.message_bytes_max))
        self.pulse: Pulse | None = None
        self.users = 0
        self._lock = native_lock()
        self._links: dict[tuple[str, str], PeerLink] = {}
        self._calls: CallStream | None = None
        inflight_bytes_max = carrier.config.inflight_bytes_max
        self._big = _ProcessStream(self, bytes_max=2 * inflight_bytes_max, big=True)
        self._small = _ProcessStream(self, bytes_max=inflight_bytes_max, big=False)
        self._lanes: dict[int, Lane] = {
            int(kind): _Lane(self._big if kind in BIG_KINDS else self._small, kind) for kind in pb.ItemKind.values()
        }
        self._take = self.takers()

    @property
    def in_use(self) -> bool:
        return self.users > 0

    def lane(self, kind: int) -> Lane:
        return self._lanes[kind]

    def attach(self, group: str, link: PeerLink) -> None:
        with self._lock:
            self._links = {**self._links, (group, link.peer): link}
        self._big.put(None)
        self._small.put(None)
        if self._big.up:
            link.connected()

    def detach(self, group: str, link: PeerLink) -> None:
        with self._lock:
            if self._links.get((group, link.peer)) is link:
                self._links = {key: other for key, other in self._links.items() if other is not link}
        self._carrier.release(self)

    def forward(self, calls: list[Call], group: str, returned: Returned) -> None:
        """Send calls of a group's callers; each is answered, or returned. Any thread; never blocks."""
        with self._lock:
            if self._calls is None or self._calls.broken:
                self._calls = CallStream(self.channel, self.mode, self.address, forwarded=True)
            stream = self._calls
        stream.submit(calls, group, returned)

    def close(self) -> None:
        """Where gRPC may be used."""
        self._big.close()
        self._small.close()
        with self._lock:
            calls = self._calls
        if calls is not None:
            calls.close()
        self.channel.close()

    def beat(self) -> None:
        """Tell the process that we live. Hub only."""
        if self._small.up:
            self._small.put_item(pb.ITEM_KIND_PULSE_REQ, b"")

    # What the streams report

    def connected(self) -> None:
        self._tell(PeerLink.connected)

    def disconnected(self, reason: str) -> None:
        self._tell(lambda link: link.disconnected(reason))

    def failed(self, error: Any) -> None:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            sentence = f"what listens at {self.address} holds no groups: make its nodes by a RaftHost"
            self._tell(lambda link: link.not_heard(sentence))
        else:
            self._tell(lambda link: link.failed(error))

    def _tell(self, tell: Callable[[PeerLink], None]) -> None:
        """Each group; one that can't be told keeps no other from it, and the stream from coming up again."""
        for link in self._links.values():
            try:
                tell(link)
            except Exception:
                log.exception("a node could not be told of its link to %s", link.peer)

    # What comes back

    def take(self, encoded: bytes) -> None:
        """Raises BadMessage, which ends the stream."""
        for item in codec.parse(pb.Parcel.FromString, encoded).items:
            take = self._take.get(item.kind)
            if take is None:
                raise BadMessage(f"an item of kind {item.kind} is no reply")
            take(item.message)

    def takers(self) -> Mapping[int, Callable[[bytes], None]]:
        """What takes the items of each kind that may come back."""
        return {
            pb.ITEM_KIND_APPEND_ENTRY_REP: self._taker(pb.AppendEntryRep, PeerLink.take_append_reply),
            pb.ITEM_KIND_HEARTBEAT_REP: self._taker(pb.HeartbeatRep, PeerLink.take_heartbeat_reply),
            pb.ITEM_KIND_REQUEST_VOTE_REP: self._taker(pb.RequestVoteRep, PeerLink.take_vote),
            pb.ITEM_KIND_REST_REP: self._taker(pb.RestRep, PeerLink.take_rest_answer),
            pb.ITEM_KIND_PULSE_REP: self._take_pulse,
            pb.ITEM_KIND_NOT_HEARD: self._take_not_heard,
        }

    def _taker(self, kind: Any, take: Callable[[PeerLink, Any], None]) -> Callable[[bytes], None]:
        def taker(encoded: bytes) -> None:
            record = codec.parse(kind.FromString, encoded)
            link = self._links.get((record.header.group, record.header.sender))
            if link is None:
                return
            try:
                take(link, record)
            except BadMessage as error:  # of this group: the others go on
                link.not_heard(f"node {link.peer} answered what is no reply: {error}")
            except Exception:  # the same
                log.exception("a reply of %s could not be handled", link.peer)

        return taker

    def _take_pulse(self, encoded: bytes) -> None:
        pulse = self.pulse
        if pulse is not None:
            pulse.seen()

    def _take_not_heard(self, encoded: bytes) -> None:
        record = codec.parse(pb.NotHeard.FromString, encoded)
        link = self._links.get((record.group, record.receiver))
        if link is None:
            return
        link.not_heard(record.sentence, passing=record.unknown_group)


class _Replies:
    """Where replies of one kind go on a stream that came from another process."""

    def __init__(self, arrivals: _Arrivals, kind: int) -> None:
        self._arrivals = arrivals
        self._kind = kind

    def put(self, encoded: bytes) -> None:
        self._arrivals.answer(self._kind, encoded)

    def close(self) -> None:
        pass  # others use the stream


class _Arrivals:
    """The receiving end of a stream of another process. cancel: ends the stream, whatever it waits for."""

    def __init__(self, carrier: Carrier, outbox: Outbox, cancel: Callable[[], object]) -> None:
        self._carrier = carrier
        self._outbox = outbox
        self._cancel = cancel
        self.pulse = Pulse(carrier.hub.post)
        self.error: tuple[grpc.StatusCode, GeraftError] | None = None
        """Why the stream is ended by us."""
        self._appends = _Replies(self, pb.ITEM_KIND_APPEND_ENTRY_REP)
        self._heartbeats = _Replies(self, pb.ITEM_KIND_HEARTBEAT_REP)
        self._votes = _Replies(self, pb.ITEM_KIND_REQUEST_VOTE_REP)
        self._rests = _Replies(self, pb.ITEM_KIND_REST_REP)

    def read(self, requests: Iterator[bytes]) -> None:
        """Hand in every item of the stream, until it ends."""
        try:
            for encoded in requests:
                for item in codec.parse(pb.Parcel.FromString, encoded).items:
                    self._take(item.kind, item.message)
                if self._outbox.closed:
                    break
        except BadMessage as error:
            self.error = grpc.StatusCode.INVALID_ARGUMENT, Rejected(str(error))
        except grpc.RpcError:
            pass  # the other side is gone
        except Exception as error:
            if not self._outbox.closed:
                log.exception("what came from another process could not be handed in")
                self.error = grpc.StatusCode.INTERNAL, NodeStopped(f"internal error: {error}")
        finally:
            self._carrier.ended(self, (self._appends, self._heartbeats, self._votes, self._rests))
            self._outbox.close()

    def answer(self, kind: int, encoded: bytes) -> None:
        """Send it back. Any thread; never blocks. Who sends and does not read what comes back is cut off."""
        outbox = self._outbox
        if outbox.waiting_count < ITEMS_WAITING_MAX:
            outbox.put((kind, encoded), len(encoded))
        elif not outbox.closed:
            log.warning("a process that does not read its replies is cut off: %d wait", outbox.waiting_count)
            outbox.close()
            self._cancel()

    def _take(self, kind: int, encoded: bytes) -> None:
        match kind:
            case pb.ITEM_KIND_PULSE_REQ:
                self.pulse.seen()
                self.answer(pb.ITEM_KIND_PULSE_REP, b"")
            case pb.ITEM_KIND_APPEND_ENTRY_REQ:
                self._hand_in(codec.parse(pb.AppendEntryReq.FromString, encoded), codec.append_entries, self._appends)
            case pb.ITEM_KIND_HEARTBEAT_REQ:
                self._hand_in(codec.parse(pb.HeartbeatReq.FromString, encoded), codec.heartbeat, self._heartbeats)
            case pb.ITEM_KIND_REQUEST_VOTE_REQ:
                self._hand_in(codec.parse(pb.RequestVoteReq.FromString, encoded), _vote_request, self._votes)
            case pb.ITEM_KIND_REST_REQ:
                self._hand_in(codec.parse(pb.RestReq.FromString, encoded), self._rest_offer, self._rests)
            case _:
                raise BadMessage(f"an item of kind {kind} is no request")

    def _rest_offer(self, record: pb.RestReq) -> RestOffer:
        return codec.rest_offer(record, self.pulse)

    def _hand_in(self, record: Any, decode: Callable[[Any], PeerMessage | RestOffer], replies: _Replies) -> None:
        """What is wrong with a message of one group is told, and ends nothing for the others."""
        header: pb.Header = record.header
        handlers = self._carrier.groups.get(header.group)
        if handlers is None:
            named = header.group[:GROUP_CHARACTERS_MAX]
            sentence = f"no node of the group {named!r} runs at {self._carrier.address} (yet)"
        else:
            try:
                sentence = handlers.take(header, decode(record), replies)
            except (BadMessage, GeraftError) as error:
                sentence = str(error)
        if sentence:
            refused = pb.NotHeard(
                group=header.group[:GROUP_CHARACTERS_MAX],
                receiver=header.receiver[: codec.NAME_CHARACTERS_MAX],
                sentence=sentence,
                unknown_group=handlers is None,
            )
            self.answer(pb.ITEM_KIND_NOT_HEARD, refused.SerializeToString())


def _vote_request(record: pb.RequestVoteReq) -> RequestVote:
    return codec.request_vote(record, 0)


class Entrance:
    """Of one group, into the server that all share: stands where RaftServer does."""

    def __init__(self, carrier: Carrier, group: str, handlers: RaftHandlers) -> None:
        self._carrier = carrier
        self._group = group
        self._handlers = handlers

    @property
    def address(self) -> str:
        return self._carrier.address

    def start(self) -> None:
        """Take calls from now on."""
        self._carrier.open(self._group, self._handlers)

    def stop(self, grace_seconds: float = 0.5, timeout_seconds: float = 5.0) -> None:
        """Take no more calls; the server goes on."""
        self._carrier.shut(self._group, self._handlers)


class Carrier(grpc.GenericRpcHandler):
    """Of one process: routes calls to their group's node, and keeps one link to each other process.

    address: where its server can be reached; set once it is known.
    """

    def __init__(self, hub: HubThread, config: Config) -> None:
        self.hub = hub
        self.config = config
        self.address = ""
        self._mode = mode_for(hub)
        self.health = Health(self._mode)
        self.groups: dict[str, RaftHandlers] = {}
        self._inner: dict[str, grpc.GenericRpcHandler] = {}
        self._lock = native_lock()
        self._links: dict[str, ProcessLink] = {}
        self._arrivals: set[_Arrivals] = set()
        self._open: set[Outbox] = set()
        self._calls = CallStreams(self.services_of, self._mode, config.message_bytes_max)
        self._closed = False

    # The server's side

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: Any = handler_call_details.method
        if method == METHOD:
            return grpc.stream_stream_rpc_method_handler(self._carry)
        if not method.startswith(f"/{SERVICE}/"):
            return None
        group = group_of(handler_call_details.invocation_metadata)
        if not group and method == CALL_METHOD:
            return grpc.stream_stream_rpc_method_handler(self._calls.serve)
        inner = self._inner.get(group)
        if inner is not None:
            return inner.service(handler_call_details)

        def refuse(requests: Any, context: grpc.ServicerContext) -> Any:
            failures.abort(context, self.unknown(group))

        return grpc.stream_stream_rpc_method_handler(refuse)

    def unknown(self, group: str) -> UnknownGroup:
        """Why a group is not served here."""
        return unknown_group(group, self.address, self._inner)

    def services_of(self, group: str) -> Services:
        """The node of that group. Raises UnknownGroup."""
        handlers = self.groups.get(group)
        if handlers is None:
            raise self.unknown(group)
        return handlers.services

    def entrance(self, group: str, handlers: RaftHandlers) -> Entrance:
        return Entrance(self, group, handlers)

    def open(self, group: str, handlers: RaftHandlers) -> None:
        with self._lock:
            self.groups = {**self.groups, group: handlers}
            self._inner = {**self._inner, group: handlers.generic_handler()}

    def shut(self, group: str, handlers: RaftHandlers) -> None:
        with self._lock:
            if self.groups.get(group) is handlers:
                self.groups = {key: value for key, value in self.groups.items() if key != group}
                self._inner = {key: value for key, value in self._inner.items() if key != group}

    def _carry(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """One thread or greenlet, the handler's, sends what is in the outbox; a second one reads the requests."""
        outbox = self._mode.outbox()
        arrivals = _Arrivals(self, outbox, context.cancel)
        with self._lock:
            closed = self._closed
            if not closed:
                self._open.add(outbox)
                self._arrivals.add(arrivals)
        if closed:
            failures.abort(context, NodeStopped("the process is stopping"))
        try:
            say_up(context, "")
            self._mode.spawn(arrivals.read, requests, name="geraft process reader")
            yield from parcels(outbox)
        finally:
            outbox.close()
            with self._lock:
                self._open.discard(outbox)
        if arrivals.error is not None:
            status, error = arrivals.error
            failures.refuse(context, status, failures.failure_from_error(error))

    def ended(self, arrivals: _Arrivals, replies: tuple[_Replies, ...]) -> None:
        """A stream from another process has ended. Any thread."""
        with self._lock:
            self._arrivals.discard(arrivals)
        for handlers in self.groups.values():
            handlers.forget(replies)
        arrivals.pulse.end()

    # The links

    def link_to(self, address: str) -> ProcessLink:
        """The link to the process there, for one who attaches to it, and later detaches. Any thread."""
        with self._lock:
            link = self._links.get(address)
            if link is None:
                link = self._links[address] = ProcessLink(self, address)
            link.users += 1
            return link

    def release(self, link: ProcessLink) -> None:
        """One has detached: close the link if that was the last one. Where gRPC may be used."""
        with self._lock:
            link.users -= 1
            if link.users or self._links.get(link.address) is not link:
                return
            del self._links[link.address]
        link.close()

    # Pulses

    def run(self) -> None:
        """Beat, and feel the pulses of the others; a greenlet on the hub."""
        while True:
            gevent.sleep(self.config.heartbeat_interval_seconds)
            for link in list(self._links.values()):
                try:
                    link.beat()
                except Exception:  # of one process: the pulses of the others go on
                    log.exception("no pulse for the process at %s", link.address)
            now = monotonic()
            for pulse in self._pulses():
                try:
                    pulse.check(now)
                except Exception:
                    log.exception("a pulse could not be felt")

    def _pulses(self) -> list[Pulse]:
        """Those of processes that we dialled, and of those that dialled us. Other threads change both meanwhile."""
        felt = [link.pulse for link in list(self._links.values())]
        return [*(pulse for pulse in felt if pulse is not None), *(each.pulse for each in list(self._arrivals))]

    @property
    def resting_count(self) -> int:
        """Nodes that rest, counted under every pulse that they rest under."""
        return sum(pulse.resting_count for pulse in self._pulses())

    def close(self) -> None:
        """End every stream. Where gRPC may be used."""
        with self._lock:
            self._closed = True
            outboxes = list(self._open)
            links, self._links = list(self._links.values()), {}
        self._calls.close()
        for outbox in outboxes:
            outbox.close()
        for link in links:
            link.close()
