"""Feeds committed entries to the app, answers their callers, and runs reads beside it. Native threads."""

from __future__ import annotations

import contextlib
import itertools
import logging
from _queue import Empty, SimpleQueue
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any, NamedTuple, Protocol

import tenacity

from geraft.app import MakeSnapshot, RaftApp
from geraft.core.entries import EntryBatch, EntryKind
from geraft.core.snapshots import Snapshot
from geraft.errors import (
    AnswerForgotten,
    GeraftError,
    OutcomeUnknown,
    ProposalDropped,
    ReadFailed,
    ReadTimeout,
    StorageCorrupt,
)
from geraft.runtime.hub import Call, CallKind, fail, finish, monotonic
from geraft.runtime.pending import Proposal
from geraft.runtime.pool import Pool
from geraft.runtime.snapshot_fetcher import FetchCancelled, SnapshotFetch
from geraft.runtime.worker import END, Worker
from geraft.sessions import Answer, SessionTable
from geraft.storage.base import RaftStorage

log = logging.getLogger(__name__)

LOAD_BYTES = 4 * 1024 * 1024
"""Read from the store at a time while catching up with it."""


class ApplyWork(NamedTuple):
    """Entries [first_index, last_index]: the newest in batches, older ones in the store.

    proposals: who waits for them.
    """

    first_index: int
    last_index: int
    batches: Sequence[EntryBatch]
    proposals: list[Proposal]


class InstallWork(NamedTuple):
    """The app shall become the state of the snapshot. proposals: who waits for entries that it stands in for."""

    snapshot: Snapshot
    proposals: list[Proposal]


class FetchWork(NamedTuple):
    """The app shall store a snapshot that is on its way."""

    fetch: SnapshotFetch


class StateWanted(NamedTuple):
    """Tell the index of the last entry applied, and the state of the sessions after it."""

    answer: Callable[[int, bytes], None]


class SnapshotNews(Protocol):
    """Whom the applier tells of snapshots. On its thread; must not block for long."""

    def copied(self, index: int, sessions: bytes) -> None:
        """The app has made a snapshot itself."""

    def fold_wanted(self) -> None:
        """The app asks for a folded one."""

    def arrives(self, index: int) -> None:
        """The app is about to store one of the leader's."""

    def fetched(self, fetch: SnapshotFetch, snapshot: Snapshot | None) -> None:
        """The app has stored it; None: it could not be had."""

    def not_fetched(self, index: int) -> None:
        """What the app has stored of it is of no use."""

    def installed(self, snapshot: Snapshot) -> None:
        """It is the app's state now."""


class NoSnapshots(SnapshotNews):
    """For an app that is replayed outside of a node: what it wishes is not heard."""

    def copied(self, index: int, sessions: bytes) -> None:
        pass

    def fold_wanted(self) -> None:
        pass

    def arrives(self, index: int) -> None:
        pass

    def fetched(self, fetch: SnapshotFetch, snapshot: Snapshot | None) -> None:
        pass

    def not_fetched(self, index: int) -> None:
        pass

    def installed(self, snapshot: Snapshot) -> None:
        pass


class _Stopped(Exception):
    """The node stops while an entry is being retried."""


