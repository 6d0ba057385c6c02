"""RaftNode: one running server, held by the user."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from geraft.app import RaftApp
from geraft.client.session import WriteSession
from geraft.config import Config
from geraft.core.membership import (
    AddServer,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.errors import (
    CommandTooLarge,
    ConfigError,
    NodeForked,
    NodeStopped,
    NoLeader,
    NothingHappened,
    OutcomeUnknown,
    ReadTimeout,
    SnapshotFailed,
    TransferFailed,
)
from geraft.runtime.hub import Call, CallKind, Consistency, SessionWrite, monotonic
from geraft.runtime.node_loop import LeaderWanted
from geraft.runtime.shared import SharedRuntime
from geraft.runtime.status import ClusterInfo, NodeStatus
from geraft.runtime.supervisor import Phase, Supervisor
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.storage.base import RaftStorage
from geraft.transport.hosted import Door

if TYPE_CHECKING:
    import grpc

_CONSISTENCIES = {level.name.lower(): level for level in Consistency}


class RaftNode:
    """One server of a cluster, in this process.

        node = RaftNode(app, SqliteStorage("n1.db"), id="n1", bootstrap={"n1": "127.0.0.1:7001", ...})
        with node:
            node.apply(b"deposit 10")

    app: your state machine. storage: its log; one per node. id: the name that never changes.
    listen: "host:port" to bind, by default this node's address in the bootstrap list or, later, in the log; port 0
    takes a free one.
    bootstrap: the voters that found the cluster, address by id, the same on each of them. It founds a cluster only over
    an empty store; over the state of that same cluster it changes nothing, over any other state the start is refused.
    cluster_name: tells two clusters founded by the same list apart.
    join: addresses of members of a cluster that this node shall join. Over an empty store it asks to be let in, and
    start() returns once it is a learner that the leader reaches; it becomes a voter by itself when it has caught up, or
    stays a learner if `learner` (a read replica). Over the state of that same cluster it changes nothing.
    advertise: "host:port" under which the others reach it, if that is not where it listens. A node that comes back
    under another one tells the cluster itself.
    dial: for the address of a member, the one to reach it by from here, where that is another one: a tunnel, a proxy.

    server: a gRPC server of yours that serves the node beside your own services, at the address `listen`;
    make_raft_service tells what it needs. shared, group: for RaftHost.node, which makes the nodes of many groups.

    Every method may be called from any thread and any greenlet, patched or not, and blocks only its caller.
    A node starts once. In a forked child it raises NodeForked: start one in the child.
    """

    def __init__(
        self,
        app: RaftApp,
        storage: RaftStorage,
        *,
        id: str,
        listen: str = "",
        bootstrap: Mapping[str, str] | None = None,
        cluster_name: str = "",
        join: Iterable[str] | None = None,
        learner: bool = False,
        advertise: str = "",
        config: Config | None = None,
        dial: Mapping[str, str] | None = None,
        server: grpc.Server | None = None,
        shared: SharedRuntime | None = None,
        group: str = "",
    ) -> None:
        if not isinstance(app, RaftApp):
            raise ConfigError("app must be a RaftApp; make one of a SimpleRaftApp with to_raft_app(app, repository)")
        if not isinstance(storage, RaftStorage):
            raise ConfigError("storage must be a RaftStorage, for example SqliteStorage(path)")
        _check_id(id)
        if bootstrap is not None:
            if not bootstrap:
                raise ConfigError("the bootstrap list is empty: name at least this node")
            for voter, address in bootstrap.items():
                _check_id(voter)
                check_address(address, "bootstrap address")
        if listen:
            check_address(listen, "listen")
        if advertise:
            check_address(advertise, "advertise")
        seeds = _seeds(join, bootstrap, listen, advertise)
        for address, dialled in (dial or {}).items():
            check_address(address, "each address in dial")
            check_address(dialled, "each address in dial")
        self.id = id
        self.group = group
        """Which of the groups of its RaftHost it belongs to; empty for a node with a server of its own."""
        self._supervisor = Supervisor(
            app,
            storage,
            id=id,
            listen=listen,
            bootstrap=bootstrap,
            cluster_name=cluster_name,
            config=config if config is not None else Config(),
            sender=self,
            join=seeds,
            learner=learner,
            advertise=advertise,
            dial=dial,
            door=Door(server) if server is not None else None,
            shared=shared,
            group=group,
        )

    def __repr__(self) -> str:
        of = f" of {self.group}" if self.group else ""
        return f"<RaftNode {self.id}{of} at {self.address}, {self._supervisor.phase.value}>"

    # Life

    def start(self, timeout_seconds: float = 30.0) -> Self:
        """Open the store, listen, and take part; blocks until the node runs, not until there is a leader.

        With join over an empty store, blocks until the cluster has let it in.
        Raises StorageError for a store that is locked, corrupt, foreign or too new, BootstrapRefused, JoinRefused,
        AddressInUse, GrpcHubTaken; the node then holds nothing and can't be started again.
        """
        check_timeout(timeout_seconds)
        self._supervisor.start(timeout_seconds)
        _running.add(self)
        return self

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Hand leadership over, then stop. Again is no error.

        Blocks at most timeout_seconds, by default Config.stop_timeout_seconds.
        """
        if timeout_seconds is not None:
            check_timeout(timeout_seconds)
        _running.discard(self)
        self._supervisor.stop(self.config.stop_timeout_seconds if timeout_seconds is None else timeout_seconds)

    def __enter__(self) -> Self:
        if self._supervisor.phase is not Phase.RUNNING:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it takes part: it was started, and neither was stopped nor failed."""
        return self._supervisor.phase is Phase.RUNNING

    @property
    def address(self) -> str:
        """What the node listens on, "host:port"."""
        return self._supervisor.address

    @property
    def config(self) -> Config:
        """The settings in force: those given at the start, as changed by tune."""
        return self._supervisor.config

    def tune(self, timeout_seconds: float = 5.0, **changes: float) -> Config:
        """Change settings of this node while it runs; blocks until they are in force, and gives all of them.

            node.tune(heartbeat_interval_seconds=0.2, election_timeout_seconds=2.0)

        Takes the fields of Config that docs/configuration.md marks as tunable. All or none is changed: raises
        ConfigError for a field that is not tunable and for values that Config would refuse, NodeStopped, and
        OutcomeUnknown if the node did not come to it in time. It is forgotten when the node restarts. What must be
        equal on all nodes is for the caller to set on each, as `geraft config set` does; leases stay sound meanwhile.
        """
        check_timeout(timeout_seconds)
        tuning = self._supervisor.tuning(changes)
        self._supervisor.put(tuning)
        config: Config = tuning.result(
            timeout_seconds, lambda: OutcomeUnknown(f"not tuned within {timeout_seconds} s; it may still be")
        )
        return config

    # Writes and reads

    def apply(self, command: bytes, timeout_seconds: float = 5.0, *, wait_for_leader: bool = True) -> bytes:
        """Write: append the command to the log of the cluster; blocks until it is applied, and gives the app's reply.

        On a follower the call is forwarded once, to the leader it knows. wait_for_leader: without one, wait for one
        within the timeout, else raise NoLeader at once. Raises NothingHappened errors (NoLeader, NotLeader,
        ProposalDropped, NodeStopped: retry freely), CommandTooLarge, and OutcomeUnknown if the write may still happen.
        """
        reply: bytes = self._write(CallKind.APPLY, command, timeout_seconds, wait_for_leader)
        return reply

    def commit(self, command: bytes, timeout_seconds: float = 5.0, *, wait_for_leader: bool = True) -> int:
        """Write like apply, but block only until the command is committed: a quorum holds it, it will be applied.

        Gives its index. Raises as apply does.
        """
        index: int = self._write(CallKind.COMMIT, command, timeout_seconds, wait_for_leader)
        return index

    def session(self) -> NodeSession:
        """For writes that are applied once, whatever happens on the way: see NodeSession. Asks nobody yet."""
        return NodeSession(self)

    def _write(self, kind: CallKind, command: bytes, timeout_seconds: float, wait_for_leader: bool) -> Any:
        self._check_command(command, timeout_seconds)
        call = Call(kind, command, deadline=monotonic() + timeout_seconds, wait_for_leader=wait_for_leader)
        self._supervisor.put(call)
        return call.result(timeout_seconds, lambda: self._write_timed_out(timeout_seconds))

    def _check_command(self, command: bytes, timeout_seconds: float) -> None:
        if not isinstance(command, bytes):
            raise ConfigError(f"a command must be bytes, not {type(command).__name__}")
        if len(command) > self.config.command_bytes_max:
            raise CommandTooLarge(
                f"the command has {len(command)} bytes, more than command_bytes_max={self.config.command_bytes_max}"
            )
        check_timeout(timeout_seconds)

    def _send_of_session(self, kind: CallKind, command: bytes, session: SessionWrite, deadline: float) -> Any:
        call = Call(kind, command, deadline=deadline, session=session)
        self._supervisor.put(call)
        timeout_seconds = max(deadline - monotonic(), 0.0)
        return call.result(timeout_seconds, lambda: self._write_timed_out(timeout_seconds))

    def _write_timed_out(self, timeout_seconds: float) -> BaseException:
        return OutcomeUnknown(
            f"no answer within {timeout_seconds} s; the write may still happen ({self._explanation()})"
        )

    def read(
        self,
        request: bytes,
        consistency: Consistency | str = Consistency.LINEARIZABLE,
        timeout_seconds: float = 5.0,
        *,
        wait_for_leader: bool = True,
    ) -> bytes:
        """Read: run the app's process_read, and give its answer.

        consistency: "linearizable" (never older than any write that was answered before the call; a quorum confirms the
        leader, Raft dissertation 6.4), "lease" (the same as long as clocks keep within Config.clock_drift_max; no round
        trip), "stale" (whatever this node has applied). The first two are forwarded to the leader. Raises ReadTimeout,
        ReadFailed with what process_read raised, and NothingHappened errors as apply does.
        """
        if not isinstance(request, bytes):
            raise ConfigError(f"a request must be bytes, not {type(request).__name__}")
        if not isinstance(consistency, Consistency):
            try:
                consistency = _CONSISTENCIES[consistency]
            except (KeyError, TypeError):
                raise ConfigError(
                    f"consistency must be one of {', '.join(_CONSISTENCIES)}, not {consistency!r}"
                ) from None
        check_timeout(timeout_seconds)
        call = Call(
            CallKind.READ,
            request,
            deadline=monotonic() + timeout_seconds,
            wait_for_leader=wait_for_leader,
            consistency=consistency,
        )
        self._supervisor.put(call)
        answer: bytes = call.result(
            timeout_seconds,
            lambda: ReadTimeout(f"the read was not answered within {timeout_seconds} s ({self._explanation()})"),
        )
        return answer

    # Snapshots

    def take_snapshot(self, timeout_seconds: float = 60.0) -> int:
        """Have this node make a snapshot now, by the app's fold_snapshot, beside the normal work; gives its index.

        Blocks until it is recorded durably. With nothing applied since the newest one, gives the index of that; 0 if
        nothing was ever applied. Raises SnapshotFailed if the app could not make one, or not in time.
        """
        check_timeout(timeout_seconds)
        index: int = self._supervisor.take_snapshot().result(
            timeout_seconds, lambda: SnapshotFailed(f"no snapshot was made within {timeout_seconds} s; it may still be")
        )
        return index

    # The cluster

    def wait_for_leader(self, timeout_seconds: float = 10.0) -> str:
        """Block until this node knows a leader, and give its id. Raises NoLeader, with the reason, in the end."""
        check_timeout(timeout_seconds)
        wanted = LeaderWanted(monotonic() + timeout_seconds)
        self._supervisor.put(wanted)
        leader_id: str = wanted.result(timeout_seconds, lambda: NoLeader(self._supervisor.why_no_leader()))
        return leader_id

    def transfer_leadership(self, target: str = "", timeout_seconds: float = 5.0) -> None:
        """Let the leader hand over to a voter, by default the one that holds most of the log (Raft dissertation 3.10).

        On a follower this is forwarded once, to the leader it knows. Blocks until another term began, or the attempt
        was given up after an election timeout. New writes wait meanwhile. Raises TransferFailed if leadership stayed
        where it was, NoLeader if there is none.
        """
        check_timeout(timeout_seconds)
        transfer = Transfer(target, monotonic() + timeout_seconds, forwarded=False)
        self._ask(transfer, timeout_seconds, lambda: TransferFailed(f"no outcome within {timeout_seconds} s"))

    def add_server(self, id: str, address: str, *, learner: bool = False, timeout_seconds: float = 30.0) -> None:
        """Let a server into the cluster; blocks until it is a voter, or a learner if `learner` (dissertation 4.2.1).

        The server must run at the address, "host:port", started with join. It becomes a learner first, and a voter once
        it has caught up. One that is a member already may be added any number of times: a learner becomes a voter,
        nobody becomes less. Raises MembershipRefused, MembershipPending, CatchUpFailed (which names the address; the
        members are as before), NoLeader, and OutcomeUnknown if leadership was lost meanwhile: look at cluster_info(),
        and ask again.
        """
        _check_id(id)
        check_address(address, "address")
        self._change(AddServer(id=id, address=address, learner=learner), timeout_seconds)

    def remove_server(self, id: str, *, timeout_seconds: float = 30.0) -> None:
        """Take a member out; blocks until that is committed.

        A leader that is removed hands over at once. Its data may be deleted afterwards; to bring it back, start it over
        an empty store with join. Raises as add_server; removing the last voter, or one without whom the others are no
        quorum, is refused.
        """
        _check_id(id)
        self._change(RemoveServer(id=id), timeout_seconds)

    def promote(self, id: str, *, timeout_seconds: float = 30.0) -> None:
        """Make a learner a voter once it has caught up; blocks until then. Raises as add_server."""
        _check_id(id)
        self._change(PromoteServer(id=id), timeout_seconds)

    def demote(self, id: str, *, timeout_seconds: float = 30.0) -> None:
        """Make a voter a learner; a leader hands over then. Blocks until it is committed. Raises as add_server."""
        _check_id(id)
        self._change(DemoteServer(id=id), timeout_seconds)

    def change_membership(
        self,
        *,
        voters: Mapping[str, str] | Iterable[str],
        learners: Mapping[str, str] | Iterable[str] = (),
        timeout_seconds: float = 30.0,
    ) -> None:
        """Make these the members, and no others; blocks until it is so.

        voters, learners: addresses by id, or ids alone, for those who are members already. Newcomers catch up first as
        learners; several voters then change in one step, through a joint configuration that needs both majorities
        (dissertation 4.3). Raises as add_server.
        """
        change = ReplaceMembers(voters=_members(voters), learners=_members(learners))
        self._change(change, timeout_seconds)

    def _change(self, change: MembershipChange, timeout_seconds: float) -> None:
        check_timeout(timeout_seconds)
        wish = Change(change, monotonic() + timeout_seconds)
        unknown = (
            f"the change was not complete within {timeout_seconds} s: look at the members, and ask again if need be"
        )
        self._ask(wish, timeout_seconds, lambda: OutcomeUnknown(unknown))

    def _ask(self, wish: Wish, timeout_seconds: float, on_timeout: Callable[[], BaseException]) -> None:
        self._supervisor.put(wish)
        wish.result(timeout_seconds + WISH_GRACE_SECONDS, on_timeout)

    def status(self) -> NodeStatus:
        """This node's own view, at once and without asking anybody."""
        self._supervisor.check()
        return self._supervisor.node_status()

    def cluster_info(self) -> ClusterInfo:
        """Who leads and who is a member, as far as this node knows."""
        self._supervisor.check()
        return self._supervisor.info()

    def _explanation(self) -> str:
        try:
            return self.status().explanation
        except Exception as error:
            return str(error)


