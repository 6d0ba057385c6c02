"""What a node has open towards one peer: a channel, a stream of appends, a stream of heartbeats.

Messages to a stream that is not up are dropped: Raft sends again. So nothing here waits, and nothing piles up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from geraft.config import Config
from geraft.core.entries import EntryId
from geraft.core.messages import AppendEntries, Heartbeat, OfferSnapshot, PeerMessage, RequestVote, TimeoutNow
from geraft.errors import GeraftError, NodeStopped, NoLeader, NotLeader, OutcomeUnknown
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, fail, finish, monotonic, native_lock
from geraft.runtime.wishes import Wish
from geraft.transport import codec, failures
from geraft.transport.calls import CallStream, Returned, wait_until_up
from geraft.transport.codec import BadMessage
from geraft.transport.groups import metadata_of
from geraft.transport.grpc_mode import GrpcMode, LazyChannel, Outbox, sleep
from geraft.transport.pulse import Pulse, RestAnswer
from geraft.transport.server import HEADER_KEY, refusal_of
from geraft.transport.services import Services, SnapshotSink
from geraft.transport.wishes import decode_answer, encode_wish

log = logging.getLogger(__name__)

OPENING_COUNT_MAX = 8
"""Messages kept for a stream that is being opened."""
OPENING_SECONDS = 1.0
"""After which a stream that is still being opened takes no more messages."""
WAITING_COUNT_MAX = 4096
"""Messages that wait on one stream."""
WANTED_SECONDS = 3.0
"""A stream over which nobody tried to send for so long is not reopened."""
REFUSED_PAUSE_SECONDS = 5.0
"""For which a peer whose replies we refuse hears nothing more of us: it shall ask, and be told why."""
PASSING_PAUSE_SECONDS = 0.5
"""The same, where the reason may well pass by itself: its process does not hold the group (yet)."""
WISH_GRACE_SECONDS = 0.25
"""How much longer than a wish may take we wait for the leader's answer, which knows the reason."""
RETRY_SECONDS = 0.05
RETRY_SECONDS_MAX = 0.5
"""Pause before a broken stream is opened again; doubles while it breaks at once."""


def channel_options(bytes_max: int, keepalive_ms: int = 500) -> list[tuple[str, int]]:
    """Of every channel of ours. A peer that stops answering is noticed within keepalive_ms + 1 s; one that is back is
    reconnected within about 0.25 s."""
    return [
        ("grpc.max_send_message_length", bytes_max),
        ("grpc.max_receive_message_length", bytes_max),
        ("grpc.use_local_subchannel_pool", 1),  # a closed channel really closes its connection
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.http2.ping_timeout_ms", 1000),  # the default of 60 s overrules keepalive_timeout_ms
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 1000),  # this is the connect timeout: a stopped process accepts and is silent
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.enable_http_proxy", 0),  # members talk directly, whatever the environment says of the web
        ("grpc.enable_retries", 0),
    ]


BULK_OPTIONS = [
    # A window of fixed size: gRPC would let it grow with the bandwidth, and hold that much in memory on both sides.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 * 1024 * 1024),
]
"""Of a connection for a snapshot, beside channel_options."""
BROKEN_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
"""With which a stream ends when the network or the peer's process does."""
FULL_SECONDS = 0.005
"""Pause while the app has not taken what came of a snapshot."""


class StreamOwner(Protocol):
    """What a PeerStream needs of the link that it belongs to."""

    peer: str
    mode: GrpcMode
    channel: LazyChannel

    def connected(self) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    def failed(self, error: Any) -> None: ...