class Applier(Worker):
    """The one native thread that changes the replicated state: the app's, and the table of sessions.

    An exception of process_write is retried with growing pauses; the node goes on meanwhile. apply_error tells what it
    said last, "" if the app is well. applied: tells the node loop how far the app is; apply_failed: tells of each
    exception (index, attempt, error). Any thread. label: what the log calls the node.
    """

    def __init__(
        self,
        app: RaftApp,
        storage: RaftStorage,
        *,
        retry_seconds: float,
        retry_max_seconds: float,
        applied: Callable[[int], None],
        apply_failed: Callable[[int, int, BaseException], None],
        snapshots: SnapshotNews,
        on_crash: Callable[[BaseException], None],
        pool: Pool | None = None,
        label: str = "",
    ) -> None:
        super().__init__("geraft applier", on_crash, pool)
        self._label = label
        self._snapshots = snapshots
        self._applied_index = 0
        self._app = app
        self._storage = storage
        self._applied = applied
        self._apply_failed = apply_failed
        self.retry_seconds = retry_seconds
        self.retry_max_seconds = retry_max_seconds
        self._under_way: tuple[int, Iterator[bytes]] = 0, iter(())
        self._at_work = False
        self._giving_up = False
        self._dropping = False
        self._sessions = SessionTable()
        self._interrupt: SimpleQueue[None] = SimpleQueue()
        self.apply_error = ""

    @property
    def position(self) -> int:
        """Index of the entry that the app has now, or had last; 0 before the first. Any thread.

        Told by how much of its batch is left, so that it costs nothing per entry.
        """
        last_index, commands = self._under_way
        return last_index - length_hint(commands)

    @property
    def done_index(self) -> int:
        """Everything up to it has been applied. Ahead of what `applied` was told, by the work in hand. Any thread."""
        return self.position - self._at_work

    def give_up_retries(self) -> None:
        """The node ends: an entry that the app does not take now is left in the log, and all after it. Any thread."""
        self._giving_up = True
        self._interrupt.put(None)

    def end_soon(self, last: Callable[[], object] | None = None) -> None:
        self.give_up_retries()
        super().end_soon(last)

    def drop_queue(self) -> None:
        """Tell all who wait that the app will not come as far here. Any thread."""
        self._dropping = True
        super().drop_queue()

    def after_end(self) -> None:
        self.drop_queue()

    def begin_after(self, snapshot: Snapshot | None) -> None:
        """The app is the state of the snapshot: what is applied next follows it. On the applier's thread."""
        if snapshot is not None:
            self._applied_index = snapshot.index
            self._under_way = snapshot.index, iter(())
            self._restore_sessions(snapshot.sessions)

    def _session_state(self) -> bytes:
        """The encoded state of the sessions after the entry applied last."""
        return self._sessions.encode()

    def _restore_sessions(self, encoded: bytes) -> None:
        """Go on from what _session_state gave on another node, or in an earlier life."""
        self._sessions = SessionTable.decode(encoded)

    def drop(self, item: Any) -> None:
        if not isinstance(item, ApplyWork | InstallWork):
            return
        waiting = [call for proposal in item.proposals for call in proposal.waiting_for_app]
        error = "the write is committed, but this node ends before its app applied it: it will when it runs again"
        fail(waiting, OutcomeUnknown(error + (f" ({self.apply_error})" if self.apply_error else "")))

    def work(self, item: Any) -> bool:
        if self._dropping:
            self.drop(item)
            return False
        if not isinstance(item, ApplyWork):
            self._do_snapshot_work(item)
            return False
        work = item
        replies: list[Any] | None = [] if work.proposals else None
        self._at_work = True
        try:
            index = work.first_index
            in_memory_from = work.batches[0].first_index if work.batches else work.last_index + 1
            while index < in_memory_from:
                for batch in self._load(index, in_memory_from - 1):
                    self._apply(batch, replies)
                    index = batch.last_index + 1
                if index < in_memory_from:
                    self._applied(index - 1)
            for batch in work.batches:
                self._apply(batch, replies)
        except _Stopped:
            self._dropping = True  # no later entry may be applied before this one
            self.drop(work)
            return False
        except BaseException:
            self.drop(work)
            raise
        self._at_work = False
        if replies is not None:
            for proposal in work.proposals:
                self._answer(proposal, replies, work.first_index)
        self._applied_index = work.last_index
        self._applied(work.last_index)
        return False

    def _do_snapshot_work(self, item: Any) -> None:
        match item:
            case StateWanted(answer=answer):
                answer(self._applied_index, self._session_state())
            case InstallWork():
                self._install(item)
            case FetchWork(fetch=fetch):
                self._save_fetched(fetch)
            case _:
                super().work(item)

    def _install(self, work: InstallWork) -> None:
        snapshot = work.snapshot
        waiting = [call for proposal in work.proposals for call in proposal.waiting_for_app]
        fail(waiting, OutcomeUnknown("the write is committed; this node got it in a snapshot, without the app's reply"))
        self._app.install_snapshot(snapshot.index)
        self._restore_sessions(snapshot.sessions)
        self._applied_index = snapshot.index
        self._under_way = snapshot.index, iter(())
        log.info("%s: installed snapshot %d.%d, %d bytes", self._label, *snapshot.last_entry, snapshot.size_bytes)
        self._applied(snapshot.index)
        self._snapshots.installed(snapshot)

    def _save_fetched(self, fetch: SnapshotFetch) -> None:
        """Blocks while the bytes come; nothing can be applied before they are here anyway."""
        self._snapshots.arrives(fetch.last_entry.index)
        try:
            snapshot = fetch.save(self._app.save_snapshot)
        except Exception as error:
            self._snapshots.not_fetched(fetch.last_entry.index)
            if isinstance(error, FetchCancelled):
                log.info("%s: fetching snapshot %d.%d was given up", self._label, *fetch.last_entry)
                return
            fetch.cancel()
            sentence = "%s: snapshot %d.%d could not be had from %s: %s"
            log.warning(sentence, self._label, *fetch.last_entry, fetch.leader, error)
            with contextlib.suppress(_Stopped):
                self._pause(self.retry_seconds)
            self._snapshots.fetched(fetch, None)
        else:
            self._snapshots.fetched(fetch, snapshot)

    def _load(self, first_index: int, last_index: int) -> list[EntryBatch]:
        batches = self._storage.read(first_index, last_index, LOAD_BYTES)
        if not batches:
            raise StorageCorrupt(f"the log store no longer has the committed entry {first_index}")
        return batches

    def _apply(self, batch: EntryBatch, replies: list[Any] | None) -> None:
        if batch.kind is EntryKind.SESSION:
            self._apply_sessions(batch, replies)
            return
        if batch.kind is not EntryKind.COMMAND:
            self._under_way = batch.last_index, iter(())
            if replies is not None:
                replies.extend(batch.commands)
            return
        process_write = self._app.process_write
        index = batch.first_index
        commands = iter(batch.commands)
        self._under_way = batch.last_index, commands
        for command in commands:
            try:
                reply, wish = process_write(command, index)
            except Exception as error:
                reply, wish = self._retry(command, index, error)
            if wish is not MakeSnapshot.NONE:
                self._wish(wish, index)
            if replies is not None:
                replies.append(reply)
            index += 1

    def _apply_sessions(self, batch: EntryBatch, replies: list[Any] | None) -> None:
        """Commands of sessions: the table says which of them the app is given."""
        wish = MakeSnapshot.NONE

        def write(command: bytes, index: int) -> bytes:
            nonlocal wish
            try:
                reply, wish = self._app.process_write(command, index)
            except Exception as refused:
                reply, wish = self._retry(command, index, refused)
            return reply

        commands = iter(batch.commands)
        self._under_way = batch.last_index, commands
        for index, command in enumerate(commands, batch.first_index):
            outcome = self._sessions.apply(index, command, write)
            if wish is not MakeSnapshot.NONE:  # after the table has the answer, which belongs to the snapshot
                self._wish(wish, index)
                wish = MakeSnapshot.NONE
            if replies is not None:
                replies.append(outcome)

    def _wish(self, wish: MakeSnapshot, index: int) -> None:
        if wish is MakeSnapshot.COPY:
            self._snapshots.copied(index, self._session_state())
        else:
            self._snapshots.fold_wanted()

    def _retry(self, command: bytes, index: int, error: Exception) -> tuple[bytes, MakeSnapshot]:
        """Ask the app again, with pauses that grow, until it takes the entry: to skip it would split the replicas."""
        attempt = 1
        self._note_failure(index, attempt, error)

        def note(state: tenacity.RetryCallState) -> None:
            outcome = state.outcome
            again = outcome.exception() if outcome is not None else None
            if again is not None:
                self._note_failure(index, state.attempt_number + 1, again)

        def process_write() -> tuple[bytes, MakeSnapshot]:
            if self._giving_up:
                raise _Stopped
            return self._app.process_write(command, index)

        self._pause(self.retry_seconds)
        retrying = tenacity.Retrying(
            wait=self._wait,
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, Exception) and not isinstance(e, _Stopped)),
            sleep=self._pause,
            after=note,
            reraise=True,
        )
        result: tuple[bytes, MakeSnapshot] = retrying(process_write)
        log.warning("%s: entry %d is applied at last", self._label, index)
        self.apply_error = ""
        return result

    def _wait(self, state: tenacity.RetryCallState) -> float:
        # The first pause was made before tenacity counted, so its own first one is the second. Without jitter: one
        # node asks one app, there is no crowd to spread.
        wait = tenacity.wait_exponential(multiplier=2 * self.retry_seconds, max=self.retry_max_seconds)
        return float(wait(state))

    def _note_failure(self, index: int, attempt: int, error: BaseException) -> None:
        self.apply_error = f"process_write of entry {index} raised {error!r} (attempt {attempt})"
        sentence = "%s: %s; the node goes on and tries again"
        log.error(sentence, self._label, self.apply_error, exc_info=error if attempt == 1 else None)
        self._apply_failed(index, attempt, error)

    def _pause(self, seconds: float) -> None:
        if self._giving_up:
            raise _Stopped
        try:
            self._interrupt.get(timeout=seconds)
        except Empty:
            return
        raise _Stopped

    def _answer(self, proposal: Proposal, replies: list[Any], first_index: int) -> None:
        start = proposal.first_index - first_index
        answers = replies[start : start + len(proposal.calls)]
        calls = proposal.calls
        if proposal.in_session:
            calls, answers = _tell_refused(calls, answers)
        if proposal.wait_for_commit:
            pairs = [pair for pair in zip(calls, answers, strict=True) if pair[0].kind is not CallKind.COMMIT]
            calls = [call for call, _ in pairs]
            answers = [answer for _, answer in pairs]
        finish(calls, answers)


