"""Which servers there are, which of them leads, and the connections to them.

A server is asked through one channel, and all calls of the process's threads to it share one stream. The gateway
follows the leader by what servers answer ("not me, but n2"), by asking it every second while there are calls, and, when
nobody is known to lead, by asking every seed and every known member side by side. Seeds are never dropped, and a list
of members is never replaced by an empty one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

import grpc
from gevent import monkey
from google.protobuf.message import DecodeError

from geraft.errors import (
    ConfigError,
    GeraftError,
    NodeForked,
    NodeStopped,
    NoLeader,
    NothingHappened,
    OutcomeUnknown,
    UnknownGroup,
    Unreachable,
)
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import (
    Call,
    HubThread,
    Waiter,
    acquire_hub,
    fail,
    finish,
    fork_generation,
    monotonic,
    native_lock,
    release_hub,
)
from geraft.transport import addresses, failures
from geraft.transport.calls import CallStream
from geraft.transport.groups import metadata_of
from geraft.transport.grpc_mode import GeventMode, GrpcMode, LazyChannel, NativeMode, sleep
from geraft.transport.peer import channel_options

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
"""How long one round of questions waits for servers that do not answer."""
DETOUR_SECONDS = 3.0
"""A leader that can't be reached from here for so long, which outlasts an election, is asked through another member."""
POLL_SECONDS = 1.0
"""How often the leader is asked who leads and who is a member, while there are calls."""
POLL_PATIENCE_SECONDS = 2.0
"""A server that takes longer to answer counts as one that can't be reached."""
POLL_IDLE_SECONDS = 5.0
"""Without a call for so long nobody is asked any more."""
POLL_LOST_MAX = 3
"""Servers that could not be reached lately, of which so many are asked at each poll whether they are back."""
TIMEOUT_MARGIN_SECONDS = 0.2
"""How much sooner than the caller a server gives up, so that its answer, which tells why, still gets here."""

_SERVICE = "/geraft.Raft/"


def parse_seeds(seeds: str | Iterable[str]) -> tuple[str, ...]:
    """Addresses out of "host:port,host:port" or a list of them, each once. Raises ConfigError."""
    parts = seeds.split(",") if isinstance(seeds, str) else list(seeds)
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise ConfigError("no seeds: give the address of at least one server of the cluster, host:port")
    for seed in found:
        addresses.split(seed)
    return found


class Connection:
    """A channel to one server, with a stream for calls that it must answer itself and one for calls it may pass on.

    group: which of the server's groups all calls are meant for.
    """

    def __init__(self, mode: GrpcMode, address: str, options: Sequence[tuple[str, int]], group: str) -> None:
        self.address = address
        self._group = group
        self.channel = LazyChannel(address, options)
        self._mode = mode
        self._lock = native_lock()
        self._streams: dict[bool, CallStream] = {}
        self._closed = False

    def submit(self, call: Call, *, forwarded: bool) -> None:
        """Send the call. forwarded: the server answers NotLeader instead of passing it on. Never blocks."""
        with self._lock:
            if self._closed:
                raise NodeStopped("the client was closed")
            stream = self._streams.get(forwarded)
            if stream is None or stream.broken:
                stream = self._streams[forwarded] = CallStream(
                    self.channel,
                    self._mode,
                    self.address,
                    forwarded=forwarded,
                    timeout_margin_seconds=TIMEOUT_MARGIN_SECONDS,
                    group=self._group,
                )
        stream.submit([call])

    def close(self) -> None:
        """Where gRPC may be used."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
        for stream in streams:
            stream.close()
        self.channel.close()


class Probe:
    """One round of questions to many servers at once, awaited by everyone who wants to know."""

    def __init__(self, asked: Sequence[str], silent: Iterable[str]) -> None:
        """silent: servers that did not answer lately, for which the round doesn't wait if any other is asked."""
        self.asked = asked
        self._awaited = (set(asked) - set(silent)) or set(asked)
        self.answers: dict[str, pb.ClusterInfoRep] = {}
        self.errors: dict[str, GeraftError] = {}
        self.waiters: list[Waiter] | None = []

    @property
    def complete(self) -> bool:
        return all(address in self.answers or address in self.errors for address in self._awaited)

    def sentence(self) -> str:
        """What came of it, for people."""
        count = len(self.answers)
        answering = f"{count} of {len(self.asked)} servers {'answers' if count == 1 else 'answer'}"
        silent = [address for address in self.asked if address not in self.answers]
        reasons = "; ".join(str(self.errors.get(address, f"{address}: no answer yet")) for address in silent[:3])
        return f"{answering} ({reasons})" if reasons else answering

    def nobody(self) -> NothingHappened:
        """The error if there is no answer: UnknownGroup if each server has other groups only, else Unreachable."""
        if all(isinstance(self.errors.get(address), UnknownGroup) for address in self.asked):
            return UnknownGroup("; ".join(str(error) for error in list(self.errors.values())[:3]))
        return Unreachable(f"no server answers: {self.sentence()}")


