"""Client: blocking calls to a cluster from a process that runs no node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from geraft.client.gateway import Connection, Gateway, parse_seeds
from geraft.client.membership import MembershipCalls
from geraft.client.retry import AttemptTime, retry_until
from geraft.client.session import WriteSession
from geraft.config import MIB, Setting
from geraft.core.membership import Member
from geraft.errors import (
    ConfigError,
    GeraftError,
    NodeForked,
    NodeStopped,
    NoLeader,
    NothingHappened,
    NotLeader,
    OutcomeUnknown,
    ReadTimeout,
    SessionExpired,
    UnknownGroup,
    Unreachable,
)
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, CallKind, Consistency, SessionWrite, monotonic
from geraft.runtime.status import ClusterInfo, NodeStatus, PeerStatus
from geraft.transport import addresses
from geraft.transport.groups import check_group

_CONSISTENCIES = {level.name.lower(): level for level in Consistency}


class Client(MembershipCalls):
    """Writes to and reads from a cluster, through whichever of its servers leads.

        with Client("127.0.0.1:7001,127.0.0.1:7002") as client:
            client.apply(b"deposit 10")

    seeds: addresses "host:port" of some of the servers, as a list or in one string with commas; the others are learnt.
    Nothing is asked before the first call. For any number of threads and greenlets: their calls share one stream.

    Every call blocks only its caller, at most for its timeout_seconds (default: the client's). Reads, and what surely
    did not happen, are tried again within that time; a write that may have happened is not, and raises OutcomeUnknown.

    exactly_once: writes that may have happened are tried again too, and still applied once: the client opens a session
    in the replicated state at its first write and numbers its writes (Raft dissertation 6.3). Off by default, as a
    session is a place in a bounded table, and many writes may as well be applied twice: see docs/client.md.

    group: which of the servers' groups is meant, where their processes hold several. A server that does not have it
    is passed over; if none of them has it, calls raise UnknownGroup when their time is up.

    read_from: whom reads ask, "leader" or "any", which takes the members in turn. A stale read is answered by whoever
    is asked; others are passed on to the leader by one that is not.
    """

    def __init__(
        self,
        seeds: str | Iterable[str],
        timeout_seconds: float = 5.0,
        *,
        exactly_once: bool = False,
        group: str = "",
        read_from: str = "leader",
        message_bytes_max: int = 256 * MIB,
    ) -> None:
        _check_read_from(read_from)
        check_group(group)
        if not timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above 0, not {timeout_seconds!r}")
        self._seeds = parse_seeds(seeds)
        self._timeout_seconds = timeout_seconds
        self._read_from = read_from
        self._group = group
        self._gateway = Gateway(self._seeds, message_bytes_max, group)
        self._session = WriteSession(self._send_of_session, self._may_retry) if exactly_once else None

    def __repr__(self) -> str:
        group = f"group {self._group} at " if self._group else ""
        return f"<Client of {group}{', '.join(self._seeds)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls that wait end: reads with NodeStopped, writes with OutcomeUnknown.

        A session is closed first, for which this blocks a second at most.
        """
        if self._session is not None and not self._gateway.forked:
            self._session.close()
        self._gateway.close()

    # Writes and reads

    def apply(self, command: bytes, timeout_seconds: float | None = None) -> bytes:
        """Write; blocks until the command is applied, and gives the app's reply.

        Raises NothingHappened errors (NoLeader, Unreachable, ProposalDropped: retry freely), Rejected errors, and
        OutcomeUnknown if the write may have happened or still happen. With exactly_once that comes only when the time
        is up, or as SessionExpired; and AnswerForgotten if it did happen, with an answer too large to be kept.
        """
        reply: bytes = self._call(CallKind.APPLY, command, timeout_seconds)
        return reply

    def commit(self, command: bytes, timeout_seconds: float | None = None) -> int:
        """Write like apply, but blocks only until the command is committed, and gives its index. Raises as apply.

        With exactly_once it blocks until the command is applied, and gives the index at which it was.
        """
        index: int = self._call(CallKind.COMMIT, command, timeout_seconds)
        return index

    def read(
        self,
        request: bytes,
        consistency: Consistency | str = Consistency.LINEARIZABLE,
        timeout_seconds: float | None = None,
        *,
        address: str = "",
        read_from: str = "",
    ) -> bytes:
        """Read; blocks until the app has answered.

        consistency: "linearizable" sees every write that was answered before; "lease" too, as long as clocks keep
        their speed, and is faster; "stale" is whatever the asked server has applied. address: which server a stale read
        asks, by default any. read_from: whom to ask, by default as the client was told. Raises NothingHappened errors
        (ReadTimeout among them) and ReadFailed.
        """
        level = _consistency(consistency)
        if read_from:
            _check_read_from(read_from)
        if address:
            if level is not Consistency.STALE:
                raise ConfigError('address is for consistency="stale": other reads are the leader\'s to answer')
            addresses.split(address)
        spread = (read_from or self._read_from) == "any" and not address
        reply: bytes = self._call(CallKind.READ, request, timeout_seconds, level, address, spread)
        return reply

    def _call(
        self,
        kind: CallKind,
        message: bytes,
        timeout_seconds: float | None,
        consistency: Consistency = Consistency.LINEARIZABLE,
        address: str = "",
        spread: bool = False,
    ) -> Any:
        if not isinstance(message, bytes):
            raise ConfigError(f"a command or request must be bytes, not {type(message).__name__}")
        self._gateway.check()
        deadline = self._deadline(timeout_seconds)
        if self._session is not None and kind is not CallKind.READ:
            return self._session.write(kind, message, deadline)
        time = AttemptTime(deadline)

        def attempt() -> Any:
            until = time.next() if kind is CallKind.READ else deadline
            return self._attempt(kind, message, consistency, address, until, spread=spread)

        return retry_until(deadline, attempt, self._may_retry)

    def _send_of_session(self, kind: CallKind, command: bytes, session: SessionWrite, deadline: float) -> Any:
        return self._attempt(kind, command, Consistency.LINEARIZABLE, "", deadline, session)

    def _attempt(
        self,
        kind: CallKind,
        message: bytes,
        consistency: Consistency,
        address: str,
        deadline: float,
        session: SessionWrite | None = None,
        spread: bool = False,
    ) -> Any:
        """One try; tells the gateway what it learnt."""
        gateway = self._gateway
        gateway.use()
        direct = True
        connection: Connection
        if address:
            connection = gateway.connection(address)
        elif spread:
            connection, direct = gateway.spread(deadline), False
        elif consistency is Consistency.STALE:
            connection = gateway.anyone(deadline)
        else:
            connection, direct = gateway.route(deadline)
        # Without a leader the server says so at once: we look for another server meanwhile.
        call = Call(kind, message, deadline=deadline, wait_for_leader=False, consistency=consistency, session=session)
        connection.submit(call, forwarded=direct)
        asked = connection.address
        try:
            value = call.result(deadline - monotonic(), lambda: _timed_out(kind, asked))
        except NotLeader as error:
            gateway.not_leader(asked, error.leader_address)
            raise
        except SessionExpired:
            gateway.reached(asked)
            raise
        except (NoLeader, NodeStopped, OutcomeUnknown, ReadTimeout):
            gateway.not_leader(asked, "")  # the next call asks around first
            raise
        except (Unreachable, UnknownGroup):
            gateway.unreachable(asked)
            gateway.check()  # a client that was closed meanwhile says so
            raise
        gateway.reached(asked)
        return value

    def _may_retry(self, error: BaseException) -> bool:
        """Nothing happened, and another attempt may fare better."""
        return isinstance(error, NothingHappened) and not isinstance(error, NodeForked) and not self._gateway.closed

    # Questions

    def status(self, address: str = "", timeout_seconds: float | None = None) -> NodeStatus:
        """How one server sees itself and its peers: the one at the address, by default the leader or else any."""
        deadline = self._deadline(timeout_seconds)
        if address:
            addresses.split(address)
        else:
            address = self._gateway.anyone(deadline).address
        try:
            record = self._gateway.ask(address, "Status", pb.StatusReq(), pb.StatusRep, deadline)
        except (Unreachable, UnknownGroup):
            self._gateway.unreachable(address)
            raise
        return _node_status(record)

    def take_snapshot(self, address: str, timeout_seconds: float = 60.0) -> int:
        """Have the server at the address make a snapshot now; blocks until it is recorded, and gives its index.

        Raises SnapshotFailed, Unreachable.
        """
        addresses.split(address)
        request = pb.TakeSnapshotReq(timeout_ms=max(int(timeout_seconds * 1000), 1))
        deadline = self._deadline(timeout_seconds)
        answer = self._gateway.ask(address, "TakeSnapshot", request, pb.TakeSnapshotRep, deadline)
        index: int = answer.index
        return index

    def cluster_info(self, timeout_seconds: float | None = None) -> ClusterInfo:
        """Who leads and who is a member: as told by the leader, or without one by the server with the latest term."""
        deadline = self._deadline(timeout_seconds)
        leader = self._gateway.leader
        if leader:
            try:
                return _cluster_info(
                    self._gateway.ask(leader, "RequestClusterInfo", pb.ClusterInfoReq(), pb.ClusterInfoRep, deadline)
                )
            except NothingHappened:
                self._gateway.unreachable(leader)
        probe = self._gateway.probe(deadline)
        answers = sorted(probe.answers.values(), key=lambda answer: (answer.term, bool(answer.leader_id)))
        if not answers:
            raise probe.nobody()
        return _cluster_info(answers[-1])

    def get_config(self, address: str, timeout_seconds: float | None = None) -> tuple[Setting, ...]:
        """The settings in force on the server at the address. Raises Unreachable."""
        addresses.split(address)
        deadline = self._deadline(timeout_seconds)
        return _settings(self._gateway.ask(address, "GetConfig", pb.GetConfigReq(), pb.GetConfigRep, deadline))

    def tune_config(
        self, changes: Mapping[str, float], address: str, timeout_seconds: float | None = None
    ) -> tuple[Setting, ...]:
        """Change settings of the server at the address, all or none; gives all settings, which are in force then.

        Raises ConfigError, Unreachable, and OutcomeUnknown if it may have been done; to repeat it does no harm.
        """
        addresses.split(address)
        deadline = self._deadline(timeout_seconds)
        request = pb.TuneConfigReq(changes=changes)
        return _settings(
            self._gateway.ask(address, "TuneConfig", request, pb.TuneConfigRep, deadline, changes_something=True)
        )

    def _deadline(self, timeout_seconds: float | None) -> float:
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline: float = monotonic() + seconds
        return deadline


def _timed_out(kind: CallKind, asked: str) -> GeraftError:
    if kind is CallKind.READ:
        return ReadTimeout(f"{asked} did not answer the read in time")
    return OutcomeUnknown(f"{asked} did not answer in time: the write may have happened, or may still happen")


def _check_read_from(wanted: str) -> None:
    if wanted not in ("leader", "any"):
        raise ConfigError(f'read_from must be "leader" or "any", not {wanted!r}')


def _consistency(wanted: Consistency | str) -> Consistency:
    level = _CONSISTENCIES.get(wanted) if isinstance(wanted, str) else wanted
    if not isinstance(level, Consistency):
        raise ConfigError(f"consistency must be one of {', '.join(_CONSISTENCIES)}, not {wanted!r}")
    return level


def _settings(record: pb.GetConfigRep | pb.TuneConfigRep) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            setting.name,
            int(setting.value) if setting.value.is_integer() else setting.value,
            setting.tunable,
            setting.cluster,
        )
        for setting in record.settings
    )


