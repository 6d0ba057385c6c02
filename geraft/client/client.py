"""Client: blocking calls to a cluster from a process that runs no node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import tenacity

from geraft.client.gateway import Connection, Gateway, parse_seeds
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
    Unreachable,
)
from geraft.pb import geraft_pb2 as pb
from geraft.runtime.hub import Call, CallKind, Consistency, monotonic
from geraft.runtime.status import ClusterInfo, NodeStatus, PeerStatus
from geraft.transport import addresses
from geraft.transport.grpc_mode import sleep

RETRY_SECONDS = 0.02
RETRY_SECONDS_MAX = 0.25
"""Pauses between attempts: from, doubling, to."""

_CONSISTENCIES = {level.name.lower(): level for level in Consistency}


class Client:
    """Writes to and reads from a cluster, through whichever of its servers leads.

        with Client("127.0.0.1:7001,127.0.0.1:7002") as client:
            client.apply(b"deposit 10")

    seeds: addresses "host:port" of some of the servers, as a list or in one string with commas; the others are learnt.
    Nothing is asked before the first call. For any number of threads and greenlets: their calls share one stream.

    Every call blocks only its caller, at most for its timeout_seconds (default: the client's). What certainly did not
    happen is tried again within that time; a write that may have happened is not, and raises OutcomeUnknown.
    """

    def __init__(
        self, seeds: str | Iterable[str], timeout_seconds: float = 5.0, *, message_bytes_max: int = 256 * MIB
    ) -> None:
        if not timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above 0, not {timeout_seconds!r}")
        self._seeds = parse_seeds(seeds)
        self._timeout_seconds = timeout_seconds
        self._gateway = Gateway(self._seeds, message_bytes_max)

    def __repr__(self) -> str:
        return f"<Client of {', '.join(self._seeds)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls that wait end: reads with NodeStopped, writes with OutcomeUnknown."""
        self._gateway.close()

    # Writes and reads

    def apply(self, command: bytes, timeout_seconds: float | None = None) -> bytes:
        """Write; blocks until the command is applied, and gives the app's reply.

        Raises NothingHappened errors (NoLeader, Unreachable, ProposalDropped: retry freely), Rejected errors, and
        OutcomeUnknown if the write may have happened or still happen.
        """
        reply: bytes = self._call(CallKind.APPLY, command, timeout_seconds)
        return reply

    def commit(self, command: bytes, timeout_seconds: float | None = None) -> int:
        """Write like apply, but blocks only until the command is committed, and gives its index. Raises as apply."""
        index: int = self._call(CallKind.COMMIT, command, timeout_seconds)
        return index

    def read(
        self,
        request: bytes,
        consistency: Consistency | str = Consistency.LINEARIZABLE,
        timeout_seconds: float | None = None,
        *,
        address: str = "",
    ) -> bytes:
        """Read; blocks until the app has answered.

        consistency: "linearizable" sees every write that was answered before; "lease" too, as long as clocks keep
        their speed, and is faster; "stale" is whatever the asked server has applied. address: which server a stale read
        asks, by default any. Raises NothingHappened errors (ReadTimeout among them) and ReadFailed.
        """
        level = _consistency(consistency)
        if address:
            if level is not Consistency.STALE:
                raise ConfigError('address is for consistency="stale": other reads are the leader\'s to answer')
            addresses.split(address)
        reply: bytes = self._call(CallKind.READ, request, timeout_seconds, level, address)
        return reply

    def _call(
        self,
        kind: CallKind,
        message: bytes,
        timeout_seconds: float | None,
        consistency: Consistency = Consistency.LINEARIZABLE,
        address: str = "",
    ) -> Any:
        if not isinstance(message, bytes):
            raise ConfigError(f"a command or request must be bytes, not {type(message).__name__}")
        deadline = self._deadline(timeout_seconds)
        try:
            return self._attempt(kind, message, consistency, address, deadline)
        except NothingHappened as error:
            if not self._may_retry(error):
                raise
            first = error
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_retry),
            wait=_pause,
            # What would begin just before the deadline is not begun; the caller gets the last error, which says why.
            stop=lambda state: monotonic() + state.upcoming_sleep >= deadline - RETRY_SECONDS,
            sleep=sleep,
            reraise=True,
        )
        if not (isinstance(first, NotLeader) and first.leader_address):
            sleep(min(RETRY_SECONDS, deadline - monotonic()))
        return retrying(self._attempt, kind, message, consistency, address, deadline)

    def _attempt(self, kind: CallKind, message: bytes, consistency: Consistency, address: str, deadline: float) -> Any:
        """One try; tells the gateway what it learnt."""
        gateway = self._gateway
        direct = True
        connection: Connection
        if address:
            connection = gateway.connection(address)
        elif consistency is Consistency.STALE:
            connection = gateway.anyone(deadline)
        else:
            connection, direct = gateway.route(deadline)
        # Without a leader the server says so at once: we look for another server meanwhile.
        call = Call(kind, message, deadline=deadline, wait_for_leader=False, consistency=consistency)
        connection.submit(call, forwarded=direct)
        asked = connection.address
        try:
            value = call.result(deadline - monotonic(), lambda: _timed_out(kind, asked))
        except NotLeader as error:
            gateway.not_leader(asked, error.leader_address)
            raise
        except (NoLeader, NodeStopped, OutcomeUnknown, ReadTimeout):
            gateway.not_leader(asked, "")  # the next call asks around first
            raise
        except Unreachable:
            gateway.unreachable(asked)
            gateway.check()  # a client that was closed meanwhile says so
            raise
        gateway.reached(asked)
        return value

    def _may_retry(self, error: BaseException) -> bool:
        """Nothing happened, and another attempt may fare better."""
        return (
            isinstance(error, NothingHappened)
            and not isinstance(error, NodeForked | ReadTimeout)
            and not self._gateway.closed
        )

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
        except Unreachable:
            self._gateway.unreachable(address)
            raise
        return _node_status(record)

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
            raise Unreachable(f"no server answers: {probe.sentence()}")
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


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, NotLeader) and error.leader_address and state.attempt_number < 3:
        return 0.0
    return min(RETRY_SECONDS * 2.0**state.attempt_number, RETRY_SECONDS_MAX)


def _timed_out(kind: CallKind, asked: str) -> GeraftError:
    if kind is CallKind.READ:
        return ReadTimeout(f"{asked} did not answer the read in time")
    return OutcomeUnknown(f"{asked} did not answer in time: the write may have happened, or may still happen")


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
