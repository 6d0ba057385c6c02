"""Linearizable reads without writing to the log (Raft dissertation 6.4): shared ReadIndex rounds, and leases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from geraft.core import replication
from geraft.core.effects import ReadConfirmed, ReadRefused, Reason
from geraft.core.quorum import agreed_value

if TYPE_CHECKING:
    from geraft.core.events import ReadRequested
    from geraft.core.messages import HeartbeatReply
    from geraft.core.progress import Progress
    from geraft.core.raft import Raft


def queue_read(raft: Raft, request: ReadRequested) -> None:
    """Confirm at once under a lease, else by the next round of heartbeats, which all reads waiting by then share."""
    if request.lease and raft.commit_index >= raft.noop_index and holds_lease(raft):
        raft.emit(ReadConfirmed(tokens=(request.token,), read_index=raft.commit_index))
        return
    raft.reads_waiting.append(request.token)
    go_on(raft)


def go_on(raft: Raft) -> None:
    """Start a round for the reads that wait, unless one runs, or nothing of our term is committed yet (step 1)."""
    if not raft.reads_waiting or raft.reads_confirming or raft.commit_index < raft.noop_index:
        return
    replication.send_heartbeats(raft)
    raft.reads_confirming.append((raft.round, tuple(raft.reads_waiting), raft.commit_index))
    raft.reads_waiting.clear()
    confirm(raft)  # we may be the only voter


def count_heartbeat_reply(raft: Raft, reply: HeartbeatReply) -> None:
    """The follower lives, and knew no later leader when it answered this round."""
    progress = raft.progress.get(reply.sender)
    if progress is None or reply.round > raft.round:
        return
    progress.heard_at_seconds = raft.now
    progress.applied_index = max(progress.applied_index, reply.last_applied)
    progress.priority = reply.priority
    if reply.round > progress.acked_round:
        progress.acked_round = reply.round
        _extend_lease(raft, progress, reply)
        confirm(raft)
    replication.record_store_ids(raft)


def confirm(raft: Raft) -> None:
    """Answer the reads whose round a quorum has repeated."""
    if not raft.reads_confirming:
        return
    agreed = agreed_value(lambda id: _acked_round(raft, id), raft.configuration.quorum_groups)
    while raft.reads_confirming and raft.reads_confirming[0][0] <= agreed:
        _, tokens, read_index = raft.reads_confirming.popleft()
        raft.emit(ReadConfirmed(tokens=tokens, read_index=read_index))
    go_on(raft)


def _acked_round(raft: Raft, id: str) -> int:
    if id == raft.id:
        return raft.round
    progress = raft.progress.get(id)
    return progress.acked_round if progress is not None else 0


def _extend_lease(raft: Raft, progress: Progress, reply: HeartbeatReply) -> None:
    """The follower keeps silent from when it heard the round, which was not before it was sent.

    By our clock its silence may be shorter by clock_drift_max. What counts is its own promise: its election timeout
    may be another than ours while the cluster is being tuned.
    """
    sent_at = next((at for round, at in reversed(raft.rounds_sent) if round <= reply.round), None)
    if sent_at is not None:
        settings = raft.settings
        silent_seconds = min(reply.silent_seconds, settings.election_timeout_seconds) * (1 - settings.clock_drift_max)
        progress.silent_until_seconds = max(progress.silent_until_seconds, sent_at + silent_seconds)


def holds_lease(raft: Raft) -> bool:
    """Whether no other leader can exist yet: a quorum has promised to help nobody else at this time.

    It holds if clocks differ by no more than clock_drift_max in speed. An election that we asked for ourselves ends
    every lease of our term. A leader that was removed has none: the last voter that is left needs nobody's vote, and
    does not wait out a silence when it restarts.
    """
    if raft.lease_broken or raft.id not in raft.configuration.voter_ids:
        return False
    return raft.now < agreed_value(lambda id: _silent_until(raft, id), raft.configuration.quorum_groups)


def _silent_until(raft: Raft, id: str) -> float:
    if id == raft.id:
        return math.inf
    progress = raft.progress.get(id)
    return progress.silent_until_seconds if progress is not None else -math.inf


def refuse_read(raft: Raft, request: ReadRequested) -> None:
    raft.emit(ReadRefused(tokens=(request.token,), reason=Reason.NOT_LEADER))


def refuse_all(raft: Raft) -> None:
    """We no longer lead: no round of ours can confirm anything."""
    tokens = [token for _, waiting, _ in raft.reads_confirming for token in waiting] + raft.reads_waiting
    raft.reads_confirming.clear()
    raft.reads_waiting.clear()
    if tokens:
        raft.emit(ReadRefused(tokens=tuple(tokens), reason=Reason.STEPPED_DOWN))
