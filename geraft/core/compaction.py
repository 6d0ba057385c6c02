"""Snapshots: recorded, sent and installed, and the log cut off behind them (Raft dissertation 5.1, 5.3).

A snapshot is a record beside the log and no entry of it. The app makes it; this module has it recorded durably, then
cuts the log in bounded steps. A follower whose next entry is gone is offered the newest snapshot and fetches the bytes
itself, beside the log; when it has all of them, verified and durable, the install is one event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from geraft.core import replication
from geraft.core.effects import (
    CancelFetch,
    Committed,
    CompactLog,
    DiscardSnapshot,
    FetchSnapshot,
    InstallSnapshot,
    RecordSnapshot,
    Role,
)
from geraft.core.entries import EntryId
from geraft.core.messages import OfferSnapshot
from geraft.core.snapshots import Snapshot

if TYPE_CHECKING:
    from geraft.core.events import LogCompacted, SnapshotFetched, SnapshotFetchFailed, SnapshotMade, SnapshotRecorded
    from geraft.core.raft import Raft


class Fetch(NamedTuple):
    """The snapshot that is being fetched, and from whom."""

    leader: str
    last_entry: EntryId


# Made here -----------------------------------------------------------------------------------------------------------


def record_made(raft: Raft, made: SnapshotMade) -> None:
    """The app has a durable snapshot of an entry that it has applied: record it, unless a newer one is there."""
    term = raft.log.term_at(made.index)
    outdated = raft.snapshot is not None and made.index < raft.snapshot.index
    if term is None or made.index > raft.handed_to_app or outdated:
        raft.emit(DiscardSnapshot(index=made.index, fetched=False))
        return
    configuration_index, configuration = raft.log.configuration_at(made.index)
    snapshot = Snapshot(
        last_entry=EntryId(term, made.index),
        configuration=configuration,
        configuration_index=configuration_index,
        size_bytes=made.size_bytes,
        checksum=made.checksum,
        sessions=made.sessions,
    )
    raft.emit(RecordSnapshot(snapshot=snapshot))


def count_recorded(raft: Raft, recorded: SnapshotRecorded) -> None:
    """The snapshot is in the catalogue, durably: from now on the log behind it may go, and followers may be offered it.

    Never before (FLAWS D3): until then only the log can bring its entries back.
    """
    if raft.snapshot is None or recorded.snapshot.index >= raft.snapshot.index:
        raft.snapshot = recorded.snapshot


# The log is cut ------------------------------------------------------------------------------------------------------


def tick(raft: Raft) -> None:
    """Cut the log by another step, if one is due; one at a time, so that writes go on between them."""
    if raft.compacting or raft.snapshot is None:
        return
    base = raft.log.base.index
    if raft.compact_to <= base:
        target = cut_index(raft)
        if target <= base + raft.settings.trailing_entries // 8:
            return  # a step for every few entries would cost more than it frees
        raft.compact_to = target
    index = min(raft.compact_to, cut_index(raft))
    if index <= base:
        raft.compact_to = base
        return
    raft.compacting = True
    raft.emit(CompactLog(index=index, bytes_max=raft.settings.compact_bytes_max))


def cut_index(raft: Raft) -> int:
    """Up to where the log may go: trailing entries stay behind the newest snapshot, for followers that are slow.

    So does all that the app has not applied yet, and all that a follower needs which is fetching a snapshot from us, or
    has not come as far as the newest one since (FLAWS D5): else it would be offered another one, for ever.
    """
    assert raft.snapshot is not None
    index = min(raft.snapshot.index - raft.settings.trailing_entries, raft.last_applied)
    oldest = raft.now - raft.settings.election_timeout_seconds
    for progress in raft.progress.values():
        if progress.offered is not None and progress.heard_at_seconds >= oldest:
            index = min(index, max(progress.offered.index, progress.match_index))
    return index


def count_compacted(raft: Raft, compacted: LogCompacted) -> None:
    """The store has cut the log: entries up to base are gone."""
    raft.compacting = False
    if compacted.base.index > raft.log.base.index:
        raft.log.compact_to(compacted.base.index)
    else:
        raft.compact_to = raft.log.base.index  # no whole batch ends there


# The leader's side ---------------------------------------------------------------------------------------------------


def offer(raft: Raft, id: str) -> None:
    """The follower's next entry is gone here: offer a snapshot instead, the same one until it is fetched or refused."""
    progress = raft.progress[id]
    snapshot = progress.offered
    if snapshot is None or snapshot.index < raft.log.base.index:
        snapshot = raft.snapshot
    assert snapshot is not None and snapshot.index >= raft.log.base.index, "a log is cut behind a snapshot only"
    progress.await_install(snapshot, raft.now)
    raft.send(id, raft.message(OfferSnapshot, last_entry=snapshot.last_entry))


