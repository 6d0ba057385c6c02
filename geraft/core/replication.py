"""The log on its way to the others, on both sides, and what that commits (Raft dissertation 3.5, 3.6.2, 10.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geraft.core import compaction
from geraft.core.effects import Apply, LoadEntries, ProposalAccepted, ProposalRefused, Reason, Role, TruncatedTo
from geraft.core.entries import EntryBatch, EntryId, EntryKind, total_bytes
from geraft.core.messages import AppendEntries, AppendEntriesReply, Heartbeat, HeartbeatReply
from geraft.core.progress import Pace
from geraft.core.quorum import agreed_value, is_quorum

if TYPE_CHECKING:
    from geraft.core.events import EntriesLoaded, Propose
    from geraft.core.progress import Progress
    from geraft.core.raft import Raft

ROUNDS_REMEMBERED = 256

# The leader's side ---------------------------------------------------------------------------------------------------


def append_proposal(raft: Raft, proposal: Propose) -> None:
    """Append the commands as one batch and send it while our own disk takes it (10.2.1)."""
    if raft.transfer is not None:
        raft.emit(ProposalRefused(token=proposal.token, reason=Reason.TRANSFERRING))
        return
    if raft.uncommitted_bytes > raft.settings.uncommitted_bytes_max:
        raft.emit(ProposalRefused(token=proposal.token, reason=Reason.OVERLOADED))
        return
    first_index = raft.append_own(proposal.kind, proposal.commands)
    raft.emit(
        ProposalAccepted(token=proposal.token, term=raft.term, first_index=first_index, count=len(proposal.commands))
    )
    for id in raft.progress:
        send_entries(raft, id)


def refuse_proposal(raft: Raft, proposal: Propose) -> None:
    raft.emit(ProposalRefused(token=proposal.token, reason=Reason.NOT_LEADER))


def tick(raft: Raft) -> None:
    """As a leader: heartbeats, lost messages, and whether a quorum still answers (check-quorum, 6.2)."""
    settings = raft.settings
    if not hears_quorum(raft):
        raft.become_follower(raft.term, "")
        return
    if raft.now >= raft.heartbeat_at_seconds:
        send_heartbeats(raft)
    for id, progress in raft.progress.items():  # by a clock of its own: rounds of reads put heartbeats off
        silent = raft.now - progress.moved_at_seconds
        if progress.pace is Pace.PROBE and silent >= settings.heartbeat_interval_seconds:
            send_probe(raft, id)
        elif progress.pace is Pace.SNAPSHOT:
            compaction.remind(raft, id)
        elif progress.inflight and silent >= 3 * settings.election_timeout_seconds:
            progress.probe_from(progress.match_index + 1)
            send_probe(raft, id)


def hears_quorum(raft: Raft) -> bool:
    """Whether a quorum was heard lately: we bear with them for as long as they bear with us before they campaign.

    No follower suspects a leader earlier, so to give up sooner would only leave the cluster without one.
    """
    # A leader that is no longer a voter goes on until its removal is committed (4.2.2): it is not counted.
    heard = heard_lately(raft, raft.settings.acceptable_pause_seconds)
    return is_quorum(heard, raft.configuration.quorum_groups)


def heard_lately(raft: Raft, patience_seconds: float = 0.0) -> set[str]:
    """Who answered us within an election timeout, and that much more; and ourselves."""
    oldest = raft.now - raft.settings.election_timeout_seconds - patience_seconds
    heard = {id for id, progress in raft.progress.items() if progress.heard_at_seconds >= oldest}
    heard.add(raft.id)
    return heard


def send_heartbeats(raft: Raft) -> None:
    """Start the next round: its number confirms leadership when a quorum repeats it (6.4)."""
    raft.heartbeat_at_seconds = raft.now + raft.settings.heartbeat_interval_seconds
    raft.round += 1
    raft.rounds_sent.append((raft.round, raft.now))
    if len(raft.rounds_sent) > ROUNDS_REMEMBERED:
        raft.rounds_sent.popleft()
    for id, progress in raft.progress.items():
        raft.send(
            id,
            Heartbeat(
                sender=raft.id,
                sender_store=raft.store_id,
                term=raft.term,
                commit_index=min(raft.commit_index, progress.match_index),
                round=raft.round,
            ),
        )


def send_probe(raft: Raft, id: str) -> None:
    """Ask whether the follower's log agrees with ours before its next_index."""
    progress = raft.progress[id]
    if progress.next_index <= raft.log.base.index:
        compaction.offer(raft, id)
        return
    prev = _prev_of(raft, progress.next_index)
    progress.moved_at_seconds = raft.now
    raft.send(id, _append_message(raft, prev, ()))


def _prev_of(raft: Raft, next_index: int) -> EntryId:
    term = raft.log.term_at(next_index - 1)
    assert term is not None, "next_index lies within the log, or directly after it"
    return EntryId(term, next_index - 1)