def _tell_refused(calls: list[Call], outcomes: list[Answer | GeraftError]) -> tuple[list[Call], list[Any]]:
    """Of calls of sessions: tell those that were refused; the others, with the value that each asked for."""
    done: list[Call] = []
    values: list[Any] = []
    for call, outcome in zip(calls, outcomes, strict=True):
        if isinstance(outcome, GeraftError):
            fail([call], outcome)
        elif call.kind is not CallKind.APPLY:
            done.append(call)
            values.append(outcome.index)
        elif outcome.reply is None:
            fail([call], AnswerForgotten(f"the write was applied at {outcome.index}; its answer was too large to keep"))
        else:
            done.append(call)
            values.append(outcome.reply)
    return done, values


class Readers:
    """Native threads that run process_read, and reads of the store for peers that lag.

    What process_read raises stays with its caller. They take from one queue; where they are threads of a pool, each has
    its own, and gets its turn.
    """

    CHUNK = 64
    """Reads that one thread takes together, and answers with one wake."""
    WAITING_MAX = 10_000
    """Such chunks in the queue; beyond them reads are dropped: process_read hangs, or is far too slow."""

    def __init__(
        self, app: RaftApp, threads: int, on_crash: Callable[[BaseException], None], pool: Pool | None = None
    ) -> None:
        self._app = app
        shared: SimpleQueue[Any] | None = SimpleQueue() if pool is None else None
        self._workers = [_Reader(app, shared, on_crash, pool) for _ in range(threads)]
        self._turns = itertools.cycle(self._workers)

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def read(self, calls: list[Call]) -> None:
        queue = next(self._turns).queue
        if queue.qsize() >= self.WAITING_MAX:
            fail(calls, ProposalDropped("too many reads wait for process_read: try again later, or make it faster"))
            return
        for start in range(0, len(calls), self.CHUNK):
            queue.put(calls[start : start + self.CHUNK])
            queue = next(self._turns).queue

    def run(self, job: Callable[[], None]) -> None:
        """Run a job that does its own answering."""
        next(self._turns).queue.put(job)

    @property
    def inside(self) -> bool:
        """Whether the caller runs on one of the threads."""
        return any(worker.inside for worker in self._workers)

    def end_soon(self) -> None:
        """Let the threads end once all that is queued is done. Never blocks."""
        for worker in self._workers:
            worker.end_soon()

    def wait_until_ended(self, timeout_seconds: float) -> bool:
        """After end_soon(): True once all threads have ended. The reads that none of them came to are dropped."""
        deadline = monotonic() + timeout_seconds
        ended = [worker.wait_until_ended(max(deadline - monotonic(), 0.0)) for worker in self._workers]
        if not all(ended):
            for worker in self._workers:
                worker.drop_queue()
        return all(ended)

    def stop(self, timeout_seconds: float) -> bool:
        """End the threads once all that is queued is done; True if they ended in time."""
        self.end_soon()
        return self.wait_until_ended(timeout_seconds)


