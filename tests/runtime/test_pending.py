"""Callers who wait are found by their index, answered once, and in the end all are."""

from __future__ import annotations

import pytest

from geraft.errors import NodeStopped, OutcomeUnknown
from geraft.runtime.hub import Call, CallKind, monotonic
from geraft.runtime.pending import PendingReads, PendingWrites

UNKNOWN = OutcomeUnknown("unknown")


def calls(*kinds: CallKind, deadline: float = 0.0) -> list[Call]:
    return [Call(kind, b"", deadline=deadline or monotonic() + 60) for kind in kinds]


def answered(one: Call) -> bool:
    return one.value is not None or one.error is not None


APPLY, COMMIT, READ = CallKind.APPLY, CallKind.COMMIT, CallKind.READ


def test_commit_answers_those_who_wait_for_it_with_their_index() -> None:
    writes, first, second = PendingWrites(), calls(APPLY, COMMIT, COMMIT), calls(COMMIT)
    writes.add(3, 10, first)
    writes.add(3, 13, second)
    writes.committed(12)
    assert [answered(one) for one in first] == [False, True, True]
    assert [first[1].value, first[2].value] == [11, 12]
    assert not answered(second[0])
    (proposal,) = writes.take_until(12)
    assert proposal[:2] == (3, 10) and proposal.calls is first and proposal.last_index == 12
    assert writes.take_until(12) == []


def test_lost_leadership_leaves_committed_writes_alone() -> None:
    writes, committed, uncommitted = PendingWrites(), calls(APPLY), calls(APPLY, COMMIT)
    writes.add(3, 10, committed)
    writes.add(3, 11, uncommitted)
    writes.committed(10)
    writes.fail_uncommitted(UNKNOWN)
    assert not answered(committed[0])
    assert all(one.error is UNKNOWN for one in uncommitted)
    assert [proposal.calls for proposal in writes.take_until(10)] == [committed]


def test_rule_10_a_proposal_of_the_next_term_is_not_taken_for_the_one_it_replaced() -> None:
    """The same index, another term: whoever waits for the old entry has been told, and only the new one is answered."""
    writes, old, new = PendingWrites(), calls(APPLY), calls(APPLY)
    writes.add(3, 10, old)
    writes.fail_uncommitted(UNKNOWN)
    writes.add(5, 10, new)
    writes.committed(10)
    (proposal,) = writes.take_until(10)
    assert (proposal.term, proposal.calls) == (5, new)
    assert old[0].error is UNKNOWN


def test_the_end_answers_all_but_those_who_were_answered() -> None:
    writes, committed, uncommitted = PendingWrites(), calls(APPLY, COMMIT), calls(COMMIT)
    writes.add(3, 10, committed)
    writes.add(3, 12, uncommitted)
    writes.committed(11)
    writes.fail_all(UNKNOWN)
    writes.fail_all(UNKNOWN)  # twice would raise, had they been kept
    assert committed[0].error is UNKNOWN and uncommitted[0].error is UNKNOWN
    assert (committed[1].value, committed[1].error) == (11, None)


def test_callers_who_stopped_waiting_are_let_go_of() -> None:
    writes = PendingWrites()
    late, waiting = calls(APPLY, COMMIT, deadline=5.0), calls(APPLY, deadline=20.0)
    writes.add(3, 10, late)
    writes.add(3, 12, waiting)
    writes.committed(12)
    writes.give_up(10.0, UNKNOWN)
    assert late[0].error is UNKNOWN and late[1].error is None
    assert [proposal.calls for proposal in writes.take_until(12)] == [waiting]


def test_reads_run_when_the_app_has_reached_their_index() -> None:
    reads = PendingReads()
    early, late, waiting = calls(READ), calls(READ, READ), calls(READ)
    tokens = [reads.add(group) for group in (late, early, waiting)]
    assert not reads.waiting
    reads.confirmed(tokens[0], 20)
    reads.confirmed(tokens[1], 10)
    assert reads.waiting
    assert reads.ready(9) == []
    assert reads.ready(19) == early
    assert reads.ready(25) == late
    assert not reads.waiting
    assert reads.take(tokens[2]) == waiting


@pytest.mark.parametrize("confirmed", [False, True])
def test_reads_end_with_the_node(confirmed: bool) -> None:
    reads, group, stopped = PendingReads(), calls(READ), NodeStopped("stopped")
    token = reads.add(group)
    if confirmed:
        reads.confirmed(token, 10)
    reads.fail_all(stopped)
    reads.fail_all(stopped)
    assert group[0].error is stopped and reads.ready(100) == []


def test_reads_whose_callers_stopped_waiting_are_let_go_of() -> None:
    reads = PendingReads()
    late, waiting = calls(READ, deadline=5.0), calls(READ, deadline=20.0)
    for group in (late, waiting):
        reads.confirmed(reads.add(group), 10)
    reads.give_up(10.0, UNKNOWN)
    assert late[0].error is UNKNOWN
    assert reads.ready(10) == waiting