class PeerStream:
    """One stream to a peer: opened at its first message, and again when it broke while there is something to send.

    header: what it is opened with. opening_count_max: messages kept for it while it is being opened, waiting_count_max:
    while it is open.
    """

    def __init__(
        self,
        link: StreamOwner,
        method: str,
        on_reply: Callable[[bytes], None],
        *,
        bytes_max: int,
        newest_waits: bool,
        reports: bool,
        header: Callable[[], bytes] | None = None,
        opening_count_max: int = OPENING_COUNT_MAX,
        waiting_count_max: int = WAITING_COUNT_MAX,
    ) -> None:
        self._header = header
        self._opening_count_max = opening_count_max
        self._waiting_count_max = waiting_count_max
        self._link = link
        self._method = method
        self._on_reply = on_reply
        self.bytes_max = bytes_max
        self._newest_waits = newest_waits
        self._reports = reports
        self._lock = native_lock()
        self._running = False
        self._closed = False
        self._outbox: Outbox | None = None
        self._rpc: Any = None
        self._up = False
        self._opened_at = 0.0
        self._wanted_at = 0.0
        self._newest: bytes | None = None

    @property
    def up(self) -> bool:
        return self._up

    def put(self, encoded: bytes | None) -> None:
        """Send it if the stream is up or about to be; open the stream if it isn't. None only opens. Any thread."""
        now = self._wanted_at = monotonic()
        if not self._running:
            self._start()
        if encoded is None:
            return
        if not self._put(encoded, len(encoded), now) and self._newest_waits:
            self._newest = encoded

    def _put(self, item: Any, size_bytes: int, now: float) -> bool:
        """False if it is dropped because the stream is not up, nor about to be."""
        outbox = self._outbox
        if outbox is None or (
            not self._up
            and (outbox.waiting_count >= self._opening_count_max or now - self._opened_at > OPENING_SECONDS)
        ):
            return False
        waiting = outbox.waiting_count
        if not waiting or (waiting < self._waiting_count_max and outbox.waiting_bytes + size_bytes <= self.bytes_max):
            outbox.put(item, size_bytes)
        return True

    def _start(self) -> None:
        with self._lock:
            if self._running or self._closed:
                return
            self._running = True
            self._opened_at = monotonic()
            self._outbox = self._link.mode.outbox()  # at once, so that the first message waits in it
        self._link.mode.spawn(self._run, name=f"geraft stream to {self._link.peer}")

    def close(self) -> None:
        """End the stream for good. Where gRPC may be used."""
        self._closed = True
        outbox, rpc = self._outbox, self._rpc
        if outbox is not None:
            outbox.close()
        if rpc is not None:
            rpc.cancel()

    def _run(self) -> None:
        pause = RETRY_SECONDS
        try:
            while not self._closed and self._wanted:
                started = monotonic()
                was_up = self._attempt()
                if was_up and monotonic() - started > 1.0:
                    pause = RETRY_SECONDS
                if not self._closed:
                    sleep(pause)
                    pause = min(2 * pause, RETRY_SECONDS_MAX)
        finally:
            with self._lock:
                self._running = False

    def _attempt(self) -> bool:
        """Open the stream and read its replies until it breaks. True if it was up."""
        link = self._link
        outbox = self._outbox
        if outbox is None:
            self._opened_at = monotonic()
            outbox = self._outbox = link.mode.outbox()
        was_up = False
        reason = "the peer ended the stream"
        try:
            # Waits for the connection without a limit; the requests wait in the outbox meanwhile.
            open_stream: Any = link.channel.get().stream_stream(self._method)
            metadata = ((HEADER_KEY, self._header()),) if self._header is not None else ()
            rpc = self._rpc = open_stream(self._requests(outbox), metadata=metadata, wait_for_ready=True)
            if self._closed:
                rpc.cancel()
            if wait_until_up(rpc):
                was_up = self._up = True
                newest, self._newest = self._newest, None
                if newest is not None:
                    outbox.put(newest, len(newest))
                self._came_up(outbox)
            for encoded in rpc:
                self._on_reply(encoded)
        except grpc.RpcError as error:
            reason = failures.reason_of(error)
            link.failed(error)
        except BadMessage as error:
            reason = f"the peer sent something that is no reply: {error}"
            self._rpc.cancel()
        except Exception as error:
            if not self._closed:
                log.exception("the stream %s to %s failed", self._method, link.peer)
            reason = str(error)
            if self._rpc is not None:
                self._rpc.cancel()
        finally:
            self._up = False
            self._outbox = None
            self._rpc = None
            outbox.close()
            if was_up:
                self._went_down(reason)
        return was_up

    @property
    def _wanted(self) -> bool:
        """Whether it is to be opened again when it broke."""
        return bool(monotonic() - self._wanted_at < WANTED_SECONDS)

    def _requests(self, outbox: Outbox) -> Iterator[bytes]:
        """What leaves, out of what waits."""
        return iter(outbox)

    def _came_up(self, outbox: Outbox) -> None:
        if self._reports:
            self._link.connected()

    def _went_down(self, reason: str) -> None:
        if self._reports:
            self._link.disconnected(reason)