def offer_refused(raft: Raft, id: str, refused: EntryId) -> None:
    """The follower could not get the snapshot: the next tick offers the newest one, which may be another by now."""
    progress = raft.progress[id]
    if progress.offered is not None and progress.offered.last_entry == refused:
        progress.offered = None
        progress.moved_at_seconds = raft.now


def remind(raft: Raft, id: str) -> None:
    """As a leader, at a tick: an offer may have been lost."""
    progress = raft.progress[id]
    settings = raft.settings
    pause = settings.heartbeat_interval_seconds if progress.offered is None else settings.election_timeout_seconds
    if raft.now - progress.moved_at_seconds >= pause:
        offer(raft, id)


# The follower's side -------------------------------------------------------------------------------------------------


def answer_offer(raft: Raft, message: OfferSnapshot) -> None:
    """Fetch the snapshot, unless our log agrees with the leader's that far: then say so.

    One at or below commit_index is never fetched (FLAWS S13): what is committed here is in the leader's log too.
    """
    replication.hear_leader(raft, message.sender)
    wanted = message.last_entry
    if agrees(raft, wanted):
        raft.commit_to(wanted.index)  # a snapshot holds nothing but committed entries
        raft.send_when_durable(message.sender, raft.append_reply(match_index=wanted.index))
        return
    fetch = Fetch(message.sender, wanted)
    if raft.arrived is None and raft.fetching != fetch:
        raft.fetching = fetch
        raft.emit(FetchSnapshot(leader=message.sender, last_entry=wanted))


def agrees(raft: Raft, entry: EntryId) -> bool:
    """Whether our log is the leader's up to a committed entry."""
    return entry.index <= raft.commit_index or raft.log.term_at(entry.index) == entry.term


def cancel_fetch(raft: Raft) -> None:
    """Another server leads, or the log has come further: the fetch is of no use any more."""
    raft.fetching = None
    raft.emit(CancelFetch())


def fetch_failed(raft: Raft, failed: SnapshotFetchFailed) -> None:
    """The leader no longer has the snapshot, or its bytes were damaged: ask for another one."""
    if raft.fetching != Fetch(failed.leader, failed.last_entry):
        return
    raft.fetching = None
    if raft.role is Role.FOLLOWER and raft.leader_id == failed.leader:
        raft.reply(failed.leader, raft.append_reply(rejected=failed.last_entry, hint=raft.log.last_entry))


def take_fetched(raft: Raft, fetched: SnapshotFetched) -> None:
    """All its bytes are here, verified and durable."""
    if raft.fetching != Fetch(fetched.leader, fetched.snapshot.last_entry):
        raft.emit(DiscardSnapshot(index=fetched.snapshot.index, fetched=True))
        return
    raft.fetching = None
    raft.arrived = fetched.snapshot
    install_arrived(raft)


def install_arrived(raft: Raft) -> None:
    """Install the snapshot that arrived, as soon as the app has applied all that it was handed before (FLAWS S16).

    Outdated by now, it is ignored. A log that agrees with it is kept; any other gives way to it as a whole (FLAWS L1):
    of such a log nothing beyond commit_index was committed (5.1).
    """
    snapshot = raft.arrived
    if snapshot is None or raft.applying:
        return
    raft.arrived = None
    if snapshot.index <= raft.commit_index or raft.role is Role.LEADER:  # a leader never drops an entry of its log
        raft.emit(DiscardSnapshot(index=snapshot.index, fetched=True))
    elif agrees(raft, snapshot.last_entry):
        raft.emit(RecordSnapshot(snapshot=snapshot))
        raft.commit_to(snapshot.index)
    else:
        _replace_log(raft, snapshot)
    if raft.role is Role.FOLLOWER and raft.leader_id:
        raft.send_when_durable(raft.leader_id, raft.append_reply(match_index=snapshot.index))
    replication.hand_to_app(raft)


def _replace_log(raft: Raft, snapshot: Snapshot) -> None:
    first_index = raft.commit_index + 1
    raft.log.reset(snapshot)
    raft.reset_to(snapshot)
    raft.durable_index = min(raft.durable_index, raft.commit_index)
    raft.commit_index = raft.handed_to_app = snapshot.index
    raft.applying.append((snapshot.index, 0))
    raft.configuration_changed()
    raft.emit(Committed(first_index=first_index, last_index=snapshot.index))
    raft.emit(InstallSnapshot(snapshot=snapshot))
