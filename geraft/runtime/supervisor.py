"""Starts, watches and stops the greenlets and threads of one node: none dies in silence."""

from __future__ import annotations

import itertools
import logging
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from enum import Enum
from functools import partial

import gevent
from gevent.event import Event as GeventEvent

from geraft import sessions, signals
from geraft.app import RaftApp
from geraft.config import Config, is_same_on_all
from geraft.core.effects import Role
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.events import PeerConnected, PeerDisconnected, Persisted, SnapshotFetched, SnapshotFetchFailed
from geraft.core.log import Log
from geraft.core.membership import AddServer, Member, Refusal, initial_cluster_id, initial_configuration, refusal_of
from geraft.core.messages import AppendEntriesReply, HeartbeatReply, PeerMessage, RequestVoteReply
from geraft.core.raft import Raft, Settings
from geraft.core.snapshots import Snapshot
from geraft.errors import (
    BootstrapRefused,
    ConfigError,
    GeraftError,
    JoinRefused,
    MembershipRefused,
    NodeForked,
    NodeStopped,
    NoLeader,
    OutcomeUnknown,
    StorageFailed,
    StorageForeign,
    Unreachable,
)
from geraft.pb import geraft_pb2 as pb
from geraft.records import decode_configuration, encode_configuration
from geraft.runtime.applier import Applier, Readers, StateWanted
from geraft.runtime.compactor import Compactor
from geraft.runtime.dispatcher import Dispatcher
from geraft.runtime.hub import (
    Call,
    HubThread,
    Inbox,
    Waiter,
    acquire_hub,
    fail,
    finish,
    fork_generation,
    monotonic,
    native_rlock,
    release_hub,
)
from geraft.runtime.log_writer import ForgetSnapshot, LogWriter
from geraft.runtime.node_loop import NodeLoop, Tuning
from geraft.runtime.rest import Rest
from geraft.runtime.shared import SharedRuntime
from geraft.runtime.snapshot_fetcher import SnapshotFetch
from geraft.runtime.snapshot_keeper import SnapshotKeeper
from geraft.runtime.status import (
    ClusterInfo,
    NodeStatus,
    PeerStatus,
    explain,
    explain_change,
    explain_no_leader,
    membership_of,
    peer_statuses,
)
from geraft.runtime.ticker import Ticker
from geraft.runtime.wishes import Change, Transfer, Wish
from geraft.storage.base import Identity, RaftStorage, StoredState
from geraft.transport.grpc_mode import sleep
from geraft.transport.hosted import Door
from geraft.transport.pulse import RestNote
from geraft.transport.seeds import Seeds
from geraft.transport.transport import Transport

log = logging.getLogger(__name__)

REPLIES = (AppendEntriesReply, HeartbeatReply, RequestVoteReply)

SILENCE_SECONDS = 2.0
"""What leaving the network takes at most."""
APP_SLOW_SECONDS = 5.0
"""For so long an app may be with one entry before status() says that it hangs."""
SEED_PAUSE_SECONDS = 0.25
"""Between two attempts to be let in."""
MEMBER_PROBE_SECONDS = 0.5
"""For so long a member that starts with join waits for what the seeds say."""
ADD_SECONDS = 5.0
"""What one attempt may take."""
SETTLE_SECONDS = 300.0
"""What catching up may take before it is asked for again."""
SETTLE_PAUSE_SECONDS = 2.0
TEAR_DOWN_SECONDS = 5.0
"""What it takes at most to let go of everything after a start that failed."""


class Phase(Enum):
    """Of a node's life; it goes through them once, in order."""

    NEW = "was not started"
    STARTING = "is starting"
    RUNNING = "runs"
    STOPPING = "is stopping"
    STOPPED = "was stopped"
    FAILED = "failed"


def core_settings(config: Config) -> Settings:
    """What of the config the core uses: the fields of the same name."""
    return Settings(**{field.name: getattr(config, field.name) for field in fields(Settings)})


def session_limits(config: Config) -> sessions.Limits:
    return sessions.Limits(
        sessions_max=int(config.sessions_max),
        writes_max=int(config.session_writes_max),
        answer_bytes_max=int(config.session_answer_bytes_max),
    )


def _foreign(identity: Identity, cluster_id: str) -> JoinRefused:
    return JoinRefused(
        f"the store holds the state of cluster {identity.cluster_id}, and the seeds belong to {cluster_id}: start this"
        " node over an empty store to join that one"
    )


def _still_to_be_voter(raft: Raft) -> bool:
    """Whether we are no voter, and never have been: one who was made a learner again stays one.

    An earlier server of our id, with another store, does not count.
    """
    voters = [member for _, known in list(raft.log.configurations) for member in (*known.voters, *known.outgoing)]
    return not any(member.id == raft.id and member.store_id == raft.store_id for member in voters)


