"""The leader changes who is a member (Raft dissertation 4): one change at a time, each step once the last is committed.

A change is a way from the configuration in force to a wanted one; membership.next_step says where it leads next, and
`advance` goes there, and looks at the moment of the append, so no two changes start from the same base (FLAWS S10).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from geraft.core import replication, transfer
from geraft.core.effects import ChangeEnded, ChangeOutcome, PeersChanged, Removed, Role
from geraft.core.entries import EntryKind
from geraft.core.membership import ChangeRefused, Configuration, MembershipChange, changed, configuration_of, next_step
from geraft.core.quorum import is_quorum

if TYPE_CHECKING:
    from geraft.core.events import ChangeMembership
    from geraft.core.raft import Raft

ROUNDS_MAX = 10
"""Of catching up. In each a server gets what was appended during the one before (4.2.1)."""
SILENT_TIMEOUTS = 5
"""For so many election timeouts a server that shall become a voter may be silent."""


@dataclass(slots=True)
class CatchUp:
    """One server on its way to be a voter. goal_index: the end of the log when the round began."""

    goal_index: int
    began_at_seconds: float
    round: int = 1
    done: bool = False


@dataclass(slots=True)
class Change:
    """The one that is under way. target: unknown until it has begun. came_in: who became a learner by it.

    appended: whether any step of it is in the log. given_up: why, once it is being taken back. lagging: who
    did not catch up, if that is why. waited: whether anybody had to.
    """

    token: int
    wanted: MembershipChange
    deadline_seconds: float
    target: Configuration | None = None
    came_in: set[str] = field(default_factory=set)
    catching_up: dict[str, CatchUp] = field(default_factory=dict)
    appended: bool = False
    given_up: str = ""
    lagging: str = ""
    waited: bool = False


def start(raft: Raft, request: ChangeMembership) -> None:
    """Begin at once, or as soon as an entry of our term and the configuration in force are committed."""
    if raft.change is not None:
        sentence = "another change of the membership is under way: wait until it has ended, then ask again"
        raft.emit(ChangeEnded(token=request.token, outcome=ChangeOutcome.PENDING, sentence=sentence))
        return
    raft.change = Change(request.token, request.change, raft.now + request.timeout_seconds)
    advance(raft)


def refuse(raft: Raft, request: ChangeMembership) -> None:
    raft.emit(ChangeEnded(token=request.token, outcome=ChangeOutcome.NOT_LEADER, sentence="the leader decides"))


def is_settled(raft: Raft) -> bool:
    """Whether another configuration may be appended: the one in force is committed, and an entry of our term.

    Without the second a change of an earlier leader could be forgotten that a majority of neither the old nor the new
    voters rules out (the single-server bug of 2015, raft-dev).
    """
    return raft.commit_index >= max(raft.noop_index, raft.log.configuration_index) and raft.transfer is None


def advance(raft: Raft) -> None:
    """As the leader: take the next step of what is under way, if it is time for it."""
    if not is_settled(raft):
        return
    if raft.configuration.outgoing:
        _append(raft, Configuration(voters=raft.configuration.voters, learners=raft.configuration.learners))
        return
    change = raft.change
    if change is None:
        if raft.id not in raft.configuration.voter_ids:
            transfer.leave(raft)
        else:
            replication.record_store_ids(raft)
        return
    if change.given_up:
        learners = [member for member in raft.configuration.learners if member.id not in change.came_in]
        if len(learners) < len(raft.configuration.learners):
            _append(raft, configuration_of(raft.configuration.voters, learners))
        else:
            _end(raft, ChangeOutcome.GIVEN_UP if change.waited else ChangeOutcome.REFUSED, change.given_up)
        return
    if change.target is None:
        try:
            change.target = changed(raft.configuration, change.wanted)
        except ChangeRefused as refused:
            _end(raft, ChangeOutcome.REFUSED, str(refused))
            return
    step = next_step(raft.configuration, change.target, {id for id, way in change.catching_up.items() if way.done})
    if step is None:
        _catch_up(raft, change, change.target)
    elif step == raft.configuration:
        _end(raft, ChangeOutcome.DONE)
    elif sentence := _hopeless(raft, step):
        _give_up(raft, change, sentence)
    else:
        change.came_in |= step.members.keys() - raft.configuration.members.keys()
        change.appended = True
        _append(raft, step)


def _append(raft: Raft, configuration: Configuration) -> None:
    newcomers = configuration.members.keys() - raft.progress.keys() - {raft.id}
    raft.append_own(EntryKind.CONFIGURATION, (b"",), configuration.with_store_ids(raft.store_ids))
    for id in raft.progress:
        if id in newcomers:
            replication.send_probe(raft, id)
        else:
            replication.send_entries(raft, id)


def _hopeless(raft: Raft, step: Configuration) -> str:
    """Why the step could not be committed now, nor anything after it; "" if it could."""
    if step.voter_ids == raft.configuration.voter_ids and not step.outgoing:
        return ""
    heard = replication.heard_lately(raft)
    if is_quorum(heard, step.quorum_groups):
        return ""
    silent = ", ".join(
        f"{id} at {member.address}" for id, member in sorted(step.members.items()) if id in step.voter_ids - heard
    )
    return (
        f"too many of the voters {', '.join(sorted(step.voter_ids))} would not answer ({silent}), so that nothing could"
        " be written any more: start them, or remove those first that are gone for good"
    )


def _catch_up(raft: Raft, change: Change, target: Configuration) -> None:
    """Count the rounds of those who shall vote; go on once a round took them less than an election timeout (4.2.1)."""
    for id in sorted(target.voter_ids - raft.configuration.voter_ids):
        way = change.catching_up.get(id)
        if way is None:
            change.waited = True
            way = change.catching_up[id] = CatchUp(raft.log.last_entry.index, raft.now)
        if id == raft.id:  # demoted a moment ago, and about to hand over: it holds all there is
            way.done = True
            continue
        progress = raft.progress[id]
        while not way.done and progress.match_index >= way.goal_index:
            if raft.now - way.began_at_seconds <= raft.settings.election_timeout_seconds:
                way.done = True
            elif way.round >= ROUNDS_MAX:
                _give_up(
                    raft, change, f"{_named(raft, id)} does not catch up: writes come faster than it takes them", id
                )
                return
            else:
                way.round += 1
                way.goal_index, way.began_at_seconds = raft.log.last_entry.index, raft.now
    if all(way.done for way in change.catching_up.values()):
        advance(raft)


def _named(raft: Raft, id: str) -> str:
    return f"{id} at {raft.configuration.members[id].address}"


def tick(raft: Raft) -> None:
    """As the leader: give up on who is silent or takes too long, and let go of who was removed a while ago."""
    change = raft.change
    if change is not None and not change.given_up:
        silent_since = raft.now - SILENT_TIMEOUTS * raft.settings.election_timeout_seconds
        for id, way in change.catching_up.items():
            progress = raft.progress.get(id)
            if way.done or progress is None:
                continue
            if progress.heard_at_seconds < silent_since:
                verb = "stopped answering" if progress.match_index else "never answered"
                _give_up(raft, change, f"{_named(raft, id)} {verb}: start it there, or correct the address", id)
                return
            if raft.now >= change.deadline_seconds:
                lacks = raft.log.last_entry.index - progress.match_index
                _give_up(raft, change, f"{_named(raft, id)} still lacks {lacks} entries: give it more time", id)
                return
    if change is not None or raft.id not in raft.configuration.voter_ids:
        advance(raft)
    if raft.departing:
        for id in [id for id, until in raft.departing.items() if raft.now >= until]:
            del raft.departing[id]
            del raft.progress[id]
        tell_peers(raft)


def _give_up(raft: Raft, change: Change, sentence: str, server: str = "") -> None:
    """End the change as soon as who came in by it is out again, so that the cluster is as it was."""
    change.given_up, change.lagging = sentence, server
    change.catching_up.clear()
    advance(raft)


def _end(raft: Raft, outcome: ChangeOutcome, sentence: str = "") -> None:
    change, raft.change = raft.change, None
    assert change is not None, "only what is under way can end"
    raft.emit(ChangeEnded(token=change.token, outcome=outcome, sentence=sentence, server=change.lagging))
    advance(raft)


def stepped_down(raft: Raft) -> None:
    """We no longer lead: whoever does may complete the step that was appended last, but not the steps after it."""
    change, raft.change = raft.change, None
    raft.departing = {}
    if change is None:
        return
    if change.appended:
        outcome, sentence = ChangeOutcome.UNKNOWN, "leadership was lost before the change was complete"
    else:
        outcome, sentence = ChangeOutcome.NOT_LEADER, "leadership was lost before the change had begun"
    raft.emit(ChangeEnded(token=change.token, outcome=outcome, sentence=sentence))


# Every server ---------------------------------------------------------------------------------------------------------


def tell_peers(raft: Raft) -> None:
    """Say whom we need connections to, if that has changed."""
    addresses = {id: member.address for id, member in raft.configuration.members.items() if id != raft.id}
    for id in raft.departing:
        addresses.setdefault(id, raft.addresses.get(id, ""))
    for id in (raft.leader_id, raft.forced_by):
        # Also a leader that is being removed: it gets our callers' calls, and shall know whom it handed over to.
        if id != raft.id and raft.addresses.get(id):
            addresses.setdefault(id, raft.addresses[id])
    if addresses != raft.addresses:
        raft.addresses = addresses
        raft.emit(PeersChanged(addresses=addresses))


def committed(raft: Raft, before: int) -> None:
    """The commit index has passed `before`: it may be that we are out, or that those who left know all they need."""
    index = raft.log.configuration_index
    if not before < index <= raft.commit_index:
        return
    if raft.id not in raft.configuration.members and _was_member(raft):
        note_removal(raft, index)
    for id in raft.departing:  # the heartbeats of a while tell them of the commitment
        raft.departing[id] = raft.now + raft.settings.election_timeout_seconds


def _was_member(raft: Raft) -> bool:
    """Whether we have been one: who catches up also meets the configurations of before its time."""
    named = [configuration.members.get(raft.id) for _, configuration in raft.log.configurations]
    return any(member is not None and member.store_id in ("", raft.store_id) for member in named)


def note_removal(raft: Raft, index: int) -> None:
    """The committed configuration at index does not name us."""
    if index > raft.removed_at and index >= raft.log.configuration_index > 0:
        raft.removed_at = index
        raft.emit(Removed(index=index))
        if raft.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            raft.become_follower(raft.term, "")


def is_removed(raft: Raft) -> bool:
    """Whether we know that we are no member any more; a later configuration may let us in again."""
    return raft.removed_at >= raft.log.configuration_index > 0