class _Reader(Worker):
    def __init__(
        self,
        app: RaftApp,
        shared: SimpleQueue[Any] | None,
        on_crash: Callable[[BaseException], None],
        pool: Pool | None,
    ) -> None:
        super().__init__("geraft reader", on_crash, pool)
        self._app = app
        self._shares = shared is not None
        if shared is not None:
            self.queue = shared

    def _take(self, item: Any) -> bool:
        if item is END and self._shares:
            self.queue.put(END)  # for the other readers
        return super()._take(item)

    def drop(self, item: Any) -> None:
        if isinstance(item, list):
            fail(item, ReadTimeout("the node stopped before process_read came to the read: ask another one"))

    def work(self, item: Any) -> bool:
        calls: list[Call] = item
        answered: list[Call] = []
        values: list[bytes] = []
        process_read = self._app.process_read
        now = monotonic()
        for call in calls:
            if call.deadline < now:  # nobody waits any more, and others do
                fail([call], ReadTimeout("the read's time ran out before process_read came to it"))
                continue
            try:
                value = process_read(call.message)
                if not isinstance(value, bytes):
                    raise TypeError(f"process_read must give bytes, not {type(value).__name__}")
                values.append(value)
                answered.append(call)
            except GeraftError as error:
                fail([call], error)
            except BaseException as error:  # one that calls sys.exit() ends neither the thread nor the node
                failure = ReadFailed(f"process_read raised {error!r}")
                failure.__cause__ = error
                fail([call], failure)
        finish(answered, values)
        return False