class NodeSession:
    """Writes of this process that are applied once, however often they have to be sent (Raft dissertation 6.3).

        with node.session() as session:
            session.apply(b"deposit 10")

    apply and commit of the node say OutcomeUnknown when leadership is lost before the answer came; those of a session
    send the write again, under its number, until its outcome is known or the time is up. One session is for any number
    of threads and greenlets, and for as long as the process lives; each takes one of Config.sessions_max places.
    """

    def __init__(self, node: RaftNode) -> None:
        self._node = node
        self._session = WriteSession(node._send_of_session, _may_retry)

    def __repr__(self) -> str:
        return f"<NodeSession {self._session.id or 'not open'} of {self._node.id}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up its place in the replicated state; blocks for a second at most. Writes after it are refused."""
        try:
            self._node._supervisor.check()
        except NothingHappened:
            return  # it stopped, or runs in the parent process: the session expires one day
        self._session.close()

    def apply(self, command: bytes, timeout_seconds: float = 5.0) -> bytes:
        """Write; blocks until the command is applied, and gives the app's reply to it.

        Raises NothingHappened errors if it is not applied and will not be, OutcomeUnknown if the time ran out first,
        SessionExpired if the session expired after an attempt that may have been applied, AnswerForgotten if it
        was applied and its answer was too large to be kept.
        """
        reply: bytes = self._write(CallKind.APPLY, command, timeout_seconds)
        return reply

    def commit(self, command: bytes, timeout_seconds: float = 5.0) -> int:
        """Write; blocks until the command is applied, and gives the index at which it was. Raises as apply does."""
        index: int = self._write(CallKind.COMMIT, command, timeout_seconds)
        return index

    def _write(self, kind: CallKind, command: bytes, timeout_seconds: float) -> Any:
        self._node._check_command(command, timeout_seconds)
        self._node._supervisor.check()
        return self._session.write(kind, command, monotonic() + timeout_seconds)


