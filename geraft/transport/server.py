"""The RPCs of a node, and the gRPC server that listens for them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from geraft.config import Config
from geraft.core.entries import EntryId
from geraft.core.membership import Refusal
from geraft.core.messages import (
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
)
from geraft.errors import (
    AddressInUse,
    GeraftError,
    MembershipRefused,
    NodeStopped,
    OutcomeUnknown,
    ProposalDropped,
    ReadTimeout,
    Rejected,
    SnapshotFailed,
    TransferFailed,
    UnknownGroup,
)
from geraft.pb import geraft_pb2 as pb
from geraft.records import encode_configuration, encode_snapshot
from geraft.runtime.hub import Call, CallKind, SessionWrite, Waiter, finish, monotonic, native_lock, start_native_thread
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.transport import addresses, codec, failures, wishes
from geraft.transport.calls import (
    DEFAULT_TIMEOUT_SECONDS,
    MALFORMED_SESSION,
    UP_KEY,
    CallSession,
    consistency_of,
    well_formed,
)
from geraft.transport.codec import BadMessage
from geraft.transport.groups import group_of, unknown_group
from geraft.transport.grpc_mode import GrpcMode, Outbox, sleep
from geraft.transport.health import HEALTH_SERVICE, Reflection
from geraft.transport.pulse import RestOffer
from geraft.transport.services import Services

log = logging.getLogger(__name__)

SERVICE = "geraft.Raft"
HEADER_KEY = "geraft-header-bin"
"""Metadata with which a peer opens a stream: the pb.Header of what will follow, so that a refusal comes at once."""

RPCS_MAX = 1024
"""Served at a time; beyond that gRPC itself answers RESOURCE_EXHAUSTED."""
CALLERS_MAX = RPCS_MAX // 4
"""Of those, Call streams, and as many unary calls: callers can't crowd out the peers."""
WISH_TIMEOUT_SECONDS = 30.0
"""Of a change of the membership whose caller names none."""
SNAPSHOT_PIECE_BYTES = 512 * 1024
"""Of a snapshot, in one message."""
SNAPSHOT_WAITING_BYTES_MAX = 4 * 1024 * 1024
"""Read ahead of what the network has taken."""
SNAPSHOT_PAUSE_SECONDS = 0.005
SNAPSHOT_TIMEOUT_SECONDS = 60.0
"""For a snapshot that is asked for without a timeout."""
ANSWER_GRACE_SECONDS = 0.25
"""How much longer than the caller asked we wait for the node's own answer, which knows the reason."""


def refusal_sentence(refusal: Refusal, header: pb.Header, services: Services) -> str:
    """Why a message is not heard, and what to do about it."""
    match refusal:
        case Refusal.FOREIGN_CLUSTER:
            return (
                f"node {services.node_id} belongs to cluster {services.cluster_id}, not to {header.cluster_id} of"
                f" {header.sender}: correct the address under which {header.sender} looks for {header.receiver},"
                " or the bootstrap list, which must be the same on all of a cluster's first voters"
            )
        case Refusal.WRONG_RECEIVER:
            return (
                f"this is node {services.node_id}, not {header.receiver}: correct the address under which"
                f" {header.sender} looks for {header.receiver}"
            )
        case Refusal.STORE_REPLACED:
            return (
                f"node {header.sender} answers from another store than the one this cluster knows (its log and vote"
                " were lost): it can't come back under its old id; remove it and add it under a new id, or restore its"
                " data directory"
            )
    raise AssertionError(f"no sentence for {refusal!r}")


def refusal_of(header: pb.Header, services: Services) -> str:
    """Why we do not hear the sender of this header; "" if we do."""
    refusal: Refusal | None
    if header.cluster_id != services.cluster_id:
        refusal = Refusal.FOREIGN_CLUSTER
    elif header.receiver != services.node_id:
        refusal = Refusal.WRONG_RECEIVER
    else:
        refusal = services.admit(header.sender, header.sender_store)
    return "" if refusal is None else refusal_sentence(refusal, header, services)


