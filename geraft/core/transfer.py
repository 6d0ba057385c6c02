"""Handing leadership over (Raft dissertation 3.10): stop writes, bring the target up to date, let it campaign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from geraft.core import replication
from geraft.core.effects import Reason, TransferEnded
from geraft.core.messages import TimeoutNow

if TYPE_CHECKING:
    from geraft.core.events import TransferRequested
    from geraft.core.raft import Raft


QUIET_TIMEOUTS = 10
"""For so many election timeouts a leader does not try again to hand over to a voter of higher priority."""


@dataclass(slots=True)
class Transfer:
    """token: 0 if nobody asked for it but we ourselves."""

    token: int
    target: str
    deadline_seconds: float
    asked: bool = False


def start(raft: Raft, request: TransferRequested) -> None:
    target = request.target or _best_target(raft, request.applied_index)
    if target == raft.id and raft.transfer is None:
        raft.emit(TransferEnded(token=request.token, reason=None))
        return
    if raft.transfer is not None or target not in raft.progress or target not in raft.configuration.incoming_ids:
        reason = Reason.TRANSFERRING if raft.transfer is not None else Reason.NO_TARGET
        raft.emit(TransferEnded(token=request.token, reason=reason))
        return
    _begin(raft, request.token, target)


def _begin(raft: Raft, token: int, target: str) -> None:
    raft.transfer = Transfer(token, target, raft.now + raft.settings.election_timeout_seconds)
    caught_up(raft)


def leave(raft: Raft) -> None:
    """We lead and are no voter any more, which is committed: hand over to who is most caught up (4.2.2)."""
    target = _best_target(raft)
    if target:
        _begin(raft, 0, target)
    else:
        raft.become_follower(raft.term, "")


def _best_target(raft: Raft, applied_index: int = 0) -> str:
    """The voter that holds most of the log, among those heard within an election timeout whose app came so far."""
    heard = replication.heard_lately(raft)
    candidates = [
        (progress.match_index, progress.priority, id)
        for id, progress in raft.progress.items()
        if id in raft.configuration.incoming_ids and id in heard and progress.applied_index >= applied_index
    ]
    return max(candidates)[2] if candidates else ""


def caught_up(raft: Raft) -> None:
    """Tell the target to campaign once it holds all we do, and all of it is committed.

    The second is for our callers' sake: what is not committed when we step down ends as unknown.
    """
    transfer = raft.transfer
    if transfer is None or transfer.asked:
        return
    progress = raft.progress.get(transfer.target)
    if progress is not None and progress.match_index == raft.log.last_entry.index == raft.commit_index:
        transfer.asked = True
        raft.lease_broken = True  # the target is excused from waiting out our silence
        raft.send(transfer.target, raft.message(TimeoutNow))


def tick(raft: Raft) -> None:
    transfer = raft.transfer
    if transfer is None:
        _prefer(raft)
    elif raft.now >= transfer.deadline_seconds:
        raft.transfer = None
        _tell(raft, transfer, Reason.TIMED_OUT)
        if raft.id not in raft.configuration.voter_ids:
            raft.become_follower(raft.term, "")


def _prefer(raft: Raft) -> None:
    """Hand over to a voter that shall rather lead than we, once it holds all we do."""
    if not any(progress.priority > raft.settings.leader_priority for progress in raft.progress.values()):
        return
    if raft.now < raft.transfer_again_at_seconds or raft.change is not None or raft.commit_index < raft.noop_index:
        return
    heard = replication.heard_lately(raft)
    rivals = [
        (progress.priority, id)
        for id, progress in raft.progress.items()
        if id in heard
        and id in raft.configuration.incoming_ids
        and progress.priority > raft.settings.leader_priority
        and progress.match_index >= raft.commit_index
    ]
    if rivals:
        raft.transfer_again_at_seconds = raft.now + QUIET_TIMEOUTS * raft.settings.election_timeout_seconds
        _begin(raft, 0, max(rivals)[1])


def _tell(raft: Raft, transfer: Transfer, reason: Reason | None) -> None:
    if transfer.token:
        raft.emit(TransferEnded(token=transfer.token, reason=reason))


def ended(raft: Raft, by_higher_term: bool) -> None:
    """We stepped down, as wanted or not."""
    transfer, raft.transfer = raft.transfer, None
    if transfer is not None:
        _tell(raft, transfer, None if by_higher_term and transfer.asked else Reason.STEPPED_DOWN)


def refuse(raft: Raft, request: TransferRequested) -> None:
    raft.emit(TransferEnded(token=request.token, reason=Reason.NOT_LEADER))