class Supervisor:
    """Everything that runs for one node, put together. Also what the transport and callers reach it by."""

    def __init__(
        self,
        app: RaftApp,
        storage: RaftStorage,
        *,
        id: str,
        listen: str,
        bootstrap: Mapping[str, str] | None,
        cluster_name: str,
        config: Config,
        sender: object,
        join: Sequence[str] = (),
        learner: bool = False,
        advertise: str = "",
        dial: Mapping[str, str] | None = None,
        door: Door | None = None,
        shared: SharedRuntime | None = None,
        group: str = "",
    ) -> None:
        self.group = group
        self._label = f"{id} of {group}" if group else id
        self._shared = shared
        storage_pool = shared.storage_pool if shared is not None else None
        app_pool = shared.app_pool if shared is not None else None
        self.phase = Phase.NEW
        self.cause: BaseException | None = None
        self.id = id
        self._app = app
        self._storage = storage
        self._listen = listen
        self._bootstrap = dict(bootstrap) if bootstrap is not None else None
        self._cluster_name = cluster_name
        self._join = tuple(join)
        self._learner = learner
        self._advertise = advertise
        self._must_be_added = False
        self._addresses_of_seeds: dict[str, str] = {}  # of the members, as the seeds told: until our own log names any
        self.config = config
        self._dial = dict(dial or {})
        self._door = door
        self._generation = fork_generation()
        self._heard_at: dict[str, float] = {}
        self._refusals: dict[str, str] = {}
        self._lock = native_rlock()  # of phase and what follows; a signal handler may come in while its thread holds it
        self._turner: object = None  # the greenlet or thread that starts or stops the node just now
        self._turned: list[Waiter] = []  # who waits for it
        self._stop_wanted = False
        self._store_open = False
        self._silent: GeventEvent | None = None
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self._raft: Raft
        self._identity: Identity
        self._inbox: Inbox
        self._loop: NodeLoop
        self._ticker: Ticker
        self._rest: Rest | None = None
        self._hub: HubThread | None = None
        self._transport: Transport | None = None
        self._dispatcher = Dispatcher(sender, self.failed, app_pool)
        self._keeper = SnapshotKeeper(
            app,
            storage,
            made=self._put,
            forget=lambda index: self._log_writer.queue.put(ForgetSnapshot(index)),
            ask_app=lambda answer: self._applier.queue.put(StateWanted(answer)),
            after_writes=lambda then: self._log_writer.queue.put(then),
            on_crash=self.failed,
            pool=app_pool,
        )
        self._log_writer = LogWriter(
            storage, self._send, self._persisted, self._put, self._keeper.forgotten, self.failed, storage_pool
        )
        self._applier = Applier(
            app,
            storage,
            retry_seconds=config.apply_retry_seconds,
            retry_max_seconds=config.apply_retry_max_seconds,
            applied=self._applied,
            apply_failed=self._tell_apply_failed,
            snapshots=self,
            on_crash=self.failed,
            pool=app_pool,
            label=self._label,
        )
        self._readers = Readers(app, max(int(config.read_threads), 1), self.failed, app_pool)

    # Start

    def start(self, timeout_seconds: float) -> None:
        """Open the store, recover, listen, and run. Whatever goes wrong, nothing stays behind."""
        with self._lock:
            if self.phase is not Phase.NEW:
                raise NodeStopped(f"node {self._label} {self.phase.value}: a node starts once; make a new RaftNode")
            self.phase = Phase.STARTING
            self._turner = gevent.getcurrent()
            self._generation = fork_generation()  # made before a fork, it may be started in the child
        deadline = monotonic() + timeout_seconds

        def left() -> float:
            if self._stop_wanted:
                raise NodeStopped(f"node {self._label} was stopped while it started")
            return float(max(deadline - monotonic(), 0.1))

        def too_long(what: str) -> Callable[[], BaseException]:
            return lambda: StorageFailed(f"{what} took longer than {timeout_seconds} s")

        try:
            if self._shared is not None:
                self._shared.check()
            self._log_writer.start()
            state: StoredState = self._log_writer.run(self._open_store, left(), too_long("opening the log store"))
            self._hub = self._shared.hub if self._shared is not None else acquire_hub()
            cluster_id = self._cluster_to_join(state, deadline) if self._join else ""
            state = self._log_writer.run(
                lambda: self._own(state, cluster_id), left(), too_long("preparing the log store")
            )
            self._applier.start()
            snapshot, damaged = self._applier.run(
                lambda: self._recover_app(state), left(), too_long("the app's install_snapshot")
            )
            self._hub.call(self._assemble, state, snapshot, timeout_seconds=left())
            self._keeper.start()
            for index in damaged:
                self._log_writer.queue.put(ForgetSnapshot(index))
            self._readers.start()
            self._dispatcher.start()
            assert self._transport is not None
            self._transport.start()
            with self._lock:
                left()
                if self.phase is not Phase.STARTING:
                    raise self.cause or NodeStopped(f"node {self._label} {self.phase.value}")
                self.phase = Phase.RUNNING
            self._hub.call(self._run, timeout_seconds=left())
            self._transport.health.set_running(self.phase is Phase.RUNNING)
            if self._must_be_added:
                self._ask_to_be_added(deadline)
            self._hub.spawn(self._settle_in)
        except BaseException as error:
            with self._lock:
                self.phase, self.cause = Phase.FAILED, error
            self._tear_down(TEAR_DOWN_SECONDS)
            raise
        finally:
            self._end_turn()
        self._dispatcher.send(signals.node_started)

    def _open_store(self) -> StoredState:
        state = self._storage.open()
        self._store_open = True
        return state

    def _close_store(self) -> None:
        """At the end of the writer's thread. A store that would not open may be another node's."""
        if self._store_open:
            self._store_open = False
            self._storage.close()

    def _end_turn(self) -> None:
        with self._lock:
            if self._stop_wanted and self.phase is Phase.FAILED:
                self.phase = Phase.STOPPED
            self._turner = None
            turned, self._turned = self._turned, []
        finish(turned, [None] * len(turned))

    # Joining

    def _cluster_to_join(self, state: StoredState, deadline: float) -> str:
        """The id of the seeds' cluster, if this node may become, or is, a member of it; "" if it need not ask.

        Raises JoinRefused with the reason why it may not.
        """
        assert self._hub is not None
        identity, seeds = state.identity, Seeds(self._hub, self.config, self._dial, self.group)
        if identity is not None and state.configurations:
            member = state.configurations[-1][1].members.get(self.id)
            if member is not None and member.store_id in ("", identity.store_id):
                self._refuse_foreign_seeds(identity, seeds)
                return ""  # a member since an earlier start
        while True:
            answers, reasons = seeds.cluster_infos(self._join)
            known = [answer for answer in answers if answer.configuration.voters]
            if known:
                break
            if self._stop_wanted or monotonic() + SEED_PAUSE_SECONDS > deadline:
                why = "; ".join(reasons) or "those that answer are members of no cluster themselves"
                raise JoinRefused(f"no seed of {', '.join(self._join)} tells of a cluster: {why}")
            sleep(SEED_PAUSE_SECONDS)
        clusters = sorted({answer.cluster_id for answer in known})
        if len(clusters) > 1:
            raise JoinRefused(f"the seeds belong to different clusters, {', '.join(clusters)}: name those of one only")
        if identity is not None and identity.cluster_id != clusters[0]:
            raise _foreign(identity, clusters[0])
        configuration = decode_configuration(max(known, key=lambda answer: answer.term).configuration)
        # A snapshot may be the first that we get, and must be pulled from a member that we can reach.
        self._addresses_of_seeds = {id: each.address for id, each in configuration.members.items() if id != self.id}
        member = configuration.members.get(self.id)
        store_id = identity.store_id if identity is not None else ""
        if member is None:
            if state.last_entry.index:
                raise JoinRefused(
                    f"the store holds old state of cluster {clusters[0]}, of which {self.id} is no member any more:"
                    " start this node over an empty store to join again"
                )
            self._must_be_added = True
        elif member.store_id not in ("", store_id):
            raise JoinRefused(
                f"the id {self.id!r} is taken by another store, the server at {member.address}: join under another"
                f" id, or remove {self.id!r} first if its store is lost"
            )
        return clusters[0]

    def _refuse_foreign_seeds(self, identity: Identity, seeds: Seeds) -> None:
        """A member need not ask anybody; but it shall know if it was told to join another cluster than its own."""
        answers, _ = seeds.cluster_infos(self._join, MEMBER_PROBE_SECONDS)
        for answer in answers:
            if answer.cluster_id != identity.cluster_id:
                raise _foreign(identity, answer.cluster_id)

    def _ask_to_be_added(self, deadline: float) -> None:
        """Become a learner: block until the cluster has us as one and its leader reaches us. Raises JoinRefused."""
        assert self._hub is not None
        seeds = Seeds(self._hub, self.config, self._dial, self.group)
        address = self._advertise or self.address
        wish = Change(AddServer(id=self.id, address=address, store_id=self.store_id, learner=True), deadline)
        reason: object = "no time was left"
        for seed in itertools.cycle(self._join):
            left = deadline - monotonic()
            if left <= 0 or self._stop_wanted:
                raise JoinRefused(f"{self.id} could not join in time: {reason}")
            try:
                seeds.fulfil(seed, wish, self.cluster_id, min(left, ADD_SECONDS))
                break
            except MembershipRefused as error:
                raise JoinRefused(str(error)) from None
            except GeraftError as error:
                reason = error
                sleep(SEED_PAUSE_SECONDS)
        while not self._raft.leader_id:
            if monotonic() > deadline or self.phase is not Phase.RUNNING:
                raise JoinRefused(
                    f"{self.id} was added as a learner, but the leader does not reach it at {address}: correct"
                    f" advertise or listen, remove {self.id!r} and start over an empty store"
                )
            sleep(0.05)

    def _settle_in(self) -> None:
        """Tell the cluster of our address if it is another one now, and become a voter if we joined to be one.

        In a greenlet of its own, for as long as it takes.
        """
        assert self._hub is not None
        said = ""
        while self.phase is Phase.RUNNING and self._hub is not None:
            raft = self._raft
            member = raft.configuration.members.get(self.id)
            try:
                if member is not None and self._advertise not in ("", member.address):
                    self._tell_address(member)
                elif self._join and not self._learner and _still_to_be_voter(raft):
                    address = member.address if member is not None else self._advertise or self.address
                    change = AddServer(id=self.id, address=address, store_id=self.store_id)
                    wish = Change(change, monotonic() + SETTLE_SECONDS)
                    self.put(wish)
                    wish.result(SETTLE_SECONDS + 1.0, lambda: OutcomeUnknown("no answer of the leader in time"))
                else:
                    return
            except MembershipRefused as error:
                log.error("%s: %s", self._label, error)
                return
            except GeraftError as error:
                if str(error) != said and self.phase is Phase.RUNNING:
                    said = str(error)
                    log.warning("%s is not settled in the cluster yet: %s", self._label, error)
                sleep(SETTLE_PAUSE_SECONDS)

    def _tell_address(self, member: Member) -> None:
        """Have our address in the configuration changed: the leader can't reach us under the one that it has."""
        assert self._hub is not None
        change = AddServer(id=self.id, address=self._advertise, store_id=self.store_id, learner=True)
        wish = Change(change, monotonic() + ADD_SECONDS)
        peers = [*self._raft.addresses.values(), *self._join]
        if self._raft.role is Role.LEADER or not peers:
            self.put(wish)
            wish.result(ADD_SECONDS, lambda: OutcomeUnknown("no answer in time"))
            return
        error: GeraftError = Unreachable("nobody to ask")
        for address in peers:
            try:
                seeds = Seeds(self._hub, self.config, self._dial, self.group)
                seeds.fulfil(address, wish, self.cluster_id, ADD_SECONDS)
            except MembershipRefused:
                raise
            except GeraftError as reason:
                error = reason
            else:
                log.info(
                    "%s: the others know that it is at %s now, not at %s", self._label, self._advertise, member.address
                )
                wait_until = monotonic() + ADD_SECONDS
                while monotonic() < wait_until and self._raft.configuration.members.get(self.id) == member:
                    sleep(0.1)  # until the leader, which reaches us now, has sent us that entry
                return
        raise error

    def _own(self, state: StoredState, joined_id: str = "") -> StoredState:
        """Make sure that the store is this node's, and that of the cluster it was told; bootstrap it if it is empty."""
        bootstrap = self._bootstrap
        cluster_id = initial_cluster_id(bootstrap, self._cluster_name) if bootstrap is not None else ""
        if bootstrap is not None and self.id not in bootstrap:
            raise ConfigError(f"the bootstrap list {sorted(bootstrap)} does not name this node, {self.id!r}")
        identity = state.identity
        if identity is None:
            if joined_id:
                self._storage.initialise(Identity(joined_id, self.id, uuid.uuid4().hex), [])
                self._storage.close()
                return self._own(self._storage.open(), joined_id)
            if bootstrap is None:
                raise BootstrapRefused(
                    "the store is empty and no voters are given: pass bootstrap={id: address, ...}, the same on each"
                    " node, to found a cluster, or join=[address, ...] of members to join one"
                )
            first = EntryBatch(
                term=1,
                first_index=1,
                kind=EntryKind.CONFIGURATION,
                commands=(b"",),
                configuration=initial_configuration(bootstrap),
            )
            self._storage.initialise(Identity(cluster_id, self.id, uuid.uuid4().hex), [first])
            self._storage.close()
            return self._own(self._storage.open())
        if identity.node_id != self.id:
            raise StorageForeign(
                f"the store belongs to node {identity.node_id!r}, not to {self.id!r}: give each node a store of its own"
            )
        if bootstrap is not None and identity.cluster_id != cluster_id:
            raise BootstrapRefused(
                f"the store already holds the state of cluster {identity.cluster_id}; the bootstrap list"
                f" {sorted(bootstrap.items())} would found another one ({cluster_id}): start without bootstrap to go"
                " on, or with an empty store to begin anew"
            )
        return state

    def _recover_app(self, state: StoredState) -> tuple[Snapshot | None, list[int]]:
        """On the applier's thread."""
        snapshot, damaged = self._keeper.recover(state)
        self._applier.begin_after(snapshot)
        return snapshot, damaged

    def _assemble(self, state: StoredState, snapshot: Snapshot | None) -> None:
        """Put the parts together. On the hub."""
        assert self._hub is not None and state.identity is not None
        self._identity = state.identity
        self._raft = Raft(
            id=self.id,
            store_id=state.identity.store_id,
            ballot=state.ballot,
            log=Log(
                base=state.base,
                last_entry=state.last_entry,
                terms=state.terms,
                configurations=state.configurations,
            ),
            settings=core_settings(self.config),
            rng=random.Random(),
            now_seconds=monotonic(),
            snapshot=snapshot,
        )
        self._inbox = self._hub.inbox()
        member = self._raft.configuration.members.get(self.id)
        listen = self._listen or self._advertise or (member.address if member is not None else "")
        if not listen:
            raise ConfigError("listen must be host:port")
        carrier = self._shared.carrier if self._shared is not None else None
        transport = self._transport = Transport(self, listen, self.config, self._hub, self._dial, self._door, carrier)
        self._loop = NodeLoop(
            self._raft,
            self._inbox,
            mail=self._transport,
            log_writer=self._log_writer,
            applier=self._applier,
            readers=self._readers,
            keeper=self._keeper,
            dispatcher=self._dispatcher,
            storage=self._storage,
            append_bytes_max=int(self.config.append_bytes_max),
            session_limits=session_limits(self.config),
            why_no_leader=self.why_no_leader,
            apply_stuck_seconds=self.config.apply_stuck_seconds,
            leader_changed=lambda leader_id: transport.health.set_leader_known(bool(leader_id)),
            why_refused=lambda peer: f" ({self._refusals[peer]})" if peer in self._refusals else "",
            label=self._label,
        )
        self._ticker = Ticker(
            self._inbox,
            self._log_writer,
            interval_seconds=self.config.heartbeat_interval_seconds / 4,
            stall_seconds=self.config.storage_stall_seconds,
            stalled=self.failed,
        )
        if self._shared is not None:
            self._rest = self._loop.rest = Rest(
                self._loop,
                transport,
                idle_seconds=self._shared.rest_after_seconds,
                pulse_seconds=self._shared.config.heartbeat_interval_seconds,
                pause=partial(self._shared.ticker.discard, self._ticker),
                resume=partial(self._shared.ticker.add, self._ticker),
                clock=monotonic,
            )
        self._compactor = Compactor(self.config.compaction_interval_seconds, self._keeper.fold, monotonic())
        self._workers = [self._loop.run, self._compactor.run]
        if self._shared is None:
            self._workers.append(self._ticker.run)

    def _run(self) -> None:
        """Start the greenlets. On the hub."""
        assert self._transport is not None
        self._transport.set_peers(self._raft.addresses or self._addresses_of_seeds)
        for run in self._workers:
            greenlet = gevent.Greenlet(run)
            greenlet.link_exception(self._greenlet_died)
            self._greenlets.append(greenlet)
            greenlet.start()
        if self._shared is not None:
            self._shared.ticker.add(self._ticker)

    # Life

    @property
    def address(self) -> str:
        return self._transport.address if self._transport is not None else self._listen

    def check(self) -> None:
        """Raises NodeStopped, or NodeForked in a forked child, unless the node runs."""
        if self.phase is not Phase.RUNNING or self._generation != fork_generation():
            if self._generation != fork_generation() and self.phase is not Phase.NEW:
                raise NodeForked(
                    f"node {self._label} was started before a fork and does not run in the child:"
                    " start nodes after the fork, in the child"
                )
            raise self._not_running()

    def _not_running(self) -> NodeStopped:
        because = f": {self.cause}" if self.cause is not None else ""
        todo = ": call start() first" if self.phase is Phase.NEW else ""
        return NodeStopped(f"node {self._label} {self.phase.value}{because}{todo}", cause=self.cause)

    def put(self, item: Waiter) -> None:
        """Hand a caller's wish to the node loop, which will answer it. Raises NodeStopped. Any thread."""
        if self.phase is not Phase.RUNNING or self._generation != fork_generation():
            self.check()
        inbox = self._inbox
        inbox.put(item)
        if inbox.closed and inbox.take_back(item):  # nobody has seen it
            raise self._not_running()

    def _put(self, event: object) -> None:
        if self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._inbox.put(event)

    def _persisted(self, event: Persisted) -> None:
        if self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._loop.disk_persisted(event)

    def _applied(self, index: int) -> None:
        if self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._loop.app_applied(index)

    def _send(self, to: str, message: PeerMessage) -> None:
        if self._transport is not None:
            self._transport.send(to, message)

    def _tell_apply_failed(self, index: int, attempt: int, error: BaseException) -> None:
        self._dispatcher.send(signals.apply_failed, index=index, attempt=attempt, error=error)

    # What the applier tells of snapshots (applier.SnapshotNews)

    def copied(self, index: int, sessions: bytes) -> None:
        self._keeper.copied(index, sessions)

    def fold_wanted(self) -> None:
        self._keeper.fold()

    def arrives(self, index: int) -> None:
        self._keeper.arrives(index)

    def fetched(self, fetch: SnapshotFetch, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            self._put(SnapshotFetched(leader=fetch.leader, snapshot=snapshot))
        else:
            self._put(SnapshotFetchFailed(leader=fetch.leader, last_entry=fetch.last_entry))

    def not_fetched(self, index: int) -> None:
        self._keeper.discard(index, fetched=True)

    def installed(self, snapshot: Snapshot) -> None:
        self._dispatcher.send(signals.snapshot_installed, index=snapshot.index, size_bytes=snapshot.size_bytes)

    # Tuning

    def tuning(self, changes: Mapping[str, float]) -> Waiter:
        """What to put() for settings to be changed; its result is the new Config."""
        return Tuning(lambda: self._tune(dict(changes)))

    def _tune(self, changes: Mapping[str, float]) -> tuple[Config, Settings]:
        """Change settings, or nothing and raise ConfigError. On the node loop, between two steps of the core."""
        old, config = self.config, self.config.tuned(changes)
        assert self._transport is not None
        self.config = config
        self._loop.append_bytes_max = int(config.append_bytes_max)
        self._loop.session_limits = session_limits(config)
        self._loop.apply_stuck_seconds = config.apply_stuck_seconds
        self._applier.retry_seconds = config.apply_retry_seconds
        self._applier.retry_max_seconds = config.apply_retry_max_seconds
        self._compactor.tune(config.compaction_interval_seconds)
        self._ticker.interval_seconds = config.heartbeat_interval_seconds / 4
        self._ticker.stall_seconds = config.storage_stall_seconds
        self._transport.tune(config)
        for setting in fields(config):
            before, after = getattr(old, setting.name), getattr(config, setting.name)
            if before != after:
                todo = ": see that all nodes of the cluster get it" if is_same_on_all(setting) else ""
                log.warning("%s: %s is now %s, not %s%s", self._label, setting.name, after, before, todo)
        return config, core_settings(config)

    # What the transport asks (transport.services.Services)

    @property
    def cluster_id(self) -> str:
        return self._identity.cluster_id

    @property
    def node_id(self) -> str:
        return self.id

    @property
    def store_id(self) -> str:
        return self._identity.store_id

    def admit(self, sender: str, sender_store: str) -> Refusal | None:
        return refusal_of(self._raft.configuration, self._raft.store_ids, sender, sender_store)

    def deliver(self, message: PeerMessage) -> None:
        self._heard_at[message.sender] = monotonic()
        if self._refusals and isinstance(
            message, REPLIES
        ):  # a request only shows that we hear it, not that it hears us
            self._refusals.pop(message.sender, None)
        if self.phase in (Phase.RUNNING, Phase.STOPPING):
            self._loop.message_arrived(message)

    def deliver_note(self, note: RestNote) -> None:
        self._heard_at[note.sender] = monotonic()
        self._put(note)

    def submit(self, call: Waiter) -> None:
        try:
            self.put(call)
        except GeraftError as error:
            fail([call], error)

    def resubmit(self, calls: list[Call]) -> None:
        """Calls that were forwarded, and of which nothing came: those that would wait for a leader do so again."""
        now = monotonic()
        waiting = [call for call in calls if call.wait_for_leader and call.deadline > now]
        rest = [call for call in calls if not (call.wait_for_leader and call.deadline > now)]
        fail(rest, NoLeader(f"the leader {self._raft.leader_id} did not take the call: ask again"))
        hub = self._hub
        try:
            self.check()
            if hub is None:
                raise self._not_running()
            hub.post(self._loop.park, waiting)
        except GeraftError as stopped:
            fail(waiting, stopped)

    def submit_wish(self, wish: Wish) -> None:
        try:
            self.put(wish)
        except GeraftError as error:
            fail([wish], error)

    def resubmit_wish(self, wish: Wish) -> None:
        hub = self._hub
        try:
            self.check()
            if hub is None:
                raise self._not_running()
            hub.post(self._loop.park_wish, wish)
        except GeraftError as stopped:
            fail([wish], stopped)

    def reading_snapshot(self, last_entry: EntryId) -> AbstractContextManager[tuple[Snapshot, Iterator[bytes]]]:
        return self._keeper.reading(last_entry)

    @property
    def newest_snapshot(self) -> Snapshot | None:
        return self._keeper.newest

    def take_snapshot(self) -> Waiter:
        """Have a snapshot made of what the app has applied; the waiter gets its index. Raises NodeStopped."""
        self.check()
        waiter = Waiter()
        self._keeper.fold(waiter)
        return waiter

    def peer_connected(self, peer: str) -> None:
        self._put(PeerConnected(peer=peer))

    def peer_disconnected(self, peer: str, reason: str) -> None:
        log.info("%s: the stream to %s broke: %s", self._label, peer, reason)
        self._put(PeerDisconnected(peer=peer))

    def peer_refused(self, peer: str, sentence: str, *, passing: bool = False) -> None:
        if self._refusals.get(peer) != sentence:
            level = logging.INFO if passing else logging.ERROR
            log.log(level, "%s: refused by or refusing %s: %s", self._label, peer, sentence)
            self._refusals[peer] = sentence

    def cluster_info(self) -> pb.ClusterInfoRep:
        info = self.info()
        return pb.ClusterInfoRep(
            cluster_id=info.cluster_id,
            term=info.term,
            leader_id=info.leader_id,
            leader_address=info.leader_address,
            configuration=encode_configuration(self._raft.configuration),
        )

    def status(self) -> pb.StatusRep:
        status = self.node_status()
        return pb.StatusRep(
            id=status.id,
            cluster_id=status.cluster_id,
            role=status.role,
            term=status.term,
            leader_id=status.leader_id,
            commit_index=status.commit_index,
            last_applied=status.last_applied,
            last_log_index=status.last_log_index,
            snapshot_index=status.snapshot_index,
            snapshot_size_bytes=status.snapshot_size_bytes,
            log_base_index=status.log_base_index,
            fetching_from=status.fetching_from,
            fetched_bytes=status.fetched_bytes,
            fetch_size_bytes=status.fetch_size_bytes,
            explanation=status.explanation,
            address=status.address,
            apply_error=status.apply_error,
            writes_waiting=status.writes_waiting,
            reads_waiting=status.reads_waiting,
            calls_parked=status.calls_parked,
            membership=status.membership,
            membership_change=status.membership_change,
            peers=[
                pb.PeerStatus(
                    id=peer.id,
                    address=peer.address,
                    connected=peer.connected,
                    match_index=peer.match_index,
                    heard_seconds_ago=-1.0 if peer.heard_seconds_ago is None else peer.heard_seconds_ago,
                    voter=peer.voter,
                    refusal=peer.refusal,
                    applied_index=peer.applied_index,
                )
                for peer in status.peers
            ],
        )

    # What callers ask: read from any thread, so each value is sound but they may be a step apart

    def info(self) -> ClusterInfo:
        raft = self._raft
        configuration = raft.configuration
        leader = configuration.members.get(raft.leader_id)
        return ClusterInfo(
            cluster_id=self._identity.cluster_id,
            term=raft.term,
            leader_id=raft.leader_id,
            leader_address=leader.address if leader is not None else "",
            members=tuple(configuration.members[id] for id in sorted(configuration.members)),
            learners=configuration.learners,
        )

    def node_status(self) -> NodeStatus:
        raft = self._raft
        peers = self._peer_statuses()
        waiting = self._loop.waiting
        apply_error = self._applier.apply_error
        if not apply_error and (silent_seconds := self._loop.app_silent_seconds) >= APP_SLOW_SECONDS:
            apply_error = f"the app has had entry {self._applier.position} for {silent_seconds:.0f} s"
        newest, fetch = self._keeper.newest, self._loop.fetch
        return NodeStatus(
            id=self.id,
            address=self.address,
            cluster_id=self._identity.cluster_id,
            role=raft.role.value,
            term=raft.term,
            leader_id=raft.leader_id,
            commit_index=raft.commit_index,
            last_applied=raft.last_applied,
            last_log_index=raft.log.last_entry.index,
            snapshot_index=newest.index if newest is not None else 0,
            snapshot_size_bytes=newest.size_bytes if newest is not None else 0,
            log_base_index=raft.log.base.index,
            fetching_from=fetch.leader if fetch is not None else "",
            fetched_bytes=fetch.offset if fetch is not None else 0,
            fetch_size_bytes=fetch.size_bytes if fetch is not None else 0,
            explanation=explain(raft, peers, apply_error, waiting, self._applier.done_index, fetch)
            + ("; rests until there is something to do" if self._rest is not None and self._rest.resting else ""),
            apply_error=apply_error,
            peers=peers,
            writes_waiting=waiting.writes,
            reads_waiting=waiting.reads,
            calls_parked=waiting.parked,
            membership=membership_of(raft),
            membership_change=explain_change(raft) if raft.role is Role.LEADER else "",
        )

    def _peer_statuses(self) -> tuple[PeerStatus, ...]:
        heard_at, rest = self._heard_at, self._rest
        if rest is not None:
            heard_at = {peer: max(at, rest.seen_at(peer)) for peer, at in list(heard_at.items())}
        return peer_statuses(self._raft, heard_at, self._refusals, monotonic())

    def why_no_leader(self) -> str:
        return explain_no_leader(self._raft, self._peer_statuses())

    # The end

    def failed(self, cause: BaseException) -> None:
        """A part of the node died: the node stops, and every caller is told. Any thread."""
        with self._lock:
            if self.phase not in (Phase.STARTING, Phase.RUNNING):
                return
            was_running = self.phase is Phase.RUNNING
            self.phase, self.cause = Phase.FAILED, cause
        log.error("node %s stops: %s", self._label, cause, exc_info=cause)
        hub = self._hub
        if was_running and hub is not None:
            self._say_unhealthy()
            self._dispatcher.send(signals.node_stopping)
            self._applier.give_up_retries()
            hub.spawn(self._fall_silent, SILENCE_SECONDS)

    def _greenlet_died(self, greenlet: gevent.Greenlet[[], None]) -> None:
        self.failed(greenlet.exception or GeraftError("a greenlet of the node ended"))

    def _fall_silent(self, timeout_seconds: float) -> None:
        """End the loop, answer every caller, and leave the network; again, wait until that is done. On the hub."""
        if self._silent is not None:
            self._silent.wait(timeout_seconds)
            return
        self._silent = GeventEvent()
        try:
            for greenlet in self._greenlets:
                greenlet.unlink(self._greenlet_died)
            # Waits, as a logging handler of the host's may have switched away from the loop in the middle of its work.
            gevent.killall(self._greenlets, block=True, timeout=timeout_seconds / 2)
            if self._rest is not None and self._shared is not None:
                self._shared.ticker.discard(self._ticker)
                self._rest.end()
            untaken = self._inbox.close()
            because = f": {self.cause}" if self.cause is not None else ""
            self._loop.fail_everything(
                OutcomeUnknown(
                    f"node {self._label} {self.phase.value}{because}; the write may still be committed by the others"
                ),
                self._not_running,
                untaken,
            )
        finally:
            if self._transport is not None:
                self._transport.stop(timeout_seconds / 2)
            self._silent.set()

    def stop(self, timeout_seconds: float) -> None:
        """Hand leadership over, answer what can be answered, and let go of everything. Ends within the time.

        While another thread starts or stops the node, this waits for that to end; from the app's methods and from
        signal handlers that interrupted it, it does not.
        """
        if self._generation != fork_generation():
            self.phase = Phase.STOPPED
            return
        turned: Waiter | None = None
        with self._lock:
            if self.phase is Phase.NEW:
                self.phase = Phase.STOPPED
            if self.phase is Phase.STOPPED and self._turner is None:
                return
            self._stop_wanted = True
            if self._turner is not None:
                if self._turner is gevent.getcurrent() or self._on_own_thread():
                    return
                turned = Waiter()
                self._turned.append(turned)
            else:
                self._turner = gevent.getcurrent()
        if turned is not None:
            turned.wait(timeout_seconds)
            return
        deadline = monotonic() + timeout_seconds
        try:
            if self.phase is Phase.RUNNING:
                self._say_unhealthy()
                self._dispatcher.send(signals.node_stopping)
                self._hand_over(min(timeout_seconds / 2, 2 * self.config.election_timeout_seconds))
            with self._lock:
                if self.phase is Phase.RUNNING:
                    self.phase = Phase.STOPPING
            self._tear_down(max(deadline - monotonic(), 0.5))
            with self._lock:
                self.phase = Phase.STOPPED
        finally:
            self._end_turn()

    def _say_unhealthy(self) -> None:
        """To whoever watches the health service, before anything is let go of."""
        if self._transport is not None:
            self._transport.health.set_running(False)

    def _on_own_thread(self) -> bool:
        workers = (self._applier, self._dispatcher, self._log_writer, self._keeper)
        return self._readers.inside or any(worker.inside for worker in workers)

    def _hand_over(self, timeout_seconds: float) -> None:
        raft = self._raft
        if raft.role is not Role.LEADER or not raft.connected & raft.configuration.voter_ids:
            return
        transfer = Transfer("")
        try:
            self.put(transfer)
            transfer.wait(timeout_seconds)
        except GeraftError:
            pass  # it ended by itself; without a hand-over the others elect someone after a timeout

    def _tear_down(self, timeout_seconds: float) -> None:
        """Let go of everything, whatever state it is in; what hangs gets a part of the time. Again is no error."""
        deadline = monotonic() + timeout_seconds

        def left(part: float) -> float:
            return float(max(part * (deadline - monotonic()), 0.05))

        hub = self._hub
        if hub is not None:
            try:
                hub.call(self._leave_hub, left(0.3), timeout_seconds=left(0.5))
            except Exception as error:
                log.warning("node %s did not fall silent in time: %s", self._label, error)
        for worker in (self._applier, self._keeper, self._readers, self._dispatcher):
            worker.end_soon()
        if not self._applier.wait_until_ended(left(0.3)):
            self._applier.drop_queue()
            log.error("node %s: process_write hangs; its thread is left as it is", self._label)
        if not self._keeper.wait_until_ended(left(0.3)):
            log.error("node %s: the app hangs over a snapshot; its thread is left as it is", self._label)
        if not self._readers.wait_until_ended(left(0.3)):
            log.error("node %s: process_read hangs; its thread is left as it is", self._label)
        if not self._dispatcher.wait_until_ended(left(0.3)):
            log.error("node %s: a receiver of a signal hangs; its thread is left as it is", self._label)
        self._log_writer.end_soon(last=self._close_store)
        if not self._log_writer.wait_until_ended(left(0.8)):
            log.error("node %s: the log store hangs; it is left as it is", self._label)
        if hub is not None:
            self._hub = None
            if self._shared is None:
                release_hub(hub, left(1.0))

    def _leave_hub(self, timeout_seconds: float) -> None:
        """On the hub."""
        if hasattr(self, "_loop"):
            self._fall_silent(timeout_seconds)
        elif hasattr(self, "_inbox"):  # it could not be put together
            self._inbox.close()
