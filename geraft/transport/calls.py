"""Callers' writes and reads over one stream per caller: rpc Call. Both ends of it.

What waits when a message leaves goes with it, in both directions: a call costs its share of a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

from geraft.errors import (
    GeraftError,
    NodeStopped,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    Rejected,
    UnknownGroup,
    Unreachable,
)
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import (
    Call,
    CallKind,
    Consistency,
    RemoteCall,
    SessionWrite,
    fail,
    finish,
    monotonic,
    native_lock,
)
from geraft.transport import codec, failures
from geraft.transport.codec import BadMessage
from geraft.transport.groups import metadata_of
from geraft.transport.grpc_mode import GrpcMode, LazyChannel, Outbox
from geraft.transport.services import Services

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_SECONDS = 5.0
"""Of a call whose caller names none."""
TIMEOUT_MS_MAX = 2**32 - 1
UNANSWERED_MAX = 10_000
"""Calls of one stream; further ones are answered ProposalDropped."""
ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""Of answers that a caller does not take; beyond that its calls are answered ProposalDropped, as with too many."""
PACK_BYTES = 1024 * 1024
PACK_COUNT = 4096
"""About what one message carries, when many calls or answers wait; a single larger one goes alone."""
SWEEP_SECONDS = 1.0
"""How often the asking end looks for calls whose time has long run out."""
SWEEP_GRACE_SECONDS = 5.0

_CALL = "/geraft.Raft/Call"


UP_KEY = "geraft-node-bin"
"""Initial metadata with which a server says that it takes the stream: the id of the node that does, or "-" if it is for
several. A refused stream has none."""


def wait_until_up(rpc: Any) -> bool:
    """Block until the other end has taken the stream; False if it failed first."""
    return any(key == UP_KEY for key, _ in rpc.initial_metadata() or ())


INDEX_KINDS = frozenset({CallKind.COMMIT, CallKind.OPEN_SESSION, CallKind.CLOSE_SESSION})
"""Answered with an index and no bytes."""
MALFORMED_SESSION = "a write of a session needs a number from 1 on, a closing needs the session, and a read has none"


def well_formed(kind: CallKind, session: SessionWrite | None) -> bool:
    """Whether a call of that kind can be of that session."""
    match kind:
        case CallKind.READ:
            return session is None
        case CallKind.APPLY | CallKind.COMMIT:
            return session is None or (session.session > 0 and session.number > 0)
        case CallKind.OPEN_SESSION:
            return session == SessionWrite(0, 0, 0)
        case CallKind.CLOSE_SESSION:
            return session is not None and session.number == 0


def consistency_of(number: int) -> Consistency:
    try:
        return Consistency(number)
    except ValueError:
        raise BadMessage(f"unknown consistency {number}: a newer geraft asks") from None


