"""Committed entries reach the app in order and once, their callers get the replies; one that raises is asked again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from runtime_parts import Gate, Journal, TamedStorage, in_thread, wait_until

from geraft import sessions
from geraft.core.entries import EntryBatch, EntryId, EntryKind
from geraft.core.snapshots import Snapshot
from geraft.errors import (
    AnswerForgotten,
    OutcomeUnknown,
    ProposalDropped,
    ReadFailed,
    ReadTimeout,
    SessionExpired,
    StorageCorrupt,
)
from geraft.records import encode_session_write
from geraft.runtime.applier import Applier, ApplyWork, FetchWork, Readers
from geraft.runtime.hub import Call, CallKind, SessionWrite, monotonic
from geraft.runtime.pending import Proposal
from geraft.runtime.snapshot_fetcher import SnapshotFetch
from geraft.storage.base import Identity


def commands(first_index: int, *given: bytes, kind: EntryKind = EntryKind.COMMAND) -> EntryBatch:
    return EntryBatch(term=1, first_index=first_index, kind=kind, commands=given)


def call(kind: CallKind = CallKind.APPLY, message: bytes = b"", seconds: float = 60) -> Call:
    return Call(kind, message, deadline=monotonic() + seconds)


def answer(one: Call) -> Any:
    return one.result(20, lambda: TimeoutError("not answered"))


def work(first_index: int, *batches: EntryBatch, calls: list[Call] | None = None) -> ApplyWork:
    last_index = batches[-1].last_index
    proposals = [Proposal(1, first_index, calls, any(one.kind is CallKind.COMMIT for one in calls))] if calls else []
    return ApplyWork(first_index, last_index, batches, proposals)


class Bench:
    """An applier with its app and store; notes how far it says it is."""

    def __init__(self, retry_seconds: float = 0.01, retry_max_seconds: float = 0.04) -> None:
        self.app, self.storage = Journal(), TamedStorage()
        self.storage.open()
        self.applied: list[int] = []
        self.failures: list[tuple[int, int, str]] = []
        self.crashes: list[BaseException] = []
        self.told: list[tuple[str, int]] = []
        self.applier = Applier(
            self.app,
            self.storage,
            retry_seconds=retry_seconds,
            retry_max_seconds=retry_max_seconds,
            applied=self.applied.append,
            apply_failed=lambda index, attempt, error: self.failures.append((index, attempt, str(error))),
            snapshots=self,
            on_crash=self.crashes.append,
        )
        self.applier.start()

    def copied(self, index: int, sessions: bytes) -> None:
        self.told.append(("copied", index))

    def fold_wanted(self) -> None:
        self.told.append(("fold wanted", 0))

    def arrives(self, index: int) -> None:
        self.told.append(("arrives", index))

    def not_fetched(self, index: int) -> None:
        self.told.append(("not fetched", index))

    def fetched(self, fetch: SnapshotFetch, snapshot: Snapshot | None) -> None:
        self.told.append(("fetched" if snapshot is not None else "failed", fetch.last_entry.index))

    def installed(self, snapshot: Snapshot) -> None:
        self.told.append(("installed", snapshot.index))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.applier.stop(20)


def test_callers_get_the_replies_to_their_own_commands(bench: Bench) -> None:
    calls = [call() for _ in range(3)]
    bench.applier.queue.put(work(5, commands(5, b"a", b"b", b"c"), calls=calls))
    assert [answer(one) for one in calls] == [b"5", b"6", b"7"]
    assert bench.app.applied == [(5, b"a"), (6, b"b"), (7, b"c")]
    wait_until(lambda: bench.applied == [7])


def test_callers_of_commit_were_answered_before_and_are_left_alone(bench: Bench) -> None:
    calls = [call(), call(CallKind.COMMIT), call()]
    bench.applier.queue.put(work(5, commands(5, b"a", b"b", b"c"), calls=calls))
    assert [answer(calls[0]), answer(calls[2])] == [b"5", b"7"]
    assert calls[1].value is None and calls[1].error is None


def test_entries_of_our_own_are_not_shown_to_the_app(bench: Bench) -> None:
    mine = call()
    given = ApplyWork(
        5, 7, [commands(5, b"", kind=EntryKind.NOOP), commands(6, b"a", b"b")], [Proposal(1, 7, [mine], False)]
    )
    bench.applier.queue.put(given)
    assert answer(mine) == b"7"
    assert bench.app.applied == [(6, b"a"), (7, b"b")]


def in_session(kind: CallKind = CallKind.APPLY) -> Call:
    return Call(kind, b"", deadline=monotonic() + 60, session=SessionWrite(5, 1, 1))


def session_work(first_index: int, calls: list[Call], *given: bytes) -> ApplyWork:
    batch = commands(first_index, *given, kind=EntryKind.SESSION)
    return ApplyWork(first_index, batch.last_index, [batch], [Proposal(1, first_index, calls, False, True)])


def test_rule_c1_a_repeated_write_of_a_session_is_shown_to_the_app_once(bench: Bench) -> None:
    opened = in_session(CallKind.OPEN_SESSION)
    bench.applier.queue.put(session_work(5, [opened], sessions.opening(sessions.Limits())))
    assert answer(opened) == 5
    calls = [in_session(), in_session(), in_session(CallKind.COMMIT), in_session()]
    a, b = encode_session_write(5, 1, 1, b"a"), encode_session_write(5, 2, 1, b"b")
    bench.applier.queue.put(session_work(6, calls, a, b, a, a))
    assert [answer(one) for one in calls] == [b"6", b"7", 6, b"6"]
    bench.applier.queue.put(session_work(10, [late := in_session()], b))
    assert answer(late) == b"7"
    assert bench.app.applied == [(6, b"a"), (7, b"b")]
    wait_until(lambda: bench.applied == [5, 9, 10])


def test_an_applier_that_took_over_the_sessions_gives_the_answers_that_were_given(bench: Bench) -> None:
    calls = [in_session(CallKind.OPEN_SESSION), in_session()]
    write = encode_session_write(5, 1, 1, b"a")
    bench.applier.queue.put(session_work(5, calls, sessions.opening(sessions.Limits()), write))
    assert [answer(one) for one in calls] == [5, b"6"]
    other = Bench()
    other.applier._restore_sessions(bench.applier._session_state())
    other.applier.queue.put(session_work(7, [repeated := in_session()], write))
    assert answer(repeated) == b"6"
    assert other.app.applied == []
    assert other.applier.stop(20)


def test_each_call_of_a_session_gets_its_own_refusal(bench: Bench) -> None:
    calls = [in_session(), in_session(CallKind.OPEN_SESSION), in_session(), in_session(), in_session()]
    large = encode_session_write(6, 1, 1, b"large")
    bench.applier.queue.put(
        session_work(
            5,
            calls,
            encode_session_write(4, 1, 1, b"of nobody"),
            sessions.opening(sessions.Limits(answer_bytes_max=0)),
            large,
            large,
            encode_session_write(6, 10_000, 1, b"far ahead"),
        )
    )
    with pytest.raises(SessionExpired, match="session 4 has expired"):
        answer(calls[0])
    assert answer(calls[1]) == 6 and answer(calls[2]) == b"7"
    with pytest.raises(AnswerForgotten, match="applied at 7"):
        answer(calls[3])
    with pytest.raises(ProposalDropped):
        answer(calls[4])
    assert bench.app.applied == [(7, b"large")]


def test_a_write_of_a_session_that_raises_is_asked_again_and_counts_once(bench: Bench) -> None:
    asked: list[bytes] = []

    def refuse(command: bytes, index: int) -> None:
        asked.append(command)
        if len(asked) < 3:
            raise OSError("database is down")

    bench.app.on_write = refuse
    calls = [in_session(CallKind.OPEN_SESSION), in_session(), in_session()]
    write = encode_session_write(5, 1, 1, b"a")
    bench.applier.queue.put(session_work(5, calls, sessions.opening(sessions.Limits()), write, write))
    assert [answer(one) for one in calls] == [5, b"6", b"6"]
    assert asked == [b"a"] * 3 and bench.app.applied == [(6, b"a")]


def test_what_is_not_in_memory_comes_from_the_store(bench: Bench) -> None:
    old = [commands(number, b"%d" % number) for number in range(1, 51)]
    bench.storage.initialise(Identity("c1", "n1", "s1"), old)
    mine = call()
    bench.applier.queue.put(ApplyWork(1, 51, [commands(51, b"51")], [Proposal(1, 51, [mine], False)]))
    assert answer(mine) == b"51"
    assert bench.app.commands == [b"%d" % number for number in range(1, 52)]


def test_an_app_that_raises_is_asked_again_with_pauses_that_grow_up_to_a_limit() -> None:
    bench = Bench(retry_seconds=0.05, retry_max_seconds=0.2)
    asked: list[float] = []
    told: list[str] = []

    def refuse(command: bytes, index: int) -> None:
        asked.append(time.monotonic())
        told.append(bench.applier.apply_error)
        if len(asked) < 7:
            raise OSError(f"database is down, {len(asked)}")

    bench.app.on_write = refuse
    mine, next_one = call(), call()
    bench.applier.queue.put(work(5, commands(5, b"a"), calls=[mine]))
    bench.applier.queue.put(work(6, commands(6, b"b"), calls=[next_one]))
    assert answer(mine) == b"5" and answer(next_one) == b"6"
    assert "process_write of entry 5 raised OSError('database is down, 1')" in told[1]
    assert bench.applier.apply_error == ""
    assert bench.app.commands == [b"a", b"b"]
    assert [failure[:2] for failure in bench.failures] == [(5, attempt) for attempt in range(1, 7)]
    pauses = [later - earlier for earlier, later in pairwise(asked[:7])]
    least = [0.05, 0.1, 0.2, 0.2, 0.2, 0.2]
    assert all(pause >= wanted - 0.005 for pause, wanted in zip(pauses, least, strict=True)), pauses
    assert bench.applier.stop(20)


def test_the_entry_that_the_app_is_at_is_known_within_a_batch(bench: Bench) -> None:
    seen: list[tuple[int, int]] = []
    bench.app.on_write = lambda command, index: seen.append((index, bench.applier.position))
    bench.applier.queue.put(work(5, commands(5, b"a", b"b"), commands(7, b"c", b"d", b"e")))
    wait_until(lambda: bench.applied == [9])
    assert seen == [(index, index) for index in range(5, 10)]
    assert bench.applier.position == 9


def test_the_end_interrupts_a_pause_and_tells_those_who_wait() -> None:
    bench = Bench(retry_seconds=1000, retry_max_seconds=1000)

    def refuse(command: bytes, index: int) -> None:
        if index == 5:
            raise OSError("database is down")

    bench.app.on_write = refuse
    calls = [call(), call()]
    bench.applier.queue.put(work(5, commands(5, b"a"), calls=[calls[0]]))
    bench.applier.queue.put(work(6, commands(6, b"b"), calls=[calls[1]]))
    wait_until(lambda: bench.failures)
    began = time.monotonic()
    assert bench.applier.stop(20)
    assert time.monotonic() - began < 10
    for one in calls:
        with pytest.raises(OutcomeUnknown, match=r"committed, but this node ends.*database is down"):
            answer(one)
    assert bench.app.applied == []  # nothing after the entry that was left out


def test_the_end_waits_for_an_app_that_works() -> None:
    bench, gate = Bench(), Gate()
    gate.close()
    bench.app.on_write = lambda command, index: gate()
    calls = [call() for _ in range(5)]
    for number, one in enumerate(calls, 5):
        bench.applier.queue.put(work(number, commands(number, b"x"), calls=[one]))
    assert gate.held.wait(20)
    stopping, stopped = in_thread(lambda: bench.applier.stop(20))
    gate.open()
    stopping.join(20)
    assert stopped == [True]
    assert [answer(one) for one in calls] == [b"5", b"6", b"7", b"8", b"9"]


def test_rule_11_a_committed_entry_that_is_gone_is_told_by_name_and_its_callers_are_answered(bench: Bench) -> None:
    calls = [call(), call()]
    bench.applier.queue.put(ApplyWork(1, 9, [], [Proposal(1, 9, [calls[0]], False)]))
    bench.applier.queue.put(work(10, commands(10, b"x"), calls=[calls[1]]))
    wait_until(lambda: bench.crashes)
    assert isinstance(bench.crashes[0], StorageCorrupt) and "committed entry 1" in str(bench.crashes[0])
    for one in calls:
        with pytest.raises(OutcomeUnknown):
            answer(one)
    assert bench.app.applied == []


# Reads


@pytest.fixture
def readers() -> Iterator[tuple[Journal, Readers]]:
    app, crashes = Journal(), []
    readers = Readers(app, 2, crashes.append)
    readers.start()
    yield app, readers
    assert readers.stop(20) and crashes == []


def test_what_process_read_does_wrong_stays_with_its_caller(readers: tuple[Journal, Readers]) -> None:
    app, running = readers
    errors = {b"raise": KeyError("no such table"), b"exit": SystemExit(1)}

    def read(request: bytes) -> Any:
        if request in errors:
            raise errors[request]
        return request if request != b"none" else None

    app.on_read = read
    calls = [call(CallKind.READ, request) for request in (b"a", b"raise", b"exit", b"none", b"b")]
    running.read(calls)
    assert answer(calls[0]) == b"a" and answer(calls[4]) == b"b"
    for one, sentence in zip(calls[1:4], ["no such table", "SystemExit", "must give bytes, not NoneType"], strict=True):
        with pytest.raises(ReadFailed, match=sentence):
            answer(one)


def test_reads_that_nobody_waits_for_are_not_run(readers: tuple[Journal, Readers]) -> None:
    app, running = readers
    ran: list[bytes] = []
    app.on_read = lambda request: ran.append(request) or b""
    late, in_time = call(CallKind.READ, b"late", seconds=-1), call(CallKind.READ, b"in time")
    running.read([late, in_time])
    assert answer(in_time) == b"" and ran == [b"in time"]
    with pytest.raises(ReadTimeout):
        answer(late)


def test_reads_behind_one_that_hangs_are_bounded_and_end_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readers, "WAITING_MAX", 3)
    app, gate = Journal(), Gate()
    gate.close()
    app.on_read = lambda request: gate() or b"done"
    running = Readers(app, 1, lambda error: None)
    running.start()
    held = call(CallKind.READ)
    running.read([held])
    assert gate.held.wait(20)
    waiting = [call(CallKind.READ) for _ in range(5)]
    for one in waiting:
        running.read([one])
    for one in waiting[3:]:
        with pytest.raises(ProposalDropped, match="try again later"):
            answer(one)
    assert not running.stop(0.1)
    for one in waiting[:3]:
        with pytest.raises(ReadTimeout, match="stopped before"):
            answer(one)
    gate.open()
    assert answer(held) == b"done"
    assert running.stop(20)


def test_the_bytes_of_a_fetch_are_told_of_before_they_come_and_when_they_are_of_no_use(bench: Bench) -> None:
    fetch = SnapshotFetch("n2", EntryId(1, 5))
    bench.applier.queue.put(FetchWork(fetch))
    wait_until(lambda: bench.told == [("arrives", 5)])
    fetch.cancel()
    wait_until(lambda: bench.told == [("arrives", 5), ("not fetched", 5)])