def _members(records: Iterable[pb.Member]) -> tuple[Member, ...]:
    return tuple(sorted(Member(record.id, record.address, record.store_id) for record in records))


def _cluster_info(record: pb.ClusterInfoRep) -> ClusterInfo:
    configuration = record.configuration
    learners = _members(configuration.learners)
    everyone = {*_members(configuration.outgoing), *learners, *_members(configuration.voters)}
    return ClusterInfo(
        cluster_id=record.cluster_id,
        term=record.term,
        leader_id=record.leader_id,
        leader_address=record.leader_address,
        members=tuple(sorted(everyone)),
        learners=learners,
    )


def _node_status(record: pb.StatusRep) -> NodeStatus:
    return NodeStatus(
        id=record.id,
        address=record.address,
        cluster_id=record.cluster_id,
        role=record.role,
        term=record.term,
        leader_id=record.leader_id,
        commit_index=record.commit_index,
        last_applied=record.last_applied,
        last_log_index=record.last_log_index,
        snapshot_index=record.snapshot_index,
        explanation=record.explanation,
        apply_error=record.apply_error,
        writes_waiting=record.writes_waiting,
        reads_waiting=record.reads_waiting,
        calls_parked=record.calls_parked,
        membership=record.membership,
        membership_change=record.membership_change,
        snapshot_size_bytes=record.snapshot_size_bytes,
        log_base_index=record.log_base_index,
        fetching_from=record.fetching_from,
        fetched_bytes=record.fetched_bytes,
        fetch_size_bytes=record.fetch_size_bytes,
        peers=tuple(
            PeerStatus(
                id=peer.id,
                address=peer.address,
                voter=peer.voter,
                connected=peer.connected,
                match_index=peer.match_index,
                heard_seconds_ago=None if peer.heard_seconds_ago < 0 else peer.heard_seconds_ago,
                refusal=peer.refusal,
                applied_index=peer.applied_index,
            )
            for peer in record.peers
        ),
    )