class CallSession:
    """The answering end of one Call stream.

    One thread or greenlet runs `read`, another sends what `answers` gives; calls are answered in any order.
    services_of: the node of a group, or with "" the one that the stream was opened for; raises UnknownGroup. In the
    thread of `read`; must not block.
    """

    def __init__(self, services_of: Callable[[str], Services], outbox: Outbox, message_bytes_max: int) -> None:
        self._services_of = services_of
        self._services: Services | None = None
        """Of the calls that name no group; known from the first of them on."""
        self._outbox = outbox
        self._message_bytes_max = message_bytes_max
        self._received = 0  # counted by the reader
        self._answered = 0  # counted by the sender
        self._ended = False  # no more calls will come
        self.error: GeraftError | None = None
        """Why the stream is ended by us; None if the caller ended it."""

    def read(self, requests: Iterator[bytes]) -> None:
        """Hand in every call of the stream, until it ends."""
        try:
            for encoded in requests:
                record = codec.parse(pb.CallReq.FromString, encoded)
                for item in record.calls:
                    self._take(item, record.forwarded)
        except BadMessage as error:
            self.error = Rejected(str(error))
            self._outbox.close()
        except GeraftError as error:
            self.error = error
            self._outbox.close()
        except grpc.RpcError:
            self._outbox.close()  # the caller is gone
        except Exception as error:
            if not self._outbox.closed:
                log.exception("a call could not be handed in")
                self.error = NodeStopped(f"internal error: {error}")
            self._outbox.close()
        else:
            self._ended = True
            if self._answered == self._received:
                self._outbox.close()

    def _take(self, item: pb.CallItem, forwarded: bool) -> None:
        self._received += 1
        number = item.number
        session = None
        if item.session or item.kind == pb.CALL_KIND_OPEN_SESSION:
            session = SessionWrite(item.session, item.write_number, item.answered_below)
        try:
            call = RemoteCall(
                CallKind(item.kind),
                item.message,
                deadline=monotonic() + (item.timeout_ms / 1000 or DEFAULT_TIMEOUT_SECONDS),
                number=number,
                sink=self._answer,
                wait_for_leader=item.wait_for_leader,
                consistency=Consistency(item.consistency),
                forwarded=forwarded,
                session=session,
            )
        except ValueError:
            self._outbox.put([_failed(number, Rejected("unknown kind of call or consistency: a newer geraft asks"))])
            return
        if not well_formed(call.kind, session):
            self._outbox.put([_failed(number, Rejected(MALFORMED_SESSION))])
            return
        if self._received - self._answered > UNANSWERED_MAX or self._outbox.waiting_bytes > ANSWER_BYTES_MAX:
            sentence = "too many calls of this stream wait, or too many bytes of answers: take some answers first"
            self._outbox.put([_failed(number, ProposalDropped(sentence))])
            return
        group = item.group
        try:
            services = self._services
            if group or services is None:
                services = self._services_of(group)  # each time: groups come and go while the stream lives
                if not group:
                    self._services = services
            services.submit(call)
        except GeraftError as error:
            self._outbox.put([_failed(number, error)])

    def _answer(self, calls: Sequence[RemoteCall]) -> None:
        """The sink of every call of this stream."""
        self._outbox.put(calls, sum(len(call.value) for call in calls if isinstance(call.value, bytes)))

    def answers(self) -> Iterator[bytes]:
        """Messages with the answers, as they come; ends when the stream should."""
        outbox = self._outbox
        for group in outbox:
            more: Sequence[Any] | None = group
            record, size, count = pb.CallRep(), 0, 0
            while more is not None:
                for done in more:
                    answer = done if isinstance(done, pb.CallAnswer) else self._answer_of(done)
                    length = len(answer.message)
                    if count and (size + length > PACK_BYTES or count >= PACK_COUNT):
                        yield self._packed(record, count)
                        record, size, count = pb.CallRep(), 0, 0
                    record.answers.append(answer)
                    size += length
                    count += 1
                more = outbox.take_more()
            yield self._packed(record, count)
            if self._ended and self._answered == self._received:
                return

    def _packed(self, record: pb.CallRep, count: int) -> bytes:
        self._answered += count
        return record.SerializeToString()

    def _answer_of(self, call: RemoteCall) -> pb.CallAnswer:
        if call.error is not None:
            return _failed(call.number, call.error)
        if call.kind in INDEX_KINDS:
            return pb.CallAnswer(number=call.number, index=call.value)
        if not isinstance(call.value, bytes):
            return _failed(
                call.number, Rejected(f"the app answered {type(call.value).__name__}, not bytes: correct its methods")
            )
        if len(call.value) > self._message_bytes_max - PACK_BYTES:
            sentence = f"the answer of {len(call.value)} bytes is larger than message_bytes_max of the node"
            return _failed(call.number, Rejected(sentence) if call.kind is CallKind.READ else OutcomeUnknown(sentence))
        return pb.CallAnswer(number=call.number, message=call.value)


def _failed(number: int, error: BaseException) -> pb.CallAnswer:
    return pb.CallAnswer(number=number, failure=failures.failure_from_error(error))


Returned = Callable[[list[Call], GeraftError], None]
"""Gets calls that certainly did not happen, and why. In any thread; must not block."""