class _Refused(Exception):
    """An RPC ends with this status and sentence."""

    def __init__(self, status: grpc.StatusCode, error: GeraftError) -> None:
        super().__init__(str(error))
        self.status = status
        self.failure = failures.failure_from_error(error)


def _malformed(error: BadMessage) -> _Refused:
    return _Refused(grpc.StatusCode.INVALID_ARGUMENT, Rejected(str(error)))


def _not_heard(sentence: str) -> _Refused:
    return _Refused(grpc.StatusCode.FAILED_PRECONDITION, Rejected(sentence))


class Replies(Protocol):
    """Where the replies to a peer go: an outbox of its stream, or a part of one that it shares."""

    def put(self, encoded: bytes) -> None: ...

    def close(self) -> None:
        """Another stream of the peer has taken its place."""


class _Guarded(grpc.GenericRpcHandler):
    """What is inside, for calls of one group; those that name another would be answered from the wrong state."""

    def __init__(self, inner: grpc.GenericRpcHandler, group: str, refusal: Callable[[str], UnknownGroup]) -> None:
        self._inner = inner
        self._group = group
        self._refusal = refusal

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = self._inner.service(handler_call_details)
        if found is None:
            return None
        named = group_of(handler_call_details.invocation_metadata)
        if not named or named == self._group:
            return found

        def refuse(requests: Any, context: grpc.ServicerContext) -> Any:
            failures.abort(context, self._refusal(named))

        return grpc.stream_stream_rpc_method_handler(refuse)  # which serves every shape, as no message is read


