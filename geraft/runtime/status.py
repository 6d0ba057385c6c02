"""How a node stands, and why, in values and in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from geraft.core.changes import is_removed
from geraft.core.effects import Role
from geraft.core.membership import Configuration, Member
from geraft.core.raft import Raft
from geraft.runtime.snapshot_fetcher import SnapshotFetch


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """What a node knows of another member.

    connected: whether the replication stream to it is up; only a leader keeps one. match_index: as a leader, up to
    where it is known to hold the log, and applied_index how far its app is known to be. heard_seconds_ago: None if
    never. refusal: why it does not hear us, or we not it.
    """

    id: str
    address: str
    voter: bool
    connected: bool
    match_index: int
    heard_seconds_ago: float | None
    refusal: str
    applied_index: int = 0


class Waiting(NamedTuple):
    """Callers at a node, by what they wait for: a write to be committed, a read to be confirmed or for the app to come
    so far, and anything at all while no leader is known."""

    writes: int = 0
    reads: int = 0
    parked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node's own view. role: follower, pre_candidate, candidate or leader; explanation: one sentence for people.

    snapshot_index, snapshot_size_bytes: of its newest snapshot, 0 if there is none. log_base_index: of the entry before
    the oldest one in its log. fetching_from: the leader whose snapshot it fetches just now, "" if none; fetched_bytes
    of fetch_size_bytes are here, which is 0 until it is known.
    writes_waiting, reads_waiting: callers at this node as the leader; calls_parked: those who wait for a leader.
    membership: voter, learner, removed, or none yet, as the node knows. membership_change: on a leader, in words, the
    one that is under way.
    """

    id: str
    address: str
    cluster_id: str
    role: str
    term: int
    leader_id: str
    commit_index: int
    last_applied: int
    last_log_index: int
    snapshot_index: int
    snapshot_size_bytes: int
    log_base_index: int
    fetching_from: str
    fetched_bytes: int
    fetch_size_bytes: int
    explanation: str
    apply_error: str
    peers: tuple[PeerStatus, ...]
    writes_waiting: int = 0
    reads_waiting: int = 0
    calls_parked: int = 0
    membership: str = ""
    membership_change: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInfo:
    """Who leads and who is a member, as far as the asked node knows. leader_id: "" if it knows none."""

    cluster_id: str
    term: int
    leader_id: str
    leader_address: str
    members: tuple[Member, ...]
    learners: tuple[Member, ...]


def peer_statuses(
    raft: Raft, heard_at: dict[str, float], refusals: dict[str, str], now_seconds: float
) -> tuple[PeerStatus, ...]:
    configuration = raft.configuration
    statuses = []
    for id, member in sorted(configuration.members.items()):
        if id == raft.id:
            continue
        heard = heard_at.get(id)
        progress = raft.progress.get(id)
        statuses.append(
            PeerStatus(
                id=id,
                address=member.address,
                voter=id in configuration.voter_ids,
                connected=id in raft.connected,
                match_index=progress.match_index if progress is not None else 0,
                heard_seconds_ago=None if heard is None else max(now_seconds - heard, 0.0),
                refusal=refusals.get(id, ""),
                applied_index=progress.applied_index if progress is not None else 0,
            )
        )
    return tuple(statuses)


def membership_of(raft: Raft) -> str:
    if is_removed(raft):
        return "removed"
    if raft.id in raft.configuration.voter_ids:
        return "voter"
    return "learner" if raft.id in raft.configuration.members else "none"


def explain_change(raft: Raft) -> str:
    """What changes in the membership just now, and what it waits for; "" if nothing does."""
    change = raft.change
    if change is None:
        return "the last step of a joint configuration is under way" if raft.configuration.outgoing else ""
    if change.given_up:
        return f"given up: {change.given_up}"
    behind = [
        f"{id} still lacks {raft.log.last_entry.index - progress.match_index} entries (round {way.round})"
        for id, way in list(change.catching_up.items())
        if not way.done and (progress := raft.progress.get(id)) is not None
    ]
    return ", ".join(behind) or "a step waits to be committed"