class CallStream:
    """The asking end of a Call stream over a channel. Calls are handed in by any thread and answered in place.

    returned: who gets back the calls that certainly did not happen here and may elsewhere (never sent, or a read, or
    the other end does not lead); by default they are answered with the error. A write that was sent when the stream
    broke is answered OutcomeUnknown.
    timeout_margin_seconds: how much sooner than our caller the other end shall give up, so that its reason gets here.
    peer: how the other end is named in errors. group: which of its groups is meant by calls that name none.
    """

    def __init__(
        self,
        channel: LazyChannel,
        mode: GrpcMode,
        peer: str,
        *,
        forwarded: bool = False,
        timeout_margin_seconds: float = 0.0,
        returned: Returned | None = None,
        group: str = "",
    ) -> None:
        self._channel = channel
        self._mode = mode
        self._peer = peer
        self._forwarded = forwarded
        self._timeout_margin_seconds = timeout_margin_seconds
        self._returned: Returned = returned or fail
        self._metadata = metadata_of(group)
        self._notes: dict[Call, tuple[str, Returned]] = {}
        """Of calls that name a group, or whom to give them back to: as long as they are unanswered."""
        self._outbox = mode.outbox()
        self._up = mode.outbox()
        """Told once when the stream is up: nothing is taken for sent before."""
        self._lock = native_lock()
        self._sent: dict[int, Call] = {}
        self._number = 0
        self._rpc: Any = None
        self._sweep_at = monotonic() + SWEEP_SECONDS
        self._error: GeraftError | None = None
        mode.spawn(self._run, name="geraft call stream")

    @property
    def broken(self) -> bool:
        """Whether it takes no more calls: make a new one."""
        return self._error is not None

    @property
    def unanswered(self) -> int:
        """Calls that were sent, or are about to be, and have no answer yet."""
        return len(self._sent) + self._outbox.waiting_count

    def submit(self, calls: Iterable[Call], group: str = "", returned: Returned | None = None) -> None:
        """Send the calls; each is answered once, or given back. Any thread; never blocks.

        group: which of the other end's groups is meant, by default that of the stream. returned: who gets these calls
        back, by default whom the stream has for it.
        """
        calls = list(calls)
        with self._lock:
            error = self._error
            if error is None:
                if group or returned is not None:
                    self._notes.update(dict.fromkeys(calls, (group, returned or self._returned)))
                for call in calls:
                    self._outbox.put(call, len(call.message))
        if error is not None:
            (returned or self._returned)(calls, error)
        elif monotonic() > self._sweep_at:
            self._sweep()

    def close(self) -> None:
        """End the stream; calls that were sent are answered as if it had broken. Any thread."""
        rpc = self._rpc
        if rpc is not None:
            self._mode.enter(rpc.cancel, name="geraft call stream close")
        self._break(Unreachable(f"the connection to {self._peer} was closed"))

    def _run(self) -> None:
        """Read the answers; runs beside, until the stream breaks."""
        error: GeraftError = Unreachable(f"{self._peer} closed the connection")
        try:
            open_call: Any = self._channel.get().stream_stream(_CALL)
            rpc = self._rpc = open_call(self._requests(), metadata=self._metadata)
            if self._error is not None:  # closed meanwhile
                rpc.cancel()
            if wait_until_up(rpc):
                self._up.put(True)
            for encoded in rpc:
                self._answered(codec.parse(pb.CallRep.FromString, encoded))
        except grpc.RpcError as failed:
            error = failures.error_from_rpc(failed, self._peer)
        except BadMessage as bad:
            error = Unreachable(f"{self._peer}: {bad}")
        except Exception as unexpected:
            if not isinstance(unexpected, ValueError):  # which a closed channel raises
                log.exception("the call stream to %s failed", self._peer)
            error = Unreachable(f"{self._peer}: {unexpected}")
        finally:
            self._break(error)

    def _break(self, error: GeraftError) -> None:
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            sent, self._sent = list(self._sent.values()), {}
            unsent = []
            while (call := self._outbox.take_more()) is not None:
                unsent.append(call)
        self._up.close()
        self._outbox.close()
        unknown = [call for call in sent if call.kind is not CallKind.READ]
        unsent += [call for call in sent if call.kind is CallKind.READ]
        if unknown:
            self._forget(unknown)
            sentence = f"the connection broke before the answer came ({error}): the write may have happened"
            fail(unknown, OutcomeUnknown(sentence))
        if unsent:
            kept = isinstance(error, Unreachable | UnknownGroup)
            self._give_back(unsent, error if kept else Unreachable(str(error)))

    def _give_back(self, calls: list[Call], error: GeraftError) -> None:
        """To each who wanted some of them back, all of those at once."""
        if not self._notes:
            self._returned(calls, error)
            return
        theirs: dict[Returned, list[Call]] = {}
        for call in calls:
            _, returned = self._notes.pop(call, ("", self._returned))
            theirs.setdefault(returned, []).append(call)
        for returned, some in theirs.items():
            returned(some, error)

    def _forget(self, calls: Iterable[Call]) -> None:
        """They are answered."""
        if self._notes:
            for call in calls:
                self._notes.pop(call, None)

    def _requests(self) -> Iterator[bytes]:
        """What the calls that wait are packed into; runs where gRPC consumes it."""
        outbox, notes = self._outbox, self._notes
        if not next(self._up, False):
            return
        for call in outbox:
            record = pb.CallReq(forwarded=self._forwarded)
            size = count = 0
            now = monotonic()
            while True:
                with self._lock:
                    lost = self._error
                    if lost is not None:
                        break
                    self._number += 1
                    number = self._number
                    self._sent[number] = call
                remaining = call.deadline - now
                remaining -= min(self._timeout_margin_seconds, remaining / 5)
                item = record.calls.add(
                    number=number,
                    kind=int(call.kind),
                    message=call.message,
                    consistency=int(call.consistency),
                    timeout_ms=min(max(int(remaining * 1000), 1), TIMEOUT_MS_MAX),
                    wait_for_leader=call.wait_for_leader,
                )
                if call.session is not None:
                    item.session, item.write_number, item.answered_below = call.session
                if notes and (note := notes.get(call)) is not None:
                    item.group = note[0]
                size += len(call.message)
                count += 1
                if size >= PACK_BYTES or count >= PACK_COUNT:
                    break
                more = outbox.take_more()
                if more is None:
                    break
                call = more
            if lost is not None:
                self._give_back([call], lost)
                return
            yield record.SerializeToString()

    def _answered(self, record: pb.CallRep) -> None:
        done, values = [], []
        failed: dict[bytes, tuple[GeraftError, list[Call]]] = {}
        with self._lock:
            sent = self._sent
            for answer in record.answers:
                call = sent.pop(answer.number, None)
                if call is None:
                    continue
                if answer.HasField("failure"):
                    key = answer.failure.SerializeToString()
                    if key not in failed:
                        failed[key] = (failures.error_from_failure(answer.failure), [])
                    failed[key][1].append(call)
                else:
                    done.append(call)
                    values.append(answer.index if call.kind in INDEX_KINDS else answer.message)
        if done:
            self._forget(done)
            finish(done, values)
        for error, calls in failed.values():
            if isinstance(error, NotLeader | NoLeader | NodeStopped | UnknownGroup):
                self._give_back(calls, error)
            else:
                self._forget(calls)
                fail(calls, error)

    def _sweep(self) -> None:
        """Answer calls whose time ran out long ago: the other end should have, and nobody waits for them."""
        now = monotonic()
        late = []
        with self._lock:
            self._sweep_at = now + SWEEP_SECONDS
            for number, call in list(self._sent.items()):
                if now > call.deadline + SWEEP_GRACE_SECONDS:
                    late.append(self._sent.pop(number))
        if late:
            self._forget(late)
            fail(late, OutcomeUnknown(f"{self._peer} did not answer in time"))