class Gateway:
    """Finds the leader and keeps the connections. For any thread and any greenlet.

    group: which of the servers' groups is meant. A server that does not have it counts as one that can't be reached.
    """

    def __init__(self, seeds: tuple[str, ...], message_bytes_max: int, group: str = "") -> None:
        self._seeds = seeds
        self._group = group
        self._metadata = metadata_of(group)
        self._options = channel_options(message_bytes_max, keepalive_ms=1000)
        self._generation = fork_generation()
        self._hub: HubThread | None = None
        self._mode: GrpcMode = NativeMode()
        if monkey.is_module_patched("threading"):
            self._hub = acquire_hub()
            self._mode = GeventMode(self._hub)
        self._lock = native_lock()
        self._connections: dict[str, Connection] = {}
        self._members: tuple[str, ...] = ()
        self._members_term = 0
        self._leader = ""
        self._leader_term = 0
        self._unreachable_since: dict[str, float] = {}
        self._probe: Probe | None = None
        self._used_at = 0.0
        self._polling = False
        self._turn = count()
        self._closed = False

    @property
    def servers(self) -> tuple[str, ...]:
        """Every address worth asking: seeds first, then members that are no seeds."""
        return tuple(dict.fromkeys((*self._seeds, *self._members)))

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def leader(self) -> str:
        """Address of the server that is taken for the leader; "" if none is."""
        return self._leader

    def connection(self, address: str) -> Connection:
        """The connection to a server, made at its first use."""
        self.check()
        connection = self._connections.get(address)
        if connection is None:
            with self._lock:
                connection = self._connections.get(address)
                if connection is None:
                    connection = self._connections[address] = Connection(
                        self._mode, address, self._options, self._group
                    )
        return connection

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that made it: then its locks may be held by nobody who runs here."""
        return self._generation != fork_generation()

    def check(self) -> None:
        if self.forked:
            raise NodeForked("this client was made before a fork and does not work in the child: make one in the child")
        if self._closed:
            raise NodeStopped("the client was closed")

    # While there are calls

    def use(self) -> None:
        """A call is made: keep up with the cluster for a while, beside the calls. Never blocks. Raises as check."""
        self.check()
        self._used_at = monotonic()
        if not self._polling:
            with self._lock:
                if self._polling or self._closed:
                    return
                self._polling = True
            self._mode.spawn(self._poll, name="geraft gateway")

    def _poll(self) -> None:
        while True:
            sleep(POLL_SECONDS)
            with self._lock:
                if self._closed or monotonic() - self._used_at > POLL_IDLE_SECONDS:
                    self._polling = False
                    return
            for address in self._to_poll():
                self._mode.enter(self._poll_one, address, name="geraft poll")

    def _to_poll(self) -> list[str]:
        """The leader, or else a server that answered lately; and a few that did not, to find out when they are back."""
        with self._lock:
            lost = list(self._unreachable_since)
            sound = [address for address in self.servers if address not in self._unreachable_since]
            turn = next(self._turn)
        asked = [self._leader] if self._leader else [sound[turn % len(sound)]] if sound else []
        start = turn * POLL_LOST_MAX % len(lost) if lost else 0
        return asked + (lost[start:] + lost[:start])[:POLL_LOST_MAX]

    def _poll_one(self, address: str) -> None:
        def answered(answer: Any, error: GeraftError | None) -> None:
            if error is not None:
                self.unreachable(address)
                return
            with self._lock:
                self._learn(address, answer)

        self._ask_here(
            address, "RequestClusterInfo", pb.ClusterInfoReq(), pb.ClusterInfoRep, POLL_PATIENCE_SECONDS, answered
        )

    # The leader

    def route(self, deadline: float) -> tuple[Connection, bool]:
        """Where a call goes, and whether that is the leader itself (else a member that passes it on).

        Asks around if nobody is known to lead; blocks for that, at most until the deadline. Raises NoLeader, or
        what Probe.nobody says.
        """
        leader = self._leader
        if leader:
            return self.connection(leader), True
        probe = self.probe(deadline)
        leader = self._leader
        if leader:
            return self.connection(leader), True
        now = monotonic()
        for address, answer in list(probe.answers.items()):
            since = self._unreachable_since.get(answer.leader_address)
            if since is not None and now - since > DETOUR_SECONDS and address != answer.leader_address:
                return self.connection(address), False
        if not probe.answers:
            raise probe.nobody()
        raise NoLeader(f"no leader: {probe.sentence()}")

    def anyone(self, deadline: float) -> Connection:
        """A server that answers: the leader if one is known."""
        if self._leader:
            return self.connection(self._leader)
        probe = self.probe(deadline)
        for address in probe.answers:
            return self.connection(self._leader or address)
        raise probe.nobody()

    def spread(self, deadline: float) -> Connection:
        """The members in turn, without those that could not be reached lately. Raises as Probe.nobody."""
        if not self._members:
            probe = self.probe(deadline)
            if not probe.answers:
                raise probe.nobody()
        members = self._members or self.servers
        sound = [address for address in members if address not in self._unreachable_since] or members
        return self.connection(sound[next(self._turn) % len(sound)])

    def not_leader(self, address: str, hint: str) -> None:
        """The server said that it doesn't lead; hint: the address of who does, "" if it doesn't know."""
        with self._lock:
            if self._leader in ("", address):
                self._leader = hint if hint != address else ""
                self._leader_term = 0

    def reached(self, address: str) -> None:
        if self._unreachable_since:
            self._unreachable_since.pop(address, None)

    def unreachable(self, address: str) -> None:
        """The connection to the server broke, or could not be made."""
        with self._lock:
            self._unreachable_since.setdefault(address, monotonic())
            if self._leader == address:
                self._leader = ""
                self._leader_term = 0

    def probe(self, deadline: float) -> Probe:
        """Ask every server who leads, all at once; ends when one names a leader that can be reached, or all have
        answered, or after a second. Callers that come meanwhile share the round."""
        self.check()
        waiter = Waiter()
        begin = False
        with self._lock:
            probe = self._probe
            if probe is None or probe.waiters is None:
                probe = self._probe = Probe(self.servers, self._unreachable_since)
                begin = True
            assert probe.waiters is not None
            probe.waiters.append(waiter)
        if begin:
            for address in probe.asked:
                self._mode.enter(self._ask_for_leader, probe, address, name="geraft probe")
        waiter.wait(min(PROBE_SECONDS + 0.5, max(deadline - monotonic(), 0)))
        return probe

    def _ask_for_leader(self, probe: Probe, address: str) -> None:
        def answered(answer: Any, error: GeraftError | None) -> None:
            with self._lock:
                if error is None:
                    probe.answers[address] = answer
                    self._learn(address, answer)
                else:
                    probe.errors[address] = error
                    self._unreachable_since.setdefault(address, monotonic())
                ended = (error is None and bool(self._leader)) or probe.complete
                waiters = probe.waiters if ended else None
                if ended:
                    probe.waiters = None
                    if self._probe is probe:
                        self._probe = None
            if waiters:
                finish(waiters, [None] * len(waiters))

        self._ask_here(address, "RequestClusterInfo", pb.ClusterInfoReq(), pb.ClusterInfoRep, PROBE_SECONDS, answered)

    def _learn(self, address: str, answer: pb.ClusterInfoRep) -> None:
        """Take in what a server knows. Under the lock."""
        self._unreachable_since.pop(address, None)
        configuration = answer.configuration
        members = dict.fromkeys(
            member.address
            for group in (configuration.voters, configuration.learners, configuration.outgoing)
            for member in group
        )
        if members and answer.term >= self._members_term:  # or a server that was removed would tell of its time
            self._members, self._members_term = tuple(members), answer.term
        leader = answer.leader_address
        if not leader and self._leader == address and answer.term >= self._leader_term:
            self._leader = ""  # it has stepped down, and knows of no other
        if leader and leader not in self._unreachable_since and answer.term >= self._leader_term:
            self._leader = leader
            self._leader_term = answer.term

    # Single questions

    def ask(
        self,
        address: str,
        method: str,
        request: Any,
        answer_type: Any,
        deadline: float,
        *,
        changes_something: bool = False,
    ) -> Any:
        """One unary question to one server; blocks until it answers. Raises Unreachable or what the server says.

        changes_something: without an answer it is OutcomeUnknown instead, unless the server was never reached.
        """
        self.check()
        waiter = Waiter()

        def answered(answer: Any, error: GeraftError | None) -> None:
            if error is None:
                finish([waiter], [answer])
            else:
                fail([waiter], error)

        remaining = max(deadline - monotonic(), 0.001)
        self._mode.enter(
            self._ask_here,
            address,
            method,
            request,
            answer_type,
            remaining,
            answered,
            changes_something,
            name="geraft question",
        )
        silence = OutcomeUnknown if changes_something else Unreachable
        return waiter.result(remaining + 0.1, lambda: silence(f"{address}: no answer in time"))

    def _ask_here(
        self,
        address: str,
        method: str,
        request: Any,
        answer_type: Any,
        timeout_seconds: float,
        answered: Callable[[Any, GeraftError | None], None],
        changes_something: bool = False,
    ) -> None:
        """Where gRPC may be used. Calls answered(...) once, in any thread."""

        def done(future: Any) -> None:
            try:
                answer = answer_type.FromString(future.result())
            except grpc.RpcError as error:
                sent = changes_something and not failures.never_connected(error)
                answered(None, failures.error_from_rpc(error, address, sent=sent))
            except grpc.FutureCancelledError:
                answered(None, Unreachable(f"{address}: the connection was closed"))
            except DecodeError:
                answered(None, Unreachable(f"{address}: the answer is none of a geraft node"))
            else:
                answered(answer, None)

        try:
            rpc: Any = self.connection(address).channel.get().unary_unary(_SERVICE + method)
            future = rpc.future(request.SerializeToString(), timeout=timeout_seconds, metadata=self._metadata)
        except Exception as error:  # a channel that was closed meanwhile
            answered(None, Unreachable(f"{address}: {error}"))
            return
        future.add_done_callback(done)

    def close(self) -> None:
        """Close every connection; calls that wait end. Again is no error."""
        if self.forked:
            return  # they are the parent's, and so is whoever may hold the lock
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections, self._connections = list(self._connections.values()), {}

        def close() -> None:
            for connection in connections:
                connection.close()

        self._mode.call(close, timeout_seconds=5.0)
        if self._hub is not None:
            release_hub(self._hub)