class RaftHandlers:
    """The service geraft.Raft over one node. Bytes from the wire are checked here; the node sees no wrong one.

    group: whose node it is, where groups have names; calls that name another are refused. services_of: the node of each
    group of the process, or UnknownGroup; for calls that name their group inside a Call stream. By default this node
    is alone.
    """

    def __init__(
        self,
        services: Services,
        mode: GrpcMode,
        config: Config,
        group: str = "",
        services_of: Callable[[str], Services] | None = None,
    ) -> None:
        self._services = services
        self._group = group
        self._services_of_others = services_of
        self._calls = CallStreams(self._services_of, mode, config.message_bytes_max)
        self._mode = mode
        self.config = config
        self._lock = native_lock()
        self._append_streams: dict[str, Replies] = {}
        self._heartbeat_streams: dict[str, Replies] = {}
        self._vote_streams: dict[str, Replies] = {}
        self._rest_streams: dict[str, Replies] = {}
        self._open: set[Outbox] = set()
        self._votes: dict[int, Waiter] = {}
        self._vote_numbers = itertools.count(1)
        self._unary_calls = 0
        self._closed = False

    def generic_handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server is given to serve us. Messages pass as bytes: the handlers decode them, and say what is
        wrong with those that are no messages. All calls that name another group than ours are refused here."""
        return _Guarded(self._every_method(), self._group, self._no_such_group)

    def _no_such_group(self, group: str) -> UnknownGroup:
        return unknown_group(group, f"node {self._services.node_id}", (self._group,) if self._group else ())

    def _services_of(self, group: str) -> Services:
        if group in ("", self._group):
            return self._services
        if self._services_of_others is None:
            raise self._no_such_group(group)
        return self._services_of_others(group)

    def _every_method(self) -> grpc.GenericRpcHandler:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "RequestVote": unary(self._guarded(self._request_vote)),
                "TimeoutNow": unary(self._guarded(self._timeout_now)),
                "GetSnapshot": grpc.unary_stream_rpc_method_handler(self._get_snapshot),
                "Backup": grpc.unary_stream_rpc_method_handler(self._backup),
                "TakeSnapshot": unary(self._guarded(self._take_snapshot)),
                "SendAppendEntry": stream(self._send_append_entry),
                "SendHeartbeat": stream(self._send_heartbeat),
                "RequestApply": unary(self._guarded(self._request_apply)),
                "RequestCommit": unary(self._guarded(self._request_commit)),
                "OpenSession": unary(self._guarded(self._open_session)),
                "CloseSession": unary(self._guarded(self._close_session)),
                "Call": stream(self._calls.serve),
                "RequestClusterInfo": unary(self._guarded(self._request_cluster_info)),
                "Status": unary(self._guarded(self._status)),
                "GetConfig": unary(self._guarded(self._get_config)),
                "TuneConfig": unary(self._guarded(self._tune_config)),
                "AddServer": unary(self._guarded(self._add_server)),
                "RemoveServer": unary(self._guarded(self._remove_server)),
                "ChangeMembership": unary(self._guarded(self._change_membership)),
                "TransferLeadership": unary(self._guarded(self._transfer_leadership)),
            },
        )

    def reply(self, to: str, message: AppendEntriesReply | HeartbeatReply | RequestVoteReply) -> None:
        """Send a reply on the newest stream of that peer, or to the vote handler that waits for it; dropped if there is
        none. Any thread; never blocks."""
        if isinstance(message, RequestVoteReply):
            if message.call:
                waiter = self._votes.pop(message.call, None)
                if waiter is not None:
                    finish([waiter], [message])
                return
            streams = self._vote_streams
        else:
            streams = self._append_streams if isinstance(message, AppendEntriesReply) else self._heartbeat_streams
        replies = streams.get(to)
        if replies is not None:
            replies.put(codec.encode(message, self._services.cluster_id, to, self._services.group))

    def answer_rest(self, to: str, term: int, number: int, resting: bool) -> None:
        """Tell a leader whether we rest, as its offer of that number wants. Any thread; never blocks."""
        services = self._services
        replies = self._rest_streams.get(to)
        if replies is not None:
            header = pb.Header(
                cluster_id=services.cluster_id,
                sender=services.node_id,
                receiver=to,
                sender_store=services.store_id,
                term=term,
                group=services.group,
            )
            replies.put(pb.RestRep(header=header, number=number, resting=resting).SerializeToString())

    # Messages on a stream that peers of many groups share

    def take(self, header: pb.Header, message: PeerMessage | RestOffer, replies: Replies) -> str:
        """Hand in a message whose replies go there; why it is not heard, "" if it is. Any thread; never blocks."""
        try:
            sentence = refusal_of(header, self._services)
            if sentence:
                return sentence
            match message:
                case RestOffer():
                    streams = self._rest_streams
                case RequestVote():
                    streams = self._vote_streams
                case Heartbeat():
                    streams = self._heartbeat_streams
                case _:
                    streams = self._append_streams
            if streams.get(message.sender) is not replies:
                with self._lock:
                    streams[message.sender] = replies
            if isinstance(message, RestOffer):
                self._services.deliver_note(message)
            else:
                self._services.deliver(message)
        except GeraftError:
            raise
        except Exception as error:  # of this node: the stream carries the messages of others
            log.exception("a message of peer %s could not be handled", header.sender)
            return f"internal error of node {self._services.node_id}: {error}"
        return ""

    def forget(self, gone: Collection[Replies]) -> None:
        """A shared stream ended: nothing more goes there. Its successor may be taking over in another thread."""
        with self._lock:
            for streams in (self._append_streams, self._heartbeat_streams, self._vote_streams, self._rest_streams):
                for sender, replies in list(streams.items()):
                    if replies in gone:
                        streams.pop(sender, None)

    @property
    def sessions(self) -> int:
        """Callers' streams that are open."""
        return self._calls.count

    @property
    def services(self) -> Services:
        """The node."""
        return self._services

    def close(self) -> None:
        """End every open stream. Any thread."""
        self._calls.close()
        with self._lock:
            self._closed = True
            outboxes = list(self._open)
        for outbox in outboxes:
            outbox.close()

    # Streams of peers

    def _send_append_entry(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        def decode(encoded: bytes) -> tuple[pb.Header, PeerMessage]:
            record = codec.parse(pb.AppendEntryReq.FromString, encoded)
            return record.header, codec.append_entries(record)

        return self._peer_stream(requests, context, decode, self._append_streams)

    def _send_heartbeat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        def decode(encoded: bytes) -> tuple[pb.Header, PeerMessage]:
            record = codec.parse(pb.HeartbeatReq.FromString, encoded)
            return record.header, codec.heartbeat(record)

        return self._peer_stream(requests, context, decode, self._heartbeat_streams)

    def _peer_stream(
        self,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        decode: Callable[[bytes], tuple[pb.Header, PeerMessage]],
        streams: dict[str, Replies],
    ) -> Iterator[bytes]:
        """One thread or greenlet, the handler's, sends what is in the outbox; a second one reads the requests."""
        end: list[_Refused] = []
        try:
            self._check_opening(context)
        except _Refused as refused:
            failures.refuse(context, refused.status, refused.failure)
        outbox = self._open_outbox(context)
        try:
            self._say_up(context)
            self._mode.spawn(self._read_peer, requests, decode, streams, outbox, end, name="geraft peer reader")
            yield from outbox
        finally:
            self._forget(outbox)
        if end:
            failures.refuse(context, end[0].status, end[0].failure)

    def _check_opening(self, context: grpc.ServicerContext) -> None:
        for key, value in context.invocation_metadata() or ():
            if key == HEADER_KEY:
                try:
                    header = pb.Header.FromString(value)  # type: ignore[arg-type]  # keys in -bin carry bytes
                    codec.check_header(header)
                except DecodeError:
                    raise _malformed(BadMessage("the header in the metadata is none")) from None
                except BadMessage as error:
                    raise _malformed(error) from None
                sentence = refusal_of(header, self._services)
                if sentence:
                    raise _not_heard(sentence)

    def _read_peer(
        self,
        requests: Iterator[bytes],
        decode: Callable[[bytes], tuple[pb.Header, PeerMessage]],
        streams: dict[str, Replies],
        outbox: Outbox,
        end: list[_Refused],
    ) -> None:
        services = self._services
        sender = ""
        try:
            for encoded in requests:
                header, message = decode(encoded)
                sentence = refusal_of(header, services)
                if sentence:
                    raise _not_heard(sentence)
                if message.sender != sender:
                    if sender:
                        raise BadMessage("a stream carries the messages of one sender")
                    sender = message.sender
                    replaced = streams.get(sender)
                    streams[sender] = outbox
                    if replaced is not None:
                        replaced.close()
                services.deliver(message)
            if not sender:
                raise BadMessage("the stream ended without a message")
        except BadMessage as error:
            end.append(_malformed(error))
        except _Refused as refused:
            end.append(refused)
        except GeraftError as error:
            end.append(_Refused(failures.status_from_error(error), error))
        except grpc.RpcError:
            pass  # the other side is gone
        except Exception as error:
            if not outbox.closed:
                log.exception("a message of peer %s could not be handled", sender or "(unknown)")
                end.append(_Refused(grpc.StatusCode.INTERNAL, NodeStopped(f"internal error: {error}")))
        finally:
            if sender and streams.get(sender) is outbox:
                del streams[sender]
            outbox.close()

    def _open_outbox(self, context: grpc.ServicerContext) -> Outbox:
        outbox = self._mode.outbox()
        with self._lock:
            closed = self._closed
            self._open.add(outbox)
        if closed:
            self._forget(outbox)
            failures.abort(context, NodeStopped("the node is stopping"))
        return outbox

    def _say_up(self, context: grpc.ServicerContext) -> None:
        say_up(context, self._services.node_id)

    def _forget(self, outbox: Outbox) -> None:
        with self._lock:
            self._open.discard(outbox)

    # Snapshots

    def _get_snapshot(self, encoded: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """A native thread reads what the app gives, as that may block; the handler sends it on."""
        end: list[_Refused] = []
        try:
            record = codec.parse(pb.GetSnapshotReq.FromString, encoded)
            last_entry, offset = codec.snapshot_request(record)
            self._refuse_unheard(record.header)
        except BadMessage as error:
            end.append(_malformed(error))
        except _Refused as refused:
            end.append(refused)
        if not end:
            yield from self._send_snapshot(last_entry, offset, record.header.sender, context, end)
        if end:
            failures.refuse(context, end[0].status, end[0].failure)

    def _backup(self, encoded: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """As _get_snapshot, of a snapshot that is made now, and for anybody."""
        end: list[_Refused] = []
        try:
            record = codec.parse(pb.BackupReq.FromString, encoded)
            self._make_snapshot(record.timeout_ms, context)
        except BadMessage as error:
            end.append(_malformed(error))
        except GeraftError as error:
            end.append(_Refused(failures.status_from_error(error), error))
        if not end:
            newest = self._services.newest_snapshot
            if newest is None:
                nothing = Rejected("nothing was applied yet, so there is nothing to back up")
                end.append(_Refused(grpc.StatusCode.FAILED_PRECONDITION, nothing))
            else:
                yield from self._send_snapshot(newest.last_entry, 0, "", context, end)
        if end:
            failures.refuse(context, end[0].status, end[0].failure)

    def _send_snapshot(
        self, last_entry: EntryId, offset: int, receiver: str, context: grpc.ServicerContext, end: list[_Refused]
    ) -> Iterator[bytes]:
        outbox = self._open_outbox(context)
        context.add_callback(outbox.close)
        try:
            start_native_thread(
                lambda: self._read_snapshot(last_entry, offset, receiver, outbox, end),
                name="geraft snapshot reader",
            )
            yield from outbox
        finally:
            outbox.close()
            self._forget(outbox)

    def _read_snapshot(
        self, last_entry: EntryId, offset: int, receiver: str, outbox: Outbox, end: list[_Refused]
    ) -> None:
        services = self._services
        try:
            with services.reading_snapshot(last_entry) as (snapshot, chunks):
                header = pb.Header(
                    cluster_id=services.cluster_id,
                    sender=services.node_id,
                    receiver=receiver,
                    sender_store=services.store_id,
                    group=services.group,
                )
                head = pb.GetSnapshotRep(header=header, snapshot=encode_snapshot(snapshot))
                outbox.put(head.SerializeToString())
                for chunk in pieces_of(chunks, offset):
                    while outbox.waiting_bytes > SNAPSHOT_WAITING_BYTES_MAX and not outbox.closed:
                        sleep(SNAPSHOT_PAUSE_SECONDS)
                    if outbox.closed:
                        return
                    outbox.put(pb.GetSnapshotRep(chunk=chunk).SerializeToString(), len(chunk))
        except KeyError:
            sentence = f"node {services.node_id} holds no snapshot {last_entry.term}.{last_entry.index} (any more)"
            end.append(_Refused(grpc.StatusCode.NOT_FOUND, Rejected(sentence)))
        except Exception as error:
            log.exception("snapshot %d.%d could not be read for %s", *last_entry, receiver)
            end.append(_Refused(grpc.StatusCode.DATA_LOSS, Rejected(f"the snapshot can't be read: {error}")))
        finally:
            outbox.close()

    def _take_snapshot(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.TakeSnapshotReq.FromString, encoded)
        return pb.TakeSnapshotRep(index=self._make_snapshot(record.timeout_ms, context)).SerializeToString()

    def _make_snapshot(self, timeout_ms: int, context: grpc.ServicerContext) -> int:
        timeout_seconds = _within(context, timeout_ms / 1000 or SNAPSHOT_TIMEOUT_SECONDS)
        index: int = self._services.take_snapshot().result(
            timeout_seconds, lambda: SnapshotFailed(f"no snapshot was made within {timeout_seconds:.1f} s")
        )
        return index

    # Unary calls of peers

    def _request_vote(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.RequestVoteReq.FromString, encoded)
        number = next(self._vote_numbers)
        message = codec.request_vote(record, number)
        self._refuse_unheard(record.header)
        waiter = self._votes[number] = Waiter()
        try:
            self._services.deliver(message)
            reply: RequestVoteReply = waiter.result(
                _within(context, self.config.election_timeout_seconds),
                lambda: ReadTimeout("the vote was not decided in time"),
            )
        finally:
            self._votes.pop(number, None)
        return codec.encode(reply, self._services.cluster_id, message.sender, self._services.group)

    def _timeout_now(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.TimeoutNowReq.FromString, encoded)
        message = codec.timeout_now(record)
        self._refuse_unheard(record.header)
        self._services.deliver(message)
        header = pb.Header(
            cluster_id=self._services.cluster_id,
            sender=self._services.node_id,
            receiver=message.sender,
            sender_store=self._services.store_id,
            term=message.term,
            group=self._services.group,
        )
        return pb.TimeoutNowRep(header=header).SerializeToString()

    def _refuse_unheard(self, header: pb.Header) -> None:
        sentence = refusal_of(header, self._services)
        if sentence:
            raise _not_heard(sentence)

    # Callers

    def _request_apply(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.ApplyReq.FromString, encoded)
        call = Call(
            CallKind.APPLY if record.mutation else CallKind.READ,
            record.message,
            deadline=_deadline(context, record.timeout_ms),
            wait_for_leader=record.wait_for_leader,
            consistency=consistency_of(record.consistency),
            forwarded=record.forwarded,
            session=_session_write(record),
        )
        return pb.ApplyRep(message=self._answered(call)).SerializeToString()

    def _request_commit(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.CommitReq.FromString, encoded)
        call = Call(
            CallKind.COMMIT,
            record.message,
            deadline=_deadline(context, record.timeout_ms),
            wait_for_leader=record.wait_for_leader,
            forwarded=record.forwarded,
            session=_session_write(record),
        )
        return pb.CommitRep(index=self._answered(call)).SerializeToString()

    def _open_session(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.OpenSessionReq.FromString, encoded)
        call = Call(
            CallKind.OPEN_SESSION,
            b"",
            deadline=_deadline(context, record.timeout_ms),
            wait_for_leader=record.wait_for_leader,
            forwarded=record.forwarded,
            session=SessionWrite(0, 0, 0),
        )
        return pb.OpenSessionRep(session=self._answered(call)).SerializeToString()

    def _close_session(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.CloseSessionReq.FromString, encoded)
        call = Call(
            CallKind.CLOSE_SESSION,
            b"",
            deadline=_deadline(context, record.timeout_ms),
            wait_for_leader=record.wait_for_leader,
            forwarded=record.forwarded,
            session=SessionWrite(record.session, 0, 0) if record.session else None,
        )
        self._answered(call)
        return pb.CloseSessionRep().SerializeToString()

    def _answered(self, call: Call) -> Any:
        """The node's answer to the call; waits for it."""
        if not well_formed(call.kind, call.session):
            raise BadMessage(MALFORMED_SESSION)
        with self._lock:
            if self._unary_calls >= CALLERS_MAX:
                raise ProposalDropped(f"{CALLERS_MAX} unary calls wait already: try again, or use the Call stream")
            self._unary_calls += 1
        try:
            self._services.submit(call)
            timeout_seconds = call.deadline - monotonic()
            return call.result(timeout_seconds + ANSWER_GRACE_SECONDS, lambda: timed_out(call))
        finally:
            with self._lock:
                self._unary_calls -= 1

    # Wishes for the leader

    def _add_server(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.AddServerReq.FromString, encoded)
        if record.cluster_id not in ("", self._services.cluster_id):
            raise MembershipRefused(
                f"{record.id} holds the state of cluster {record.cluster_id}, and this is {self._services.cluster_id}:"
                " start it over an empty store to join"
            )
        return self._new_members(wishes.decode_add(record, _wish_deadline(context, record.timeout_ms)))

    def _remove_server(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.RemoveServerReq.FromString, encoded)
        return self._new_members(wishes.decode_remove(record, _wish_deadline(context, record.timeout_ms)))

    def _change_membership(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.ChangeMembershipReq.FromString, encoded)
        return self._new_members(wishes.decode_change(record, _wish_deadline(context, record.timeout_ms)))

    def _transfer_leadership(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.TransferLeadershipReq.FromString, encoded)
        self._fulfilled(wishes.decode_transfer(record, _wish_deadline(context, record.timeout_ms)))
        return pb.TransferLeadershipRep().SerializeToString()

    def _new_members(self, change: Change) -> bytes:
        configuration = encode_configuration(self._fulfilled(change))
        return pb.MembershipRep(configuration=configuration).SerializeToString()

    def _fulfilled(self, wish: Wish) -> Any:
        """The node's answer to the wish; waits for it."""
        with self._lock:
            if self._unary_calls >= CALLERS_MAX:
                raise ProposalDropped(f"{CALLERS_MAX} unary calls wait already: try again")
            self._unary_calls += 1
        try:
            self._services.submit_wish(wish)
            return wish.result(wish.deadline - monotonic() + ANSWER_GRACE_SECONDS, lambda: wish_timed_out(wish))
        finally:
            with self._lock:
                self._unary_calls -= 1

    def _request_cluster_info(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        codec.parse(pb.ClusterInfoReq.FromString, encoded)
        return self._services.cluster_info().SerializeToString()

    def _status(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        codec.parse(pb.StatusReq.FromString, encoded)
        return self._services.status().SerializeToString()

    def _get_config(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        codec.parse(pb.GetConfigReq.FromString, encoded)
        return pb.GetConfigRep(settings=codec.settings(self._services.config)).SerializeToString()

    def _tune_config(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        record = codec.parse(pb.TuneConfigReq.FromString, encoded)
        tuning = self._services.tuning(dict(record.changes))
        self._services.submit(tuning)
        config: Config = tuning.result(
            _within(context, DEFAULT_TIMEOUT_SECONDS),
            lambda: OutcomeUnknown("not tuned in time; it may still be"),
        )
        return pb.TuneConfigRep(settings=codec.settings(config)).SerializeToString()

    def _guarded(
        self, handler: Callable[[bytes, grpc.ServicerContext], bytes]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        """The handler, with every way to fail turned into a status and a failure; the node lives on."""

        def guarded(encoded: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return handler(encoded, context)
            except BadMessage as error:
                ending = _malformed(error)
            except _Refused as refused:
                ending = refused
            except GeraftError as error:
                ending = _Refused(failures.status_from_error(error), error)
            except Exception as error:
                log.exception("an RPC failed")
                ending = _Refused(grpc.StatusCode.INTERNAL, OutcomeUnknown(f"internal error: {error}"))
            failures.refuse(context, ending.status, ending.failure)
            raise AssertionError("refuse raises")

        return guarded


class CallStreams:
    """Serves the streams of callers, at most CALLERS_MAX at a time. services_of: as in CallSession."""

    def __init__(self, services_of: Callable[[str], Services], mode: GrpcMode, message_bytes_max: int) -> None:
        self._services_of = services_of
        self._mode = mode
        self._message_bytes_max = message_bytes_max
        self._lock = native_lock()
        self._open: set[Outbox] = set()
        self._closed = False

    @property
    def count(self) -> int:
        """That are open."""
        return len(self._open)

    def serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """The handler's thread or greenlet sends the answers; a second one reads the calls."""
        outbox = self._mode.outbox()
        with self._lock:
            closed, full = self._closed, len(self._open) >= CALLERS_MAX
            if not closed and not full:
                self._open.add(outbox)
        if closed:
            failures.abort(context, NodeStopped("the node is stopping"))
        if full:
            failures.abort(context, ProposalDropped(f"{CALLERS_MAX} callers have streams open: try another node"))
        try:
            say_up(context, "")
            session = CallSession(self._services_of, outbox, self._message_bytes_max)
            self._mode.spawn(session.read, requests, name="geraft caller reader")
            yield from session.answers()
        finally:
            outbox.close()
            with self._lock:
                self._open.discard(outbox)
        if session.error is not None:
            failures.abort(context, session.error)

    def close(self) -> None:
        """End every stream. Any thread."""
        with self._lock:
            self._closed = True
            outboxes = list(self._open)
        for outbox in outboxes:
            outbox.close()


def say_up(context: grpc.ServicerContext, node_id: str) -> None:
    """Tell the other end that its stream is taken. node_id: of the node that it belongs to, if it is that of one."""
    context.send_initial_metadata(((UP_KEY, node_id.encode() or b"-"),))


def _session_write(record: pb.ApplyReq | pb.CommitReq) -> SessionWrite | None:
    return SessionWrite(record.session, record.number, record.answered_below) if record.session else None


def pieces_of(chunks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """The bytes from `offset` on, in pieces of a good size for a message."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for chunk in chunks:
        if offset >= len(chunk):
            offset -= len(chunk)
            continue
        for start in range(offset, len(chunk), SNAPSHOT_PIECE_BYTES):
            piece = chunk[start : start + SNAPSHOT_PIECE_BYTES]
            waiting.append(piece)
            waiting_bytes += len(piece)
            if waiting_bytes >= SNAPSHOT_PIECE_BYTES // 2:
                yield b"".join(waiting)
                waiting, waiting_bytes = [], 0
        offset = 0
    if waiting:
        yield b"".join(waiting)


def timed_out(call: Call) -> GeraftError:
    """What a call that got no answer within its time is told."""
    if call.kind is CallKind.READ:
        return ReadTimeout("the read was not answered in time")
    return OutcomeUnknown("the write was not answered in time: it may have happened, or may still happen")


def wish_timed_out(wish: Wish) -> GeraftError:
    """What the caller of a wish is told that got no answer within its time."""
    if isinstance(wish, Transfer):
        return TransferFailed("no outcome in time; the transfer may still come about")
    return OutcomeUnknown("the change was not complete in time: look at the members, and ask again if need be")


def _wish_deadline(context: grpc.ServicerContext, timeout_ms: int) -> float:
    deadline: float = monotonic() + _within(context, timeout_ms / 1000 or WISH_TIMEOUT_SECONDS)
    return deadline


def _within(context: grpc.ServicerContext, seconds: float) -> float:
    """So many seconds, or what the RPC's own deadline leaves."""
    remaining = context.time_remaining()  # None if the caller set no deadline, whatever the stubs say
    return min(seconds, float(remaining)) if remaining is not None else seconds


def _deadline(context: grpc.ServicerContext, timeout_ms: int) -> float:
    deadline: float = monotonic() + _within(context, timeout_ms / 1000 or DEFAULT_TIMEOUT_SECONDS)
    return deadline


def server_options(bytes_max: int) -> tuple[tuple[str, int], ...]:
    """Of every gRPC server with a node on it."""
    return (
        ("grpc.max_send_message_length", bytes_max),
        ("grpc.max_receive_message_length", bytes_max),
        # Peers ping twice a second to notice a stopped process: that is no misbehaviour.
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # Callers that vanished without a word are noticed too, and their streams ended.
        ("grpc.keepalive_time_ms", 5000),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.http2.ping_timeout_ms", 5000),
    )


class RaftServer:
    """A gRPC server for these handlers, and for reflection. It does not end them."""

    def __init__(
        self, handlers: Sequence[grpc.GenericRpcHandler], mode: GrpcMode, listen: str, message_bytes_max: int
    ) -> None:
        self._handlers = handlers
        self._mode = mode
        self._listen = listen
        self._message_bytes_max = message_bytes_max
        self._server: grpc.Server | None = None
        self.address = ""
        """Where it listens; known once started."""

    def start(self) -> None:
        """Bind and serve. Port 0 picks one. Raises AddressInUse, or ConfigError if it is no address of this machine."""
        self._mode.call(self._start, timeout_seconds=30.0)

    def _start(self) -> None:
        host, _ = addresses.split(self._listen)
        addresses.check_free(self._listen)
        server = grpc.server(
            self._mode.executor(RPCS_MAX),  # type: ignore[arg-type]  # any Executor will do
            handlers=[*self._handlers, *Reflection(SERVICE, HEALTH_SERVICE).handlers()],
            options=[("grpc.so_reuseport", 0), *server_options(self._message_bytes_max)],  # or two could bind it
            maximum_concurrent_rpcs=RPCS_MAX,
        )
        try:
            port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise AddressInUse(f"{self._listen} was taken just now, or gRPC can't listen there: {error}") from None
        server.start()
        self._server = server
        self.address = addresses.join(host, port)

    def stop(self, grace_seconds: float = 0.5, timeout_seconds: float = 5.0) -> None:
        """Take no more RPCs, and give those under way grace_seconds to end. Ends within timeout_seconds."""
        server, self._server = self._server, None
        if server is not None:

            def stop() -> None:
                server.stop(grace_seconds).wait(timeout_seconds)

            self._mode.call(stop, timeout_seconds=timeout_seconds + 1.0)
