"""Snapshots of nodes in this process: made, sent and installed, with what callers, signals and status tell of it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from runtime_parts import PATIENT, wait_until

from geraft import Config, MakeSnapshot, MemoryRepository, MemoryStorage, RaftApp, RaftNode, SimpleRaftApp, signals
from geraft.errors import (
    ConfigError,
    NodeStopped,
    Rejected,
    SnapshotFailed,
    StorageCorrupt,
    StorageFailed,
    TransferFailed,
)
from geraft.runtime.hub import Call, CallKind, SessionWrite, monotonic
from geraft.runtime.snapshot_keeper import Delete
from geraft.simple import to_raft_app
from geraft.testing.cluster import free_addresses


class Words(SimpleRaftApp):
    """The state is what was written, in order; a reply is the index.

    A command that ends with "!" asks for a copy, with "?" for a fold.
    """

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def process_read(self, request: bytes) -> bytes:
        return b" ".join(self.words)

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        self.words.append(request)
        wish = {b"!": MakeSnapshot.COPY, b"?": MakeSnapshot.FOLD}.get(request[-1:], MakeSnapshot.NONE)
        return b"%d" % entry_index, wish

    def snapshot(self) -> bytes:
        return b" ".join(self.words)

    def restore(self, snapshot: bytes | None) -> None:
        self.words = (snapshot or b"").split()


class Member:
    """One node of a cluster, with what outlives its restarts."""

    def __init__(self, id: str, bootstrap: dict[str, str], config: Config) -> None:
        self.id, self.bootstrap, self.config = id, bootstrap, config
        self.repository, self.storage = MemoryRepository(), MemoryStorage()
        self.app = Words()
        self.node: RaftNode | None = None

    def start(self) -> RaftNode:
        self.app = Words()
        self.node = RaftNode(
            to_raft_app(self.app, self.repository),
            self.storage,
            id=self.id,
            bootstrap=self.bootstrap,
            config=self.config,
        )
        return self.node.start()

    def stop(self) -> None:
        if self.node is not None:
            self.node.stop()


def config(**changes: Any) -> Config:
    return dataclasses.replace(PATIENT, **{"trailing_entries": 0, **changes})


@pytest.fixture
def members() -> Iterator[dict[str, Member]]:
    """Three members, none of them started."""
    names = ["n1", "n2", "n3"]
    bootstrap = dict(zip(names, free_addresses(3), strict=True))
    members = {id: Member(id, bootstrap, config()) for id in names}
    yield members
    for member in members.values():
        member.stop()


@pytest.fixture
def alone() -> Iterator[Member]:
    (address,) = free_addresses(1)
    member = Member("n1", {"n1": address}, config())
    yield member
    member.stop()


def leader_of(*members: Member) -> RaftNode:
    def leader() -> RaftNode | None:
        return next((one.node for one in members if one.node and one.node.status().role == "leader"), None)

    found: RaftNode = wait_until(leader)
    return found


def test_a_node_that_lags_too_far_becomes_the_state_of_the_leaders_snapshot(members: dict[str, Member]) -> None:
    heard: list[tuple[str, str, int]] = []

    def created(node: RaftNode, *, index: int, size_bytes: int, **_: object) -> None:
        heard.append(("created", node.id, index))

    def installed(node: RaftNode, *, index: int, size_bytes: int, **_: object) -> None:
        heard.append(("installed", node.id, index))

    one, other, late = members.values()
    with signals.snapshot_created.connected_to(created), signals.snapshot_installed.connected_to(installed):
        one.start()
        other.start()
        leader = leader_of(one, other)
        for number in range(30):
            leader.apply(b"word%d" % number)
        index = int(leader.apply(b"enough!"))
        wait_until(lambda: leader.status().log_base_index == index)
        leader.apply(b"after")
        node = late.start()
        wait_until(lambda: late.app.words == one.app.words and late.app.words[-1:] == [b"after"])
        wait_until(lambda: ("installed", late.id, index) in heard and ("created", late.id, index) in heard)
    status = node.status()
    assert (status.snapshot_index, status.log_base_index, status.fetching_from) == (index, index, "")
    assert late.repository.indexes() == [index]
    assert node.read(b"", "stale").endswith(b"enough! after")

    # It starts from there again, and its vote counts.
    late.stop()
    other.stop()
    node = late.start()
    assert late.app.words[-1] in (b"enough!", b"after")
    leader_of(one, late).apply(b"more", timeout_seconds=20)


def test_what_is_fetched_stays_until_it_is_outdated_whatever_was_deleted_or_failed_before(
    members: dict[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, late = members.values()
    one.start()
    other.start()
    leader = leader_of(one, other)
    index = int(leader.apply(b"enough!"))
    wait_until(lambda: leader.status().log_base_index == index)
    save, attempts = late.repository.save, []

    def save_at_the_second_attempt(snapshot_index: int, chunks: Iterable[bytes]) -> None:
        save(snapshot_index, chunks)
        attempts.append(snapshot_index)
        if len(attempts) == 1:
            raise StorageFailed("no room")
        assert late.node is not None
        keeper = late.node._supervisor._keeper
        keeper.queue.put(Delete(snapshot_index))  # of an earlier one, which had to wait
        keeper.run(lambda: None, 20, lambda: TimeoutError("the keeper hangs"))

    monkeypatch.setattr(late.repository, "save", save_at_the_second_attempt)
    node = late.start()
    wait_until(lambda: node.status().snapshot_index == index)
    assert attempts == [index, index]
    assert late.repository.indexes() == [index]
    monkeypatch.undo()
    for word in (b"b!", b"c!"):
        newest = int(leader.apply(word))
        wait_until(lambda newest=newest: node.status().snapshot_index == newest)
    wait_until(lambda: len(late.repository.indexes()) == 2)
    assert index not in late.repository.indexes()


def test_a_fold_leads_to_the_same_state_as_the_log(alone: Member) -> None:
    node = alone.start()
    for word in (b"a", b"b", b"c?"):
        node.apply(word)
    wait_until(lambda: node.status().snapshot_index > 0)
    first = node.status().snapshot_index
    assert b"".join(alone.repository.open(first)) == b"a b c?"
    node.apply(b"d")
    second = node.take_snapshot()
    assert second == node.take_snapshot() == node.status().snapshot_index > first
    assert b"".join(alone.repository.open(second)) == b"a b c? d"
    node.apply(b"e")
    third = node.take_snapshot()
    wait_until(lambda: alone.repository.indexes() == [second, third])
    alone.stop()
    node = alone.start()
    assert alone.app.words == [b"a", b"b", b"c?", b"d", b"e"]
    assert node.status().snapshot_index == third


def test_folds_come_at_regular_times_only_if_asked_for(alone: Member) -> None:
    node = alone.start()
    node.apply(b"a")
    assert node.status().snapshot_index == 0
    node.tune(compaction_interval_seconds=0.05)
    wait_until(lambda: node.status().snapshot_index > 0)
    node.apply(b"b")
    wait_until(lambda: node.status().snapshot_index == node.status().commit_index)


def test_copies_are_never_folded_by_themselves(alone: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "fold", lambda *_: pytest.fail("nobody asked for it"))
    node = alone.start()
    for number in range(20):
        index = int(node.apply(b"%d!" % number))
    wait_until(lambda: node.status().snapshot_index == index)
    wait_until(lambda: len(alone.repository.indexes()) <= 2)


def test_an_app_that_cannot_fold_says_so_to_who_asked(alone: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(*_: object) -> bytes:
        raise OSError("no space left")

    monkeypatch.setattr(Words, "fold", fold)
    node = alone.start()
    node.apply(b"a")
    with pytest.raises(SnapshotFailed, match="no space left"):
        node.take_snapshot()
    assert node.apply(b"b")
    assert alone.repository.indexes() == []
    with pytest.raises(ConfigError):
        node.take_snapshot(timeout_seconds=-1)
    node.stop()
    with pytest.raises(NodeStopped):
        node.take_snapshot()


def test_a_snapshot_that_hangs_ends_with_the_callers_time(alone: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(Words, "fold", lambda *_: gate.wait(60) and b"")
    node = alone.start()
    node.apply(b"a")
    with pytest.raises(SnapshotFailed, match="within"):
        node.take_snapshot(timeout_seconds=0.1)
    assert node.apply(b"b"), "the node goes on meanwhile"
    gate.set()


def test_what_was_never_recorded_is_swept_at_the_start(alone: Member) -> None:
    node = alone.start()
    index = int(node.apply(b"a!"))
    wait_until(lambda: node.status().snapshot_index == index)
    alone.stop()
    alone.repository.save(index - 1, [b"of a crash between making and recording"])
    alone.repository.save(index + 5, [b"of a fetch that was never installed"])
    alone.start()
    assert alone.repository.indexes() == [index]


def test_a_damaged_snapshot_gives_way_to_the_one_before_as_long_as_the_log_reaches_back(alone: Member) -> None:
    alone.config = config(trailing_entries=5)
    node = alone.start()
    indexes = []
    for word in (b"a!", b"b", b"c!"):
        index = int(node.apply(word))
        if word.endswith(b"!"):
            indexes.append(index)
            wait_until(lambda: node.status().snapshot_index == indexes[-1])
    alone.stop()
    alone.repository.save(indexes[-1], [b"a b damaged"])
    node = alone.start()
    assert node.status().snapshot_index == indexes[0]
    wait_until(lambda: alone.app.words == [b"a!", b"b", b"c!"])
    # Applied again, the write asks for its copy again.
    wait_until(lambda: node.status().snapshot_index == indexes[-1])
    assert b"".join(alone.repository.open(indexes[-1])) == b"a! b c!"


def test_without_a_whole_snapshot_a_cut_log_is_refused(alone: Member) -> None:
    node = alone.start()
    for word in (b"a", b"b", b"c!"):
        index = int(node.apply(word))
    wait_until(lambda: node.status().log_base_index == index)
    alone.stop()
    alone.repository.delete(index)
    with pytest.raises(StorageCorrupt, match="remove the node from the cluster"):
        alone.start()


class StoresNothing(RaftApp):
    """Asks for copies and then has none: a snapshot that can't be read is never recorded, and the log stays."""

    def process_read(self, request: bytes) -> bytes:
        return b""

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        return b"", MakeSnapshot.COPY

    def install_snapshot(self, snapshot_index: int | None) -> None:
        pass

    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        assert len(requests) == sum(1 for _ in requests) == 3
        assert (requests[0], requests[-1], requests[1:]) == (b"a", b"c", [b"b", b"c"])
        self.folded = list(requests)

    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        raise NotImplementedError

    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        raise FileNotFoundError(snapshot_index)

    def delete_snapshot(self, snapshot_index: int) -> None:
        pass