class Lane(Protocol):
    """Where a link puts messages of one kind."""

    bytes_max: int

    @property
    def up(self) -> bool: ...

    def put(self, encoded: bytes | None) -> None: ...

    def close(self) -> None: ...


class SharedStreams(Protocol):
    """What links to the same process share where it holds many groups: a channel, and streams (carrier.ProcessLink)."""

    channel: LazyChannel
    pulse: Pulse | None
    """The process's, as long as one is felt."""

    def lane(self, kind: int) -> Lane:
        """For messages of that pb.ItemKind."""

    def attach(self, group: str, link: PeerLink) -> None:
        """Hand the link what comes for it from now on."""

    def detach(self, group: str, link: PeerLink) -> None: ...

    def forward(self, calls: list[Call], group: str, returned: Returned) -> None:
        """Send callers' calls; each is answered, or returned. Any thread; never blocks."""


class PeerLink:
    """Everything open towards one peer. For any thread, but closed where gRPC may be used."""

    def __init__(
        self,
        services: Services,
        mode: GrpcMode,
        config: Config,
        peer: str,
        address: str,
        dialled: str = "",
        shared: SharedStreams | None = None,
    ) -> None:
        """address: the peer's, as all know it; dialled: by which we reach it, if that is another one. shared: what to
        use in place of a channel and streams of its own."""
        self._services = services
        self._shared = shared
        self._metadata = metadata_of(services.group)
        self.mode = mode
        self._config = config
        self.peer = peer
        self.address = address
        self._closed = False
        self._refused_until = 0.0
        self._lock = native_lock()
        self._calls: CallStream | None = None
        self._fetch_channels: set[LazyChannel] = set()
        self._wishes: set[Wish] = set()
        self._questions: set[object] = set()  # of Raft's, to which no answer has come
        self._dialled = dialled or address
        self._appends: Lane
        self._heartbeats: Lane
        if shared is not None:
            self.channel = shared.channel
            self._appends = shared.lane(pb.ITEM_KIND_APPEND_ENTRY_REQ)
            self._heartbeats = shared.lane(pb.ITEM_KIND_HEARTBEAT_REQ)
            shared.attach(services.group, self)
            return
        self.channel = LazyChannel(self._dialled, channel_options(config.message_bytes_max))
        self._appends = PeerStream(
            self,
            "/geraft.Raft/SendAppendEntry",
            self._on_append_reply,
            bytes_max=2 * config.inflight_bytes_max,
            newest_waits=False,
            reports=True,
            header=self.header,
        )
        self._heartbeats = PeerStream(
            self,
            "/geraft.Raft/SendHeartbeat",
            self._on_heartbeat_reply,
            bytes_max=config.inflight_bytes_max,
            newest_waits=True,
            reports=False,
            header=self.header,
        )

    @property
    def up(self) -> bool:
        """Whether the replication stream is up."""
        return self._appends.up

    @property
    def busy(self) -> bool:
        """Whether callers, or we ourselves, wait for an answer of the peer."""
        if self._wishes or self._questions:
            return True
        calls = self._calls
        return calls is not None and not calls.broken and calls.unanswered > 0

    def header(self) -> bytes:
        """With which a stream is opened: who we are and whom we mean."""
        services = self._services
        return pb.Header(
            cluster_id=services.cluster_id,
            sender=services.node_id,
            receiver=self.peer,
            sender_store=services.store_id,
            group=services.group,
        ).SerializeToString()

    def tune(self, config: Config) -> None:
        """Go by another config from now on. Any thread."""
        self._config = config
        self._appends.bytes_max = 2 * config.inflight_bytes_max
        self._heartbeats.bytes_max = config.inflight_bytes_max

    def send(self, message: PeerMessage) -> None:
        """Send a request; may be lost. Any thread; never blocks."""
        if self._refused_until and isinstance(message, AppendEntries | Heartbeat) and monotonic() < self._refused_until:
            return
        encoded = codec.encode(message, self._services.cluster_id, self.peer, self._services.group)
        match message:
            case AppendEntries():
                self._appends.put(encoded)
            case OfferSnapshot():
                self._appends.put(encoded)
            case Heartbeat():
                self._heartbeats.put(encoded)
                if not self._appends.up:
                    self._appends.put(None)  # a leader that lives wants both
            case RequestVote() if self._shared is not None:
                self._shared.lane(pb.ITEM_KIND_REQUEST_VOTE_REQ).put(encoded)
            case RequestVote():
                self.mode.enter(self._ask, "RequestVote", encoded, self._on_vote, name="geraft vote")
            case TimeoutNow():
                self.mode.enter(self._ask, "TimeoutNow", encoded, self._on_timeout_now, name="geraft transfer")
            case _:
                raise TypeError(f"{type(message).__name__} is no request")

    def fetch_snapshot(self, sink: SnapshotSink) -> None:
        """Pull a snapshot from the peer into the sink; goes on where it was when the stream breaks. Any thread."""
        self.mode.spawn(self._fetch_snapshot, sink, name="geraft snapshot fetcher")

    def _fetch_snapshot(self, sink: SnapshotSink) -> None:
        """Over a connection of its own, so that calls and votes do not queue behind the bytes."""
        channel = LazyChannel(self._dialled, [*channel_options(self._config.message_bytes_max), *BULK_OPTIONS])
        with self._lock:
            self._fetch_channels.add(channel)
        try:
            pause, broken = RETRY_SECONDS, False
            while not sink.ended:
                if broken:
                    log.info("the stream of a snapshot from %s broke after %d bytes", self.peer, sink.offset)
                before = sink.offset
                failure = self._pull(channel, sink)
                if sink.complete:
                    sink.finish()
                    return
                if failure or self._closed:
                    sink.fail(failure or f"{self.peer} is no peer any more")
                    return
                broken = True
                pause = RETRY_SECONDS if sink.offset > before else min(2 * pause, RETRY_SECONDS_MAX)
                sleep(pause)
        finally:
            with self._lock:
                self._fetch_channels.discard(channel)
            channel.close()

    def _pull(self, channel: LazyChannel, sink: SnapshotSink) -> str:
        """Read one stream until it ends. Why the rest can't be had from this peer, "" if it may be on another try."""
        services = self._services
        header = pb.Header(
            cluster_id=services.cluster_id,
            sender=services.node_id,
            receiver=self.peer,
            sender_store=services.store_id,
            group=services.group,
        )
        request = pb.GetSnapshotReq(
            header=header,
            last_entry=pb.EntryId(term=sink.last_entry.term, index=sink.last_entry.index),
            offset=sink.offset,
        )
        rpc: Any = None
        begun = False
        try:
            open_stream: Any = channel.get().unary_stream("/geraft.Raft/GetSnapshot")
            rpc = open_stream(request.SerializeToString(), metadata=self._metadata)
            for encoded in rpc:
                reply = codec.parse(pb.GetSnapshotRep.FromString, encoded)
                if not begun:
                    begun = True
                    snapshot = codec.snapshot_head(reply)
                    if not self._is_heard(reply.header):
                        return f"{self.peer} is not who it should be"
                    if not sink.begin(snapshot):
                        return f"{self.peer} gives another snapshot than it offered"
                    continue
                while sink.full and not sink.ended:
                    sleep(FULL_SECONDS)
                if sink.ended:
                    return ""
                sink.put(reply.chunk)
        except grpc.RpcError as error:
            self.failed(error)
            code = error.code()
            return "" if code in BROKEN_CODES else failures.reason_of(error)
        except BadMessage as error:
            return str(error)
        except ValueError:
            return f"the channel to {self.peer} was closed"
        finally:
            if rpc is not None:
                rpc.cancel()
        return ""

    def forward(self, calls: list[Call]) -> None:
        """Send callers' calls to the peer, which is taken for the leader. Any thread; never blocks."""
        if self._shared is not None:
            self._shared.forward(calls, self._services.group, self._resubmit)
            return
        with self._lock:
            if self._calls is None or self._calls.broken:
                self._calls = CallStream(
                    self.channel, self.mode, f"{self.peer} ({self.address})", forwarded=True, returned=self._resubmit
                )
            stream = self._calls
        stream.submit(calls)

    def forward_wish(self, wish: Wish) -> None:
        """Ask the peer, which is taken for the leader, to fulfil a caller's wish. Any thread; never blocks."""
        self._wishes.add(wish)
        self.mode.enter(self._ask_for, wish, name="geraft wish")

    def _ask_for(self, wish: Wish) -> None:
        method, record = encode_wish(wish, forwarded=True)

        def answered(future: Any) -> None:
            self._wishes.discard(wish)
            try:
                finish([wish], [decode_answer(wish, future.result())])
            except grpc.FutureCancelledError:
                fail([wish], OutcomeUnknown("the connection to the leader was closed"))
            except grpc.RpcError as error:
                reason = failures.error_from_rpc(error, self.address, sent=True)
                if isinstance(reason, NotLeader | NoLeader | NodeStopped):
                    self._services.resubmit_wish(wish)
                else:
                    fail([wish], reason)
            except BadMessage as error:
                fail([wish], OutcomeUnknown(f"{self.peer} answered what is no answer: {error}"))

        try:
            rpc: Any = self.channel.get().unary_unary(f"/geraft.Raft/{method}")
            future = rpc.future(
                record.SerializeToString(),
                timeout=record.timeout_ms / 1000 + WISH_GRACE_SECONDS,
                metadata=self._metadata,
            )
        except ValueError:  # the channel was closed meanwhile
            self._wishes.discard(wish)
            self._services.resubmit_wish(wish)
            return
        future.add_done_callback(answered)

    def _resubmit(self, calls: list[Call], error: GeraftError) -> None:
        log.debug("%d calls forwarded to %s come back: %s", len(calls), self.peer, error)
        self._services.resubmit(calls)

    def close(self) -> None:
        """Close everything; calls that were forwarded are answered. Where gRPC may be used."""
        self._closed = True
        self._appends.close()
        self._heartbeats.close()
        with self._lock:
            calls, fetch_channels = self._calls, list(self._fetch_channels)
        if calls is not None:
            calls.close()
        for channel in fetch_channels:
            channel.close()
        if self._shared is not None:
            self._shared.detach(self._services.group, self)
        else:
            self.channel.close()

    # What the streams report

    def connected(self) -> None:
        log.debug("connected to %s at %s", self.peer, self.address)
        self._services.peer_connected(self.peer)

    def disconnected(self, reason: str) -> None:
        log.debug("disconnected from %s at %s: %s", self.peer, self.address, reason)
        self._refused_until = 0.0  # whoever answers next may be another
        if not self._closed:
            self._services.peer_disconnected(self.peer, reason)

    def failed(self, error: Any) -> None:
        """Tell the node if an RPC was refused for what we are, and not for the state of the network."""
        if self._closed:
            return
        code = error.code()
        if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
            self._services.peer_refused(self.peer, error.details() or code.name)
        elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._services.peer_refused(
                self.peer,
                f"{error.details()} (message_bytes_max must be the same on all nodes)",
            )
        elif "too_many_pings" in str(error.details()):
            self._services.peer_refused(
                self.peer,
                f"the gRPC server at {self.address} does not bear our pings: make it with raft_server_options()",
            )
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            self._services.peer_refused(self.peer, f"what listens at {self.address} is no geraft node")

    # Resting

    @property
    def pulse(self) -> Pulse | None:
        return self._shared.pulse if self._shared is not None else None

    def offer_rest(self, term: int, last_entry: EntryId, number: int) -> None:
        """Any thread; never blocks."""
        if self._shared is None:
            return
        services = self._services
        header = pb.Header(
            cluster_id=services.cluster_id,
            sender=services.node_id,
            receiver=self.peer,
            sender_store=services.store_id,
            term=term,
            group=services.group,
        )
        offer = pb.RestReq(
            header=header, last_entry=pb.EntryId(term=last_entry.term, index=last_entry.index), number=number
        )
        self._shared.lane(pb.ITEM_KIND_REST_REQ).put(offer.SerializeToString())

    def not_heard(self, sentence: str, *, passing: bool = False) -> None:
        """The peer, or its process, refused a message: send less for a while. passing: for a short one."""
        if not self._closed:
            self._refused_until = monotonic() + (PASSING_PAUSE_SECONDS if passing else REFUSED_PAUSE_SECONDS)
            self._services.peer_refused(self.peer, sentence, passing=passing)

    # Replies

    def _on_append_reply(self, encoded: bytes) -> None:
        self.take_append_reply(codec.parse(pb.AppendEntryRep.FromString, encoded))

    def _on_heartbeat_reply(self, encoded: bytes) -> None:
        self.take_heartbeat_reply(codec.parse(pb.HeartbeatRep.FromString, encoded))

    def _on_vote(self, encoded: bytes) -> None:
        self.take_vote(codec.parse(pb.RequestVoteRep.FromString, encoded))

    def take_append_reply(self, record: pb.AppendEntryRep) -> None:
        reply = codec.append_entries_reply(record)
        if self._is_heard(record.header):
            self._services.deliver(reply)

    def take_heartbeat_reply(self, record: pb.HeartbeatRep) -> None:
        reply = codec.heartbeat_reply(record)
        if self._is_heard(record.header):
            self._services.deliver(reply)

    def take_vote(self, record: pb.RequestVoteRep) -> None:
        reply = codec.request_vote_reply(record)
        if self._is_heard(record.header):
            self._services.deliver(reply)

    def take_rest_answer(self, record: pb.RestRep) -> None:
        codec.header_of(record)
        if self._is_heard(record.header):
            self._services.deliver_note(RestAnswer(sender=self.peer, number=record.number, resting=record.resting))

    def _on_timeout_now(self, encoded: bytes) -> None:
        pass  # the election that follows is the answer

    def _is_heard(self, header: pb.Header) -> bool:
        """A reply is checked like a request, and must be the peer's."""
        sentence = refusal_of(header, self._services)
        if not sentence and header.sender != self.peer:
            sentence = f"node {header.sender} answers at {self.address}, not {self.peer}: correct the address"
        if sentence:
            self.not_heard(sentence)
        return not sentence

    def _ask(self, method: str, encoded: bytes, on_reply: Callable[[bytes], None]) -> None:
        """One unary request, whose reply comes as an event, if it comes in time."""
        question = object()

        def answered(future: Any) -> None:
            self._questions.discard(question)
            try:
                on_reply(future.result())
            except grpc.FutureCancelledError:
                pass
            except grpc.RpcError as error:
                self.failed(error)
            except BadMessage as error:
                log.warning("%s answered what is no reply: %s", self.peer, error)
            except Exception:
                if not self._closed:
                    log.exception("a reply of %s could not be handled", self.peer)

        try:
            rpc: Any = self.channel.get().unary_unary(f"/geraft.Raft/{method}")
            timeout_seconds = self._config.election_timeout_seconds
            future = rpc.future(encoded, timeout=timeout_seconds, metadata=self._metadata, wait_for_ready=True)
        except ValueError:
            return  # the channel was closed meanwhile
        self._questions.add(question)
        future.add_done_callback(answered)