def _append_message(raft: Raft, prev: EntryId, batches: tuple[EntryBatch, ...]) -> AppendEntries:
    return AppendEntries(
        sender=raft.id,
        sender_store=raft.store_id,
        term=raft.term,
        prev=prev,
        batches=batches,
        commit_index=raft.commit_index,
    )


def send_entries(raft: Raft, id: str) -> None:
    """Send what the follower lacks, as far as its window is open; the next batch does not wait for the last ack."""
    progress = raft.progress[id]
    settings = raft.settings
    last_index = raft.log.last_entry.index
    if progress.pace is Pace.PIPELINE and progress.next_index <= raft.log.base.index:
        compaction.offer(raft, id)
    while progress.pace is Pace.PIPELINE and progress.next_index <= last_index and _window_open(raft, progress):
        batches = raft.log.cached(progress.next_index, last_index, settings.append_bytes_max)
        if batches is None:
            progress.pace = Pace.LOAD
            raft.emit(
                LoadEntries(
                    peer=id,
                    first_index=progress.next_index,
                    last_index=last_index,
                    bytes_max=settings.append_bytes_max,
                )
            )
            return
        _send_batches(raft, id, progress, batches)


def _window_open(raft: Raft, progress: Progress) -> bool:
    return (
        len(progress.inflight) < raft.settings.inflight_messages_max
        and progress.inflight_bytes < raft.settings.inflight_bytes_max
    )


def _send_batches(raft: Raft, id: str, progress: Progress, batches: tuple[EntryBatch, ...]) -> None:
    prev = _prev_of(raft, progress.next_index)
    progress.sent(batches[-1].last_index, total_bytes(batches), raft.now)
    raft.send(id, _append_message(raft, prev, batches))


def send_loaded(raft: Raft, loaded: EntriesLoaded) -> None:
    """Go on for a follower that lags behind what memory holds."""
    progress = raft.progress.get(loaded.peer)
    if progress is None or progress.pace is not Pace.LOAD:
        return
    progress.pace = Pace.PIPELINE
    batches = loaded.batches
    usable = (
        progress.next_index == loaded.first_index > raft.log.base.index
        and batches
        and raft.log.term_at(batches[-1].last_index) == batches[-1].term
    )
    if not usable:
        progress.probe_from(progress.match_index + 1)
        return  # the next tick asks again
    _send_batches(raft, loaded.peer, progress, batches)
    send_entries(raft, loaded.peer)


def count_append_reply(raft: Raft, reply: AppendEntriesReply) -> None:
    progress = raft.progress.get(reply.sender)
    if progress is None:
        return
    progress.heard_at_seconds = raft.now
    if reply.rejected is not None:
        _find_common(raft, reply.sender, progress, reply.rejected, reply.hint)
        return
    if reply.match_index > raft.log.last_entry.index:
        raft.alarm(f"{reply.sender} acknowledged entry {reply.match_index}, which was never sent")
        return
    progress.acknowledged(reply.match_index, raft.now)
    if progress.offered is not None and raft.snapshot is not None and progress.match_index >= raft.snapshot.index:
        progress.offered = None
    if progress.pace is Pace.SNAPSHOT:
        if progress.match_index < raft.log.base.index:
            return  # of a message before the offer
        progress.pace = Pace.PIPELINE
        progress.next_index = progress.match_index + 1
    elif progress.pace is Pace.PROBE:
        if reply.match_index + 1 < progress.next_index:
            return  # of an earlier message: the probe's own answer is still to come
        progress.pace = Pace.PIPELINE
        progress.next_index = progress.match_index + 1
    advance_commit(raft)
    if progress.next_index <= raft.log.last_entry.index:
        send_entries(raft, reply.sender)
    raft.follower_caught_up()


def _find_common(raft: Raft, id: str, progress: Progress, rejected: EntryId, hint: EntryId) -> None:
    """The follower lacks `rejected`: go back to the last entry of ours that may be its own, a term at a time."""
    if progress.pace is Pace.SNAPSHOT:
        compaction.offer_refused(raft, id, rejected)
        return
    if rejected.index <= progress.match_index:
        return  # late: the follower has agreed since
    if progress.pace is Pace.PROBE and rejected.index != progress.next_index - 1:
        return  # late: an answer to an earlier probe
    common = raft.log.last_possible_match(hint)
    progress.probe_from(min(common.index + 1, rejected.index))
    send_probe(raft, id)


def advance_commit(raft: Raft) -> None:
    """Commit what a quorum of the latest configuration holds, if it is of our term (3.6.2).

    We count ourselves like any other: only what is durable here (10.2.1).
    """
    index = agreed_index(raft, raft.durable_index)
    if index <= raft.commit_index or raft.log.term_at(index) != raft.term:
        return
    raft.commit_to(index)
    raft.leader_committed()


def agreed_index(raft: Raft, own_index: int) -> int:
    """The last index that a quorum holds, if we hold everything up to own_index."""
    progress = raft.progress

    def match_index(id: str) -> int:
        if id == raft.id:
            return own_index
        known = progress.get(id)
        return known.match_index if known is not None else 0

    return int(agreed_value(match_index, raft.configuration.quorum_groups))