def test_a_snapshot_that_cannot_be_read_is_never_recorded() -> None:
    (address,) = free_addresses(1)
    app = StoresNothing()
    with RaftNode(app, MemoryStorage(), id="n1", bootstrap={"n1": address}, config=config()) as node:
        for word in (b"a", b"b", b"c"):
            node.apply(word)
        with pytest.raises(SnapshotFailed):
            node.take_snapshot()
        assert app.folded == [b"a", b"b", b"c"]
        assert (node.status().snapshot_index, node.status().log_base_index) == (0, 0)


# Writes that are applied once, over snapshots


def again(node: RaftNode, command: bytes, name: SessionWrite) -> bytes:
    """The write is sent once more, under its name."""
    call = Call(CallKind.APPLY, command, deadline=monotonic() + 20, session=name)
    node._supervisor.put(call)
    reply: bytes = call.result(20, TimeoutError)
    return reply


@pytest.mark.parametrize("word", [b"last!", b"last?"], ids=["copied", "folded"])
def test_a_repeated_write_gets_its_first_answer_from_a_node_that_has_it_from_a_snapshot(
    members: dict[str, Member], word: bytes
) -> None:
    one, other, late = members.values()
    one.start()
    other.start()
    leader = leader_of(one, other)
    session = leader.session()
    names, answers = [], []
    for command in (b"a", b"b", b"c"):
        answers.append(session.apply(command, 20))
        names.append(SessionWrite(session._session.id, len(names) + 1, 1))  # as from a client that got no answer yet
    # Written by hand, so that nothing is acknowledged: numbers 4 and 5, each twice before the snapshot is made.
    for number, command in ((4, b"d"), (5, word)):
        name = SessionWrite(session._session.id, number, 4)
        answers.append(again(leader, command, name))
        names.append(name)
        assert again(leader, command, name) == answers[-1]
    index = int(answers[-1])
    wait_until(lambda: leader.status().log_base_index >= index)
    held = list(one.app.words)
    assert held == [b"a", b"b", b"c", b"d", word]

    node = late.start()
    wait_until(lambda: late.app.words == held)

    def handed_over() -> bool:
        try:
            leader.transfer_leadership(late.id, 20)
        except TransferFailed:
            return False  # on a busy machine it takes too long now and then
        return True

    wait_until(handed_over)
    wait_until(lambda: node.status().role == "leader")
    for name, command, answer in list(zip(names, (b"a", b"b", b"c", b"d", word), answers, strict=True))[3:]:
        assert again(node, command, name) == answer
    for name in names[:3]:  # acknowledged by number 4
        with pytest.raises(Rejected, match="after its answer was acknowledged"):
            again(node, b"x", name)
    assert late.app.words == held


def test_a_node_that_starts_from_a_snapshot_knows_what_was_written_before(alone: Member) -> None:
    node = alone.start()
    session = node.session()
    for command in (b"a", b"b?", b"c"):
        session.apply(command, 20)
    name = SessionWrite(session._session.id, 3, 3)
    assert again(node, b"c", name)
    wait_until(lambda: node.status().snapshot_index > 0)
    # Folded on top of a fold: the repeated write lies between the two.
    session.apply(b"d?", 20)
    name = SessionWrite(session._session.id, 4, 4)
    answer = again(node, b"d?", name)
    wait_until(lambda: node.status().log_base_index >= int(answer))
    alone.stop()
    node = alone.start()
    node.wait_for_leader(20)
    assert again(node, b"d?", name) == answer
    wait_until(lambda: alone.app.words == [b"a", b"b?", b"c", b"d?"])
