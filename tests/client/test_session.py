"""The caller's side of exactly-once writes: what it sends again, under which number, and what it says in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from geraft.client.session import WriteSession
from geraft.errors import (
    GeraftError,
    NodeStopped,
    NoLeader,
    NothingHappened,
    OutcomeUnknown,
    ProposalDropped,
    Rejected,
    SessionExpired,
)
from geraft.runtime.hub import CallKind, SessionWrite, monotonic


class Cluster:
    """Answers what a test puts into `outcomes`, by default the number of the write. sent: all that came."""

    def __init__(self) -> None:
        self.sent: list[tuple[CallKind, SessionWrite]] = []
        self.outcomes: list[Any] = []
        self.on_send: Callable[[CallKind, SessionWrite], None] = lambda kind, name: None
        self.session = WriteSession(self._attempt, lambda error: isinstance(error, NothingHappened))

    def _attempt(self, kind: CallKind, command: bytes, name: SessionWrite, deadline: float) -> Any:
        self.sent.append((kind, name))
        self.on_send(kind, name)
        if kind is CallKind.OPEN_SESSION:
            outcome: Any = len(self.sent) * 10
        elif kind is CallKind.CLOSE_SESSION:
            outcome = 0
        else:
            outcome = self.outcomes.pop(0) if self.outcomes else b"%d" % name.number
        if isinstance(outcome, GeraftError):
            raise outcome
        return outcome

    def write(self, seconds: float = 20.0) -> Any:
        return self.session.write(CallKind.APPLY, b"c", monotonic() + seconds)

    @property
    def writes(self) -> list[SessionWrite]:
        return [name for kind, name in self.sent if kind is CallKind.APPLY]

    def opened(self) -> int:
        return sum(kind is CallKind.OPEN_SESSION for kind, _ in self.sent)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_the_session_is_opened_by_the_first_write_and_each_write_acknowledges_those_before(cluster: Cluster) -> None:
    assert not cluster.sent
    assert [cluster.write() for _ in range(3)] == [b"1", b"2", b"3"]
    assert cluster.sent[0] == (CallKind.OPEN_SESSION, SessionWrite(0, 0, 0))
    assert cluster.writes == [SessionWrite(10, 1, 1), SessionWrite(10, 2, 2), SessionWrite(10, 3, 3)]


def test_what_may_have_happened_is_sent_again_under_its_number(cluster: Cluster) -> None:
    cluster.outcomes = [OutcomeUnknown("leadership was lost"), NoLeader("none"), OutcomeUnknown("it broke"), b"done"]
    assert cluster.write() == b"done"
    assert cluster.writes == [SessionWrite(10, 1, 1)] * 4
    assert cluster.write() == b"2"


def test_what_the_cluster_refuses_is_not_sent_again(cluster: Cluster) -> None:
    cluster.outcomes = [Rejected("no such thing")]
    with pytest.raises(Rejected):
        cluster.write()
    assert len(cluster.writes) == 1


def test_when_the_time_is_up_the_error_tells_whether_an_attempt_may_have_been_applied(cluster: Cluster) -> None:
    cluster.outcomes = [NoLeader("none")] * 1000
    with pytest.raises(NoLeader):
        cluster.write(0.2)
    cluster.outcomes = [OutcomeUnknown("the connection broke"), *[NoLeader("none is known")] * 1000]
    with pytest.raises(OutcomeUnknown, match="the connection broke; at last: none is known") as unknown:
        cluster.write(2.0)
    assert unknown.value.may_still_happen
    cluster.outcomes = []
    assert cluster.write() == b"3"
    assert cluster.writes[-1] == SessionWrite(10, 3, 3)  # given up is as good as answered: it can't block the others


def test_a_first_attempt_in_an_expired_session_did_not_happen_and_is_sent_in_a_new_one(cluster: Cluster) -> None:
    cluster.write()
    cluster.outcomes = [SessionExpired("session 10 has expired"), b"done"]
    assert cluster.write() == b"done"
    assert cluster.writes == [SessionWrite(10, 1, 1), SessionWrite(10, 2, 2), SessionWrite(40, 1, 1)]
    assert cluster.opened() == 2


def test_a_repeated_attempt_in_an_expired_session_may_have_happened_and_is_not_sent_again(cluster: Cluster) -> None:
    cluster.write()
    cluster.outcomes = [OutcomeUnknown("leadership was lost"), SessionExpired("session 10 has expired")]
    with pytest.raises(SessionExpired, match=r"an earlier attempt may have been.*leadership was lost") as expired:
        cluster.write()
    assert isinstance(expired.value, OutcomeUnknown) and not expired.value.may_still_happen
    assert len(cluster.writes) == 3
    assert cluster.write() == b"1"  # the next one has a new session
    assert cluster.opened() == 2


def test_a_session_that_cannot_be_opened_means_that_nothing_happened(cluster: Cluster) -> None:
    def fail(kind: CallKind, name: SessionWrite) -> None:
        raise OutcomeUnknown("leadership was lost")

    cluster.on_send = fail
    with pytest.raises(ProposalDropped, match="could not be opened: leadership was lost"):
        cluster.write(0.3)
    assert not cluster.writes
    cluster.on_send = lambda kind, name: None
    assert cluster.write() == b"1"


def test_many_at_once_open_one_session_and_none_is_acknowledged_before_its_answer(cluster: Cluster) -> None:
    under_way: set[int] = set()
    lock = threading.Lock()
    wrong: list[str] = []

    def on_send(kind: CallKind, name: SessionWrite) -> None:
        if kind is CallKind.OPEN_SESSION:
            time.sleep(0.1)
            return
        with lock:
            under_way.add(name.number)
            if name.answered_below > min(under_way):
                wrong.append(f"{name} while {min(under_way)} is under way")
        time.sleep(0.001 * (name.number % 3))
        with lock:
            under_way.discard(name.number)

    cluster.on_send = on_send
    threads = [threading.Thread(target=lambda: [cluster.write() for _ in range(20)]) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert cluster.opened() == 1
    assert sorted(name.number for name in cluster.writes) == list(range(1, 401))
    cluster.write()
    assert cluster.writes[-1] == SessionWrite(10, 401, 401)


def test_greenlets_wait_for_one_opening_without_blocking_their_hub(cluster: Cluster) -> None:
    cluster.on_send = lambda kind, name: gevent.sleep(0.05) if kind is CallKind.OPEN_SESSION else None
    greenlets = [gevent.spawn(cluster.write) for _ in range(10)]
    gevent.joinall(greenlets, timeout=20, raise_error=True)
    assert sorted(greenlet.value for greenlet in greenlets) == sorted(b"%d" % number for number in range(1, 11))
    assert cluster.opened() == 1


def test_those_who_wait_for_an_opening_that_is_interrupted_open_it_themselves(cluster: Cluster) -> None:
    first = [True]

    def on_send(kind: CallKind, name: SessionWrite) -> None:
        if kind is CallKind.OPEN_SESSION and first:
            first.clear()
            gevent.sleep(30)

    cluster.on_send = on_send
    killed = gevent.spawn(cluster.write)
    gevent.sleep(0.01)
    waiting = gevent.spawn(cluster.write)
    gevent.sleep(0.01)
    killed.kill()
    assert waiting.get(timeout=20) == b"1"
    assert cluster.opened() == 2


def test_closing_gives_up_the_place_and_takes_no_more_writes(cluster: Cluster) -> None:
    cluster.session.close()
    assert not cluster.sent  # nothing was opened
    with pytest.raises(NodeStopped):
        cluster.write(0.2)
    other = Cluster()
    other.write()
    other.session.close()
    other.session.close()
    assert other.sent[-1] == (CallKind.CLOSE_SESSION, SessionWrite(10, 0, 0)) and len(other.sent) == 3
    failing = Cluster()
    failing.write()

    def fail(kind: CallKind, name: SessionWrite) -> None:
        raise NoLeader("none")

    failing.on_send = fail
    failing.session.close()  # best effort
