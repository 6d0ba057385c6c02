"""Handing leadership over (Raft dissertation 3.10): stop writes, bring the target up to date, let it campaign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from geraft.core.effects import Reason, TransferEnded
from geraft.core.messages import TimeoutNow

if TYPE_CHECKING:
    from geraft.core.events import TransferRequested
    from geraft.core.raft import Raft


@dataclass(slots=True)
class Transfer:
    token: int
    target: str
    deadline_seconds: float
    asked: bool = False


def start(raft: Raft, request: TransferRequested) -> None:
    target = request.target or _best_target(raft, request.applied_index)
    if target == raft.id and raft.transfer is None:
        raft.emit(TransferEnded(token=request.token, reason=None))
        return
    if raft.transfer is not None or target not in raft.progress or target not in raft.configuration.voter_ids:
        reason = Reason.TRANSFERRING if raft.transfer is not None else Reason.NO_TARGET
        raft.emit(TransferEnded(token=request.token, reason=reason))
        return
    raft.transfer = Transfer(request.token, target, raft.now + raft.settings.election_timeout_seconds)
    caught_up(raft)


def _best_target(raft: Raft, applied_index: int) -> str:
    """The voter that holds most of the log, among those heard within an election timeout whose app came so far."""
    oldest = raft.now - raft.settings.election_timeout_seconds
    candidates = [
        (progress.match_index, id)
        for id, progress in raft.progress.items()
        if id in raft.configuration.voter_ids
        and progress.heard_at_seconds >= oldest
        and progress.applied_index >= applied_index
    ]
    return max(candidates)[1] if candidates else ""


def caught_up(raft: Raft) -> None:
    """Tell the target to campaign once it holds all we do."""
    transfer = raft.transfer
    if transfer is None or transfer.asked:
        return
    progress = raft.progress.get(transfer.target)
    if progress is not None and progress.match_index == raft.log.last_entry.index:
        transfer.asked = True
        raft.lease_broken = True  # the target is excused from waiting out our silence
        raft.send(transfer.target, raft.message(TimeoutNow))


def tick(raft: Raft) -> None:
    transfer = raft.transfer
    if transfer is not None and raft.now >= transfer.deadline_seconds:
        raft.transfer = None
        raft.emit(TransferEnded(token=transfer.token, reason=Reason.TIMED_OUT))


def ended(raft: Raft, by_higher_term: bool) -> None:
    """We stepped down, as wanted or not."""
    transfer, raft.transfer = raft.transfer, None
    if transfer is not None:
        reason = None if by_higher_term and transfer.asked else Reason.STEPPED_DOWN
        raft.emit(TransferEnded(token=transfer.token, reason=reason))


def refuse(raft: Raft, request: TransferRequested) -> None:
    raft.emit(TransferEnded(token=request.token, reason=Reason.NOT_LEADER))
