"""Writes and reads whose callers are still waiting. Touched by the node loop alone."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import NamedTuple

from geraft.runtime.hub import Call, CallKind, fail, finish


class Proposal(NamedTuple):
    """Calls that became the consecutive entries from first_index on, of `term`."""

    term: int
    first_index: int
    calls: list[Call]
    wait_for_commit: bool  # whether any of them is to be answered when committed
    in_session: bool = False  # they are of sessions: only the applier knows what comes of them

    @property
    def waiting_for_app(self) -> list[Call]:
        """The calls that are not answered by the commit alone."""
        return [call for call in self.calls if call.kind is not CallKind.COMMIT] if self.wait_for_commit else self.calls

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.calls) - 1


class PendingWrites:
    """Proposals in the order of the log. Registered before anyone else can see the entries (FLAWS L21)."""

    def __init__(self) -> None:
        self._uncommitted: deque[Proposal] = deque()
        self._unapplied: deque[Proposal] = deque()

    def add(self, term: int, first_index: int, calls: list[Call]) -> None:
        in_session = calls[0].session is not None
        wait_for_commit = not in_session and any(call.kind is CallKind.COMMIT for call in calls)
        self._uncommitted.append(Proposal(term, first_index, calls, wait_for_commit, in_session))

    def committed(self, last_index: int) -> None:
        """Answer those who wait for the commit alone."""
        uncommitted = self._uncommitted
        while uncommitted and uncommitted[0].last_index <= last_index:
            proposal = uncommitted.popleft()
            if proposal.wait_for_commit:
                answered = [
                    (call, index)
                    for index, call in enumerate(proposal.calls, proposal.first_index)
                    if call.kind is CallKind.COMMIT
                ]
                finish([call for call, _ in answered], [index for _, index in answered])
            self._unapplied.append(proposal)

    def take_until(self, last_index: int) -> list[Proposal]:
        """The proposals up to last_index, which the applier answers from now on."""
        taken = []
        while self._unapplied and self._unapplied[0].first_index <= last_index:
            taken.append(self._unapplied.popleft())
        return taken

    def give_up(self, before: float, error: BaseException) -> None:
        """Answer committed writes whose callers all stopped waiting before that time: the app is stuck or behind."""
        late = [proposal for proposal in self._unapplied if max(call.deadline for call in proposal.calls) < before]
        if late:
            gone = {proposal.first_index for proposal in late}
            self._unapplied = deque(proposal for proposal in self._unapplied if proposal.first_index not in gone)
            for proposal in late:
                fail(proposal.waiting_for_app, error)

    def fail_uncommitted(self, error: BaseException) -> None:
        """Leadership is lost: what is not committed may or may not be, one day."""
        for proposal in self._uncommitted:
            fail(proposal.calls, error)
        self._uncommitted.clear()

    @property
    def count(self) -> int:
        """Callers whose write is not with the app yet. Any thread."""
        return sum(len(proposal.calls) for proposal in [*self._uncommitted, *self._unapplied])

    def fail_all(self, error: BaseException) -> None:
        self.fail_uncommitted(error)
        for proposal in self._unapplied:
            fail(proposal.waiting_for_app, error)
        self._unapplied.clear()


class PendingReads:
    """Reads that wait for a read index, then for the app to reach it."""

    def __init__(self) -> None:
        self._tokens = count(1)
        self._unconfirmed: dict[int, list[Call]] = {}
        self._confirmed: list[tuple[int, int, list[Call]]] = []  # a heap by read index

    def add(self, calls: list[Call]) -> int:
        """A token for the calls, with which Raft will confirm them together."""
        token = next(self._tokens)
        self._unconfirmed[token] = calls
        return token

    @property
    def waiting(self) -> bool:
        """Whether any confirmed read waits for the app."""
        return bool(self._confirmed)

    @property
    def count(self) -> int:
        """Callers who wait, for a quorum or for the app. Any thread."""
        unconfirmed = sum(map(len, list(self._unconfirmed.values())))
        return unconfirmed + sum(len(calls) for _, _, calls in list(self._confirmed))

    def take(self, token: int) -> list[Call]:
        return self._unconfirmed.pop(token)

    def confirmed(self, token: int, read_index: int) -> None:
        heapq.heappush(self._confirmed, (read_index, token, self._unconfirmed.pop(token)))

    def ready(self, last_applied: int) -> list[Call]:
        """The confirmed reads whose index the app has reached."""
        calls: list[Call] = []
        while self._confirmed and self._confirmed[0][0] <= last_applied:
            calls += heapq.heappop(self._confirmed)[2]
        return calls

    def give_up(self, before: float, error: BaseException) -> None:
        """Answer confirmed reads whose callers all stopped waiting before that time: the app is stuck or far behind."""
        late = [wait for wait in self._confirmed if max(call.deadline for call in wait[2]) < before]
        if late:
            gone = {token for _, token, _ in late}
            self._confirmed = [wait for wait in self._confirmed if wait[1] not in gone]
            heapq.heapify(self._confirmed)
            for _, _, calls in late:
                fail(calls, error)

    def fail_all(self, error: BaseException) -> None:
        for calls in self._unconfirmed.values():
            fail(calls, error)
        for _, _, calls in self._confirmed:
            fail(calls, error)
        self._unconfirmed.clear()
        self._confirmed.clear()