def explain(
    raft: Raft,
    peers: tuple[PeerStatus, ...],
    apply_error: str,
    waiting: Waiting,
    done_index: int,
    fetch: SnapshotFetch | None = None,
) -> str:
    """One sentence: how things stand, and why; who lags, and what waits. done_index: how far the app really is."""
    if raft.role is Role.LEADER:
        lagging = [
            _how_it_lags(raft, peer) for peer in peers if peer.match_index < raft.commit_index or not peer.connected
        ]
        sentence = "leads, all members are up to date" if not lagging else f"leads; {', '.join(lagging)}"
        if change := explain_change(raft):
            sentence += f"; the membership changes: {change}"
    elif is_removed(raft):
        sentence = explain_no_leader(raft, peers)
    elif raft.leader_id:
        refusal = next((peer.refusal for peer in peers if peer.id == raft.leader_id), "")
        learning = " as a learner" if membership_of(raft) == "learner" else ""
        sentence = f"follows {raft.leader_id}{learning}" + (f", in vain: {refusal}" if refusal else "")
        if fetch is not None:
            sentence += f"; fetches a snapshot: {fetch.offset} of {fetch.size_bytes or 'unknown'} bytes are here"
    else:
        sentence = explain_no_leader(raft, peers)
    waits = _what_waits(raft, waiting, done_index)
    return "; ".join(filter(None, [sentence, waits, apply_error]))


def _how_it_lags(raft: Raft, peer: PeerStatus) -> str:
    lack = f"{peer.id} lacks {counted(raft.log.last_entry.index - peer.match_index, 'entry', 'entries')}"
    if peer.connected:
        return lack
    heard = "was never heard" if peer.heard_seconds_ago is None else f"was heard {peer.heard_seconds_ago:.0f} s ago"
    return f"{lack}, is not connected and {heard}" + (f" ({peer.refusal})" if peer.refusal else "")


def _what_waits(raft: Raft, waiting: Waiting, done_index: int) -> str:
    """ "" if nothing does."""
    parts = []
    if raft.role is Role.LEADER and (uncommitted := raft.log.last_entry.index - raft.commit_index) > 0:
        parts.append(f"{counted(uncommitted, 'entry', 'entries')} for a quorum")
    if (unapplied := raft.commit_index - max(raft.last_applied, done_index)) > 0:
        parts.append(f"{counted(unapplied, 'entry', 'entries')} for the app")
    if waiting.writes:
        parts.append(f"{counted(waiting.writes, 'caller')} with a write")
    if waiting.reads:
        parts.append(f"{counted(waiting.reads, 'caller')} with a read")
    if waiting.parked:
        parts.append(f"{counted(waiting.parked, 'caller')} for a leader")
    return f"waiting: {', '.join(parts)}" if parts else ""


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _silence(peer: PeerStatus) -> str:
    return "no answer" if peer.heard_seconds_ago is None else f"no answer for {peer.heard_seconds_ago:.0f} s"


def explain_no_leader(raft: Raft, peers: tuple[PeerStatus, ...]) -> str:
    configuration: Configuration = raft.configuration
    voters = configuration.voter_ids
    if is_removed(raft):
        return (
            f"removed from the cluster as of entry {raft.removed_at}: stop this node; to bring it back, start it over"
            " an empty store with join"
        )
    if not voters:
        return "no leader: this node is a member of no cluster yet"
    recent = 2 * raft.settings.election_timeout_seconds
    answering = {
        peer.id
        for peer in peers
        if peer.id in voters and peer.heard_seconds_ago is not None and peer.heard_seconds_ago <= recent
    }
    if raft.id in voters:
        answering.add(raft.id)
    missing = [
        f"{peer.id} at {peer.address}: {peer.refusal or _silence(peer)}"
        for peer in peers
        if peer.id in voters and peer.id not in answering
    ]
    answers = f"{len(answering)} of {len(voters)} voters {'answers' if len(answering) == 1 else 'answer'}"
    if 2 * len(answering) > len(voters):
        return f"no leader yet: {answers}, an election is under way"
    return f"no leader: {answers} ({'; '.join(missing)})"