def record_store_ids(raft: Raft) -> None:
    """Put the identities of the members' stores into the configuration, as soon as they are known.

    Replicated so, a member whose state was lost is told from the one it was, by everyone and after every restart.
    No voter comes or goes by it, so any quorum before and after meet.
    """
    configuration = raft.configuration
    if raft.commit_index < max(raft.noop_index, raft.log.configuration_index) or raft.transfer is not None:
        return  # a target of a transfer that we append after would no longer hold all we do
    if raft.id not in configuration.voter_ids:
        return  # we hand over in a moment
    if all(member.store_id or member.id not in raft.store_ids for member in configuration.members.values()):
        return
    raft.append_own(EntryKind.CONFIGURATION, (b"",), configuration.with_store_ids(raft.store_ids))
    for id in raft.progress:
        send_entries(raft, id)


# The follower's side -------------------------------------------------------------------------------------------------


def answer_append(raft: Raft, request: AppendEntries) -> None:
    """Take the entries if ours agree before them; drop what conflicts, never anything committed (3.5)."""
    hear_leader(raft, request.sender)
    log = raft.log
    prev = request.prev
    if prev.index > log.base.index and log.term_at(prev.index) != prev.term:
        raft.reply(request.sender, raft.append_reply(rejected=prev, hint=log.last_possible_match(prev)))
        return
    verified = prev.index
    for batch in request.batches:
        verified = batch.last_index
        if verified <= log.base.index:
            continue  # part of a snapshot by now
        if batch.first_index <= log.base.index:
            batch = batch.slice(log.base.index + 1, verified)
        if batch.first_index <= log.last_entry.index:
            first_new = log.first_conflict(batch)
            if first_new > verified:
                continue  # we have all of it
            if first_new <= raft.commit_index:
                raft.alarm(
                    f"{request.sender} sent an entry {batch.term}.{first_new} that conflicts with a committed one;"
                    " refused: this cluster's logs differ where they never may"
                )
                return
            if first_new <= log.last_entry.index:
                _truncate_to(raft, first_new - 1)
            batch = batch.slice(first_new, verified)
        raft.append(batch)
    raft.commit_to(min(request.commit_index, verified))
    raft.send_when_durable(request.sender, raft.append_reply(match_index=verified))


def _truncate_to(raft: Raft, index: int) -> None:
    configuration_index = raft.log.configuration_index
    raft.log.truncate_to(index)
    raft.durable_index = min(raft.durable_index, index)
    raft.persists_count_from = raft.next_persist
    raft.emit(TruncatedTo(last=raft.log.last_entry))
    if raft.log.configuration_index != configuration_index:
        raft.configuration_changed()  # rolled back with its entry (4.1)


def answer_heartbeat(raft: Raft, request: Heartbeat) -> None:
    """Its commit index is at most what we acknowledged in this term, so our log agrees with the leader's up to it."""
    hear_leader(raft, request.sender)
    raft.commit_to(request.commit_index)
    silent_seconds = min(raft.settings.election_timeout_seconds, raft.silent_seconds_after_restart)
    reply = raft.message(
        HeartbeatReply,
        round=request.round,
        last_applied=raft.last_applied,
        silent_seconds=silent_seconds,
        priority=raft.settings.leader_priority,
    )
    raft.reply(request.sender, reply)


def hear_leader(raft: Raft, leader_id: str) -> None:
    """The leader of our term lives: follow it, even as a candidate (3.4)."""
    if raft.role is not Role.FOLLOWER:
        raft.become_follower(raft.term, leader_id)
    else:
        raft.follow(leader_id)
    raft.detector.heard(raft.now)
    # Never earlier than promised before, under a longer election timeout.
    raft.silent_until_seconds = max(raft.silent_until_seconds, raft.now + raft.settings.election_timeout_seconds)
    raft.campaign_at_seconds = None


# Both sides ----------------------------------------------------------------------------------------------------------


def hand_to_app(raft: Raft) -> None:
    """Give the app's thread what is committed, a bounded amount at a time."""
    if raft.arrived is not None:
        return  # it waits for the app to come to an end; what was not handed over is part of it
    bytes_max = raft.settings.apply_bytes_max
    while raft.handed_to_app < raft.commit_index and (not raft.applying or raft.applying_bytes < bytes_max):
        first_index = raft.handed_to_app + 1
        batches = raft.log.cached(first_index, raft.commit_index, bytes_max)
        if batches is None:
            last_index = min(raft.commit_index, raft.log.cached_from - 1)
            batches = ()
            size_bytes = bytes_max
        else:
            last_index = batches[-1].last_index
            size_bytes = total_bytes(batches)
        raft.handed_to_app = last_index
        raft.applying.append((last_index, size_bytes))
        raft.applying_bytes += size_bytes
        raft.emit(Apply(first_index=first_index, last_index=last_index, batches=batches))