def _may_retry(error: BaseException) -> bool:
    return isinstance(error, NothingHappened) and not isinstance(error, NodeStopped | NodeForked)


_running: weakref.WeakSet[RaftNode] = weakref.WeakSet()


def _stop_running() -> None:
    """At the interpreter's end: let go of stores and ports of nodes that were never stopped."""
    for node in list(_running):
        try:
            node.stop(timeout_seconds=1.0)
        except Exception:
            pass  # the process ends anyway


atexit.register(_stop_running)


WISH_GRACE_SECONDS = 0.5
"""How much longer than asked we wait for the node's own answer, which knows the reason."""
TIMEOUT_SECONDS_MAX = 1e8
"""Some three years: what every clock and lock can count."""


def check_timeout(timeout_seconds: float) -> None:
    """Raises ConfigError."""
    try:
        if 0 <= timeout_seconds <= TIMEOUT_SECONDS_MAX:
            return
    except TypeError:
        pass
    raise ConfigError(f"timeout_seconds must be a number from 0 to {TIMEOUT_SECONDS_MAX:.0f}, not {timeout_seconds!r}")


def _seeds(
    join: Iterable[str] | None, bootstrap: Mapping[str, str] | None, listen: str, advertise: str
) -> tuple[str, ...]:
    if join is None:
        return ()
    seeds = tuple(join.split(",")) if isinstance(join, str) else tuple(join)
    if not seeds:
        raise ConfigError("join is empty: name the address of at least one member of the cluster")
    if bootstrap is not None:
        raise ConfigError("bootstrap founds a cluster and join enters one: pass one of them")
    for seed in seeds:
        check_address(seed, "join address")
    host = (advertise or listen).rpartition(":")[0]
    if host in ("", "0.0.0.0", "[::]"):
        raise ConfigError(f"pass advertise, the address under which the others reach this node; {host!r} is none")
    return seeds


def _members(given: Mapping[str, str] | Iterable[str]) -> tuple[Member, ...]:
    addresses = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
    for id, address in addresses.items():
        _check_id(id)
        if address:
            check_address(address, "address")
    return tuple(Member(id, addresses[id]) for id in sorted(addresses))


def _check_id(id: str) -> None:
    if not isinstance(id, str) or not id or len(id) > 255 or any(c in id for c in ",= \t\n"):
        raise ConfigError(f"a node id is 1 to 255 characters without spaces, commas and equal signs, not {id!r}")


def check_address(address: str, what: str) -> None:
    """Raises ConfigError."""
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{what} must be host:port, not {address!r}")
