"""Scenario files: stories of a cluster in text, with the effects that they must have printed beside them.

A file is a row of blocks, a blank line between two. A block holds comment lines (#), then command lines, then `----`
and what the commands print. `replay` carries out the commands on real Raft servers, in virtual time, over a network
that does only what the story says, and gives the text back with what they print now; a test compares, or rewrites it.
After every step the invariants of core/invariants.py are checked. Commands are the methods `do_*` of Story.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from geraft.core.effects import (
    Alarm,
    Apply,
    CancelFetch,
    ChangeEnded,
    Committed,
    CompactLog,
    ConfigurationChanged,
    DiscardSnapshot,
    Effect,
    FetchSnapshot,
    InstallSnapshot,
    LeaderChanged,
    LoadEntries,
    PeersChanged,
    Persist,
    ProposalAccepted,
    ProposalRefused,
    ReadConfirmed,
    ReadRefused,
    RecordSnapshot,
    Removed,
    Role,
    RoleChanged,
    Send,
    TransferEnded,
    TruncatedTo,
    WaitersOutcomeUnknown,
)
from geraft.core.entries import ZERO, Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.events import (
    Applied,
    ChangeMembership,
    Event,
    PeerConnected,
    PeerDisconnected,
    Propose,
    ReadRequested,
    SnapshotFetched,
    SnapshotFetchFailed,
    SnapshotMade,
    Tick,
    TransferRequested,
)
from geraft.core.invariants import ClusterHistory, check_logs_match
from geraft.core.membership import (
    AddServer,
    Configuration,
    DemoteServer,
    Member,
    MembershipChange,
    PromoteServer,
    RemoveServer,
    ReplaceMembers,
)
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    OfferSnapshot,
    PeerMessage,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.core.raft import Raft, Settings
from geraft.testing.virtual import VirtualServer, bootstrap_batch, configuration_of

TICK_SECONDS = 0.05
DELIVERIES_MAX = 5000
"""In one command; more means that two servers never stop answering each other."""


class ScenarioError(Exception):
    """The story asks for something that does not exist, such as an unknown command."""


@dataclass(slots=True)
class Block:
    comments: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


def parse(text: str) -> list[Block]:
    blocks = []
    for paragraph in text.strip("\n").split("\n\n"):
        block = Block()
        target = block.commands
        for line in paragraph.split("\n"):
            if target is block.commands and line.startswith("#"):
                block.comments.append(line)
            elif line == "----":
                target = block.output
            elif line.strip():
                target.append(line)
        blocks.append(block)
    return blocks


def render(blocks: Iterable[Block]) -> str:
    paragraphs = []
    for block in blocks:
        lines = [*block.comments, *block.commands]
        if block.commands:
            lines += ["----", *block.output]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def replay(text: str) -> str:
    """The text with what its commands print now. Raises ScenarioError, and InvariantBroken if the story breaks Raft."""
    story = Story()
    blocks = parse(text)
    for block in blocks:
        block.output = story.tell(block.commands)
    return render(blocks)


class FixedChance(random.Random):
    """Chance that always falls the same way: `fraction` of what is asked for."""

    fraction = 0.0

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.fraction


@dataclass(frozen=True, slots=True)
class InFlight:
    sender: str
    receiver: str
    message: PeerMessage

    @property
    def link(self) -> tuple[str, str]:
        return self.sender, self.receiver


class Story:
    """A cluster, and the commands that a scenario may give it. Servers are called 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.servers: dict[str, VirtualServer] = {}
        self.chance: dict[str, FixedChance] = {}
        self.history = ClusterHistory()
        self.network: list[InFlight] = []
        self.cut: set[tuple[str, str]] = set()
        self.held: set[tuple[str, str]] = set()
        self.stalled_disks: set[str] = set()
        self.stalled_apps: set[str] = set()
        self.unapplied: dict[str, list[int]] = {}
        self.heartbeats_shown = False
        self.tokens = 0
        self.lines: list[str] = []

    def tell(self, commands: Iterable[str]) -> list[str]:
        """Carry out the commands of one block; what they print, "ok" if nothing."""
        self.lines = []
        for line in commands:
            try:
                words = shlex.split(line)
            except ValueError as error:
                raise ScenarioError(f"{line!r}: {error}") from error
            quietly = words[:1] == ["quietly"]
            if quietly:
                words.pop(0)
            if not words:
                raise ScenarioError(f"{line!r}: a command is missing")
            command: Callable[..., None] | None = getattr(self, f"do_{words[0]}", None)
            if command is None:
                raise ScenarioError(f"no command is called {words[0]!r}")
            printed = len(self.lines)
            try:
                command(*words[1:])
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise ScenarioError(f"{line!r}: {error!r}") from error
            if quietly:
                del self.lines[printed:]
        check_logs_match(self._running())
        return self.lines or ["ok"]

    # Commands ---------------------------------------------------------------------------------------------------------

    def do_cluster(self, count: str, stores: str = "known") -> None:
        """cluster N [stores=unknown]: N servers with the same first entry, which names their stores, or not."""
        if self.servers:
            raise ScenarioError("a story is one of a single cluster")
        names = [str(number) for number in range(1, int(count) + 1)]
        known = {"known": True, "stores=unknown": False}[stores]
        batch = bootstrap_batch(configuration_of({id: f"store{id}" if known else "" for id in names}))
        for position, id in enumerate(names):
            self.servers[id] = VirtualServer(id, f"store{id}", [batch])
            self.chance[id] = FixedChance()
            self.chance[id].fraction = position / len(names)
            self._start(id)

    def do_settings(self, *changes: str) -> None:
        """settings NAME=VALUE ...: of core.raft.Settings; before `cluster`."""
        values: dict[str, Any] = {}
        for change in changes:
            name, value = change.split("=")
            values[name] = type(getattr(self.settings, name))(value)
        self.settings = Settings(**values)

    def do_chance(self, id: str, fraction: str) -> None:
        """chance ID FRACTION: where in their range this server's random pauses fall from now on, 0 to 1."""
        self.chance[id].fraction = float(fraction)

    def do_disk(self, id: str, verb: str, *words: str) -> None:
        """disk ID stalls | resumes: hold back what it writes, or finish all of it.

        disk ID holds TERM... [ballot=TERM[:ID]]: start the server on a store with entries of these terms after the
        first one. TERM+ID is a configuration entry that adds a voter.
        """
        if verb == "stalls":
            self.stalled_disks.add(id)
        elif verb == "resumes":
            self.stalled_disks.discard(id)
            self._run_disk(id)
        elif verb == "holds":
            self.do_crash(id)
            self._fill_disk(id, words)
            self._start(id)
        else:
            raise ScenarioError(f"a disk stalls, resumes or holds, it can't {verb!r}")

    def do_tick(self, ids: str, duration: str) -> None:
        """tick ID[,ID...]|all DURATION: only these servers' clocks move on, and no message is delivered.

        DURATION: such as 0.3s, or heartbeat, or election_timeout.
        """
        for _ in self._moments(duration):
            for id in self._ids(ids):
                self._tick(id)

    def do_run(self, duration: str) -> None:
        """run DURATION: time passes for everybody, and messages are delivered as they are sent."""
        for _ in self._moments(duration):
            for id in self._ids("all"):
                self._tick(id)
            self._deliver_all()

    def do_elect(self, id: str) -> None:
        """elect ID: time passes until this server leads; its pauses are the shortest, the others' the longest."""
        for other, chance in self.chance.items():
            chance.fraction = 0.0 if other == id else 1.0
        for _ in range(400):
            for other in self._ids("all"):
                self._tick(other)
            self._deliver_all()
            if self._raft(id).role is Role.LEADER:
                return
        raise ScenarioError(f"{id} does not win an election within 20 s")

    def do_deliver(self, link: str = "all", kind: str = "", count: str = "") -> None:
        """deliver: everything, and what comes of it, until it is quiet.

        deliver A->B [KIND [COUNT]]: only what waits there, or the oldest COUNT of that.
        """
        if link == "all":
            self._deliver_all()
            return
        for packet in self._select(link, kind)[: int(count) if count else None]:
            self.network.remove(packet)
            self._arrive(packet)

    def do_duplicate(self, link: str, kind: str = "") -> None:
        """duplicate A->B [KIND]: what waits there will arrive twice."""
        self.network.extend(self._select(link, kind))

    def do_drop(self, link: str, kind: str = "") -> None:
        """drop A->B [KIND]: what waits there is lost."""
        for packet in self._select(link, kind):
            self.network.remove(packet)

    def do_hold(self, *links: str) -> None:
        """hold A->B ...: messages on these links wait until they are delivered by name, or released."""
        self.held.update(map(_link, links))

    def do_release(self, *links: str) -> None:
        """release A->B ...: messages on these links flow again."""
        self.held.difference_update(map(_link, links))

    def do_partition(self, *ids: str) -> None:
        """partition ID...: these servers reach each other, and nobody else; messages across are lost."""
        inside = set(ids)
        for one in self.servers:
            for other in self.servers:
                if (one in inside) != (other in inside):
                    self.cut.add((one, other))

    def do_cut(self, *links: str) -> None:
        """cut A->B ...: messages in this direction are lost."""
        self.cut.update(map(_link, links))

    def do_heal(self) -> None:
        """heal: every link works again."""
        self.cut.clear()

    def do_connect(self, id: str, peer: str) -> None:
        """connect ID PEER: this server's streams to the peer broke and were opened anew."""
        self._step(id, PeerDisconnected(peer=peer))
        self._step(id, PeerConnected(peer=peer))

    def do_propose(self, id: str, *commands: str) -> None:
        """propose ID COMMAND...: as one batch."""
        self._step(id, Propose(token=self._token(), commands=tuple(command.encode() for command in commands)))

    def do_read(self, id: str, lease: str = "") -> None:
        """read ID [lease]"""
        self._step(id, ReadRequested(token=self._token(), lease=lease == "lease"))

    def do_transfer(self, id: str, target: str = "") -> None:
        """transfer ID [TARGET]: hand leadership over."""
        self._step(id, TransferRequested(token=self._token(), target=target))

    def do_server(self, id: str) -> None:
        """server ID: one more, with an empty store; nobody knows it yet."""
        if id in self.servers:
            raise ScenarioError(f"there is a server {id} already")
        self.servers[id] = VirtualServer(id, f"store{id}", [])
        self.servers[id].clock_seconds = max(server.clock_seconds for server in self.servers.values())
        self.chance[id] = FixedChance()
        self._start(id)

    def do_add(self, id: str, server: str, learner: str = "") -> None:
        """add ID SERVER [learner]: ask server ID to let another one in."""
        self._change(id, AddServer(id=server, address=f"{server}.test:1", learner=learner == "learner"))

    def do_remove(self, id: str, server: str) -> None:
        """remove ID SERVER"""
        self._change(id, RemoveServer(id=server))

    def do_promote(self, id: str, server: str) -> None:
        """promote ID SERVER"""
        self._change(id, PromoteServer(id=server))

    def do_demote(self, id: str, server: str) -> None:
        """demote ID SERVER"""
        self._change(id, DemoteServer(id=server))

    def do_members(self, id: str, voters: str, learners: str = "") -> None:
        """members ID VOTER,... [LEARNER,...]: ask server ID to make these the members, and no others."""

        def named(ids: str) -> tuple[Member, ...]:
            known = self._raft(id).configuration.members
            return tuple(Member(one, "" if one in known else f"{one}.test:1") for one in ids.split(",") if one)

        self._change(id, ReplaceMembers(voters=named(voters), learners=named(learners)))

    def _change(self, id: str, change: MembershipChange) -> None:
        self._step(id, ChangeMembership(token=self._token(), change=change, timeout_seconds=30.0))

    def do_snapshot(self, id: str, index: str = "") -> None:
        """snapshot ID [INDEX]: its app has made a snapshot, by default of all that it has applied."""
        made = int(index) if index else self._raft(id).last_applied
        self._step(id, SnapshotMade(index=made, size_bytes=100, checksum=made))

    def do_fetch(self, id: str, outcome: str = "done") -> None:
        """fetch ID [fails]: the bytes of the snapshot that it fetches are all there, or can't be had."""
        fetch = self._raft(id).fetching
        if fetch is None:
            raise ScenarioError(f"{id} fetches no snapshot")
        self.do_fetched(id, fetch.leader, f"{fetch.last_entry.term}.{fetch.last_entry.index}", outcome)

    def do_fetched(self, id: str, leader: str, entry: str, outcome: str = "done") -> None:
        """fetched ID LEADER TERM.INDEX [fails]: the same, of a fetch that may have been given up meanwhile."""
        term, _, index = entry.partition(".")
        last_entry = EntryId(int(term), int(index))
        if outcome == "fails":
            self._step(id, SnapshotFetchFailed(leader=leader, last_entry=last_entry))
        else:
            self._step(id, SnapshotFetched(leader=leader, snapshot=self.servers[leader].catalogue[last_entry]))

    def do_app(self, id: str, verb: str) -> None:
        """app ID stalls | resumes: it applies nothing, or all that it was handed."""
        if verb == "stalls":
            self.stalled_apps.add(id)
            return
        self.stalled_apps.discard(id)
        for index in self.unapplied.pop(id, []):
            self._step(id, Applied(index=index))

    def do_crash(self, *ids: str) -> None:
        """crash ID...: memory is lost, and what the disk has not written."""
        for id in ids:
            self.servers[id].crash()
            self.stalled_disks.discard(id)
            self.stalled_apps.discard(id)
            self.unapplied.pop(id, None)

    def do_restart(self, *ids: str) -> None:
        """restart ID...: from what the disk holds."""
        for id in ids:
            self._start(id)

    def do_wipe(self, id: str) -> None:
        """wipe ID: its store is lost, and it is started on a new one, bootstrapped like the first."""
        server = self.servers[id]
        server.crash()
        first = bootstrap_batch(configuration_of(dict.fromkeys(self.servers, "")))
        self.servers[id] = VirtualServer(id, f"store{id}-new", [first])
        self.servers[id].clock_seconds = server.clock_seconds
        self.history = ClusterHistory()  # its votes and term are lost too: that is the point
        self._start(id)

    def do_show(self, what: str) -> None:
        """show heartbeats"""
        self.heartbeats_shown = {"heartbeats": True}[what]

    def do_hide(self, what: str) -> None:
        """hide heartbeats: they are sent all the same. So it is at first."""
        self.heartbeats_shown = {"heartbeats": False}[what]

    def do_status(self, ids: str = "all") -> None:
        """status [ID,...]: role, term, vote, log and commit index."""
        for id in self._ids(ids):
            raft = self._raft(id)
            self.lines.append(
                f"{id} {raft.role.value} term={raft.term} vote={raft.voted_for or '-'} leader={raft.leader_id or '-'}"
                f" commit={raft.commit_index} log={_show_terms(raft)}"
            )

    def do_progress(self, id: str) -> None:
        """progress ID: what this leader knows of its followers."""
        for peer, progress in self._raft(id).progress.items():
            self.lines.append(
                f"{id}: {peer} {progress.pace.value} match={progress.match_index} next={progress.next_index}"
                f" inflight={len(progress.inflight)}"
            )

    # Time, network, disk ----------------------------------------------------------------------------------------------

    def _moments(self, duration: str) -> Iterator[float]:
        named = {
            "heartbeat": self.settings.heartbeat_interval_seconds,
            "election_timeout": self.settings.election_timeout_seconds,
        }
        seconds = named[duration] if duration in named else float(duration.removesuffix("s"))
        for _ in range(round(seconds / TICK_SECONDS)):
            yield TICK_SECONDS

    def _tick(self, id: str) -> None:
        server = self.servers[id]
        server.clock_seconds += TICK_SECONDS
        self._step(id, Tick(now_seconds=server.clock_seconds))

    def _deliver_all(self) -> None:
        for _ in range(DELIVERIES_MAX):
            packet = next((packet for packet in self.network if packet.link not in self.held), None)
            if packet is None:
                return
            self.network.remove(packet)
            self._arrive(packet)
        raise ScenarioError(f"still not quiet after {DELIVERIES_MAX} messages")

    def _arrive(self, packet: InFlight) -> None:
        if self.servers[packet.receiver].raft is not None:
            self._step(packet.receiver, packet.message)

    def _select(self, link: str, kind: str) -> list[InFlight]:
        selected = [
            packet
            for packet in self.network
            if packet.link == _link(link) and (not kind or _kind(packet.message) == kind)
        ]
        if not selected:
            raise ScenarioError(f"nothing{' of kind ' + kind if kind else ''} waits on {link}")
        return selected

    def _run_disk(self, id: str) -> None:
        server = self.servers[id]
        while server.for_disk and id not in self.stalled_disks:
            sends, events = server.write_next()
            for send in sends:
                self._send(id, send)
            for event in events:
                self._step(id, event)

    def _start(self, id: str) -> None:
        if self.servers[id].raft is not None:
            raise ScenarioError(f"{id} runs already: crash it first")
        self.history.restarted(id, self.servers[id].ballot)
        self.servers[id].start(self.settings, self.chance[id])

    def _fill_disk(self, id: str, words: Iterable[str]) -> None:
        index, ballot = 2, Ballot(0)
        configuration = configuration_of({name: server.store_id for name, server in self.servers.items()})
        batches = []
        for word in words:
            if word.startswith("ballot="):
                term, _, voted_for = word.removeprefix("ballot=").partition(":")
                ballot = Ballot(int(term), voted_for)
                continue
            term, _, added = word.partition("+")
            if added:
                stores = {member.id: member.store_id for member in configuration.voters}
                configuration = configuration_of({**stores, added: f"store{added}"})
            batches.append(
                EntryBatch(
                    term=int(term),
                    first_index=index,
                    kind=EntryKind.CONFIGURATION if added else EntryKind.COMMAND,
                    commands=(b"" if added else f"{term}.{index}".encode(),),
                    configuration=configuration if added else None,
                )
            )
            index += 1
        self.servers[id].write(ballot, batches)

    def _token(self) -> int:
        self.tokens += 1
        return self.tokens

    def _ids(self, ids: str) -> list[str]:
        wanted = list(self.servers) if ids == "all" else ids.split(",")
        return [id for id in wanted if self.servers[id].raft is not None]

    def _running(self) -> list[Raft]:
        return [server.raft for server in self.servers.values() if server.raft is not None]

    def _raft(self, id: str) -> Raft:
        raft = self.servers[id].raft
        if raft is None:
            raise ScenarioError(f"{id} is down")
        return raft

    # Effects ----------------------------------------------------------------------------------------------------------

    def _step(self, id: str, event: Event) -> None:
        raft = self._raft(id)
        effects = raft.step(event)
        self.history.check(raft)
        for effect in effects:
            self._carry_out(id, effect)

    def _carry_out(self, id: str, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(id, effect)
            case Persist():
                stalled = id in self.stalled_disks
                if effect.ballot or effect.batches or effect.reset or stalled:
                    self.lines.append(f"{id} writes {show_persist(effect)}{' (stalled)' if stalled else ''}")
                self.servers[id].for_disk.append(effect)
                self._run_disk(id)
            case RecordSnapshot() | CompactLog():
                self.lines.append(f"{id} {show_effect(effect)}")
                self.servers[id].for_disk.append(effect)
                self._run_disk(id)
            case Apply() | InstallSnapshot():
                if isinstance(effect, InstallSnapshot):
                    self.lines.append(f"{id} {show_effect(effect)}")
                index = effect.last_index if isinstance(effect, Apply) else effect.snapshot.index
                if id in self.stalled_apps:
                    self.unapplied.setdefault(id, []).append(index)
                else:
                    self._step(id, Applied(index=index))
            case LoadEntries():
                self.lines.append(f"{id} loads {effect.first_index}..{effect.last_index} for {effect.peer}")
                self._step(id, self.servers[id].load(effect))
            case PeersChanged():
                pass
            case _:
                self.lines.append(f"{id} {show_effect(effect)}")

    def _send(self, id: str, send: Send) -> None:
        packet = InFlight(id, send.to, send.message)
        lost = packet.link in self.cut or send.to not in self.servers
        if self.heartbeats_shown or not isinstance(send.message, Heartbeat | HeartbeatReply):
            self.lines.append(f"{id}->{send.to} {show_message(send.message)}{' (lost)' if lost else ''}")
        if not lost:
            self.network.append(packet)


def _link(text: str) -> tuple[str, str]:
    sender, _, receiver = text.partition("->")
    return sender, receiver


def _kind(message: PeerMessage) -> str:
    name = type(message).__name__
    if isinstance(message, RequestVote | RequestVoteReply) and message.pre_vote:
        name = name.replace("RequestVote", "RequestPreVote")
    return name


def show_message(message: PeerMessage) -> str:
    """One line, without the sender."""
    head = f"{_kind(message)} term={message.term}"
    match message:
        case RequestVote():
            return f"{head} last_entry={_show(message.last_entry)}{' forced' if message.forced else ''}"
        case RequestVoteReply():
            removed = f", removed at {message.removed_at}" if message.removed_at else ""
            return f"{head} {'granted' if message.granted else 'refused'}{removed}"
        case AppendEntries():
            entries = f" entries={_show_batches(message.batches)}" if message.batches else ""
            return f"{head} prev={_show(message.prev)}{entries} commit={message.commit_index}"
        case AppendEntriesReply() if message.rejected is not None:
            return f"{head} rejected={_show(message.rejected)} hint={_show(message.hint)}"
        case AppendEntriesReply():
            return f"{head} match={message.match_index}"
        case Heartbeat():
            return f"{head} round={message.round} commit={message.commit_index}"
        case HeartbeatReply():
            return f"{head} round={message.round}"
        case OfferSnapshot():
            return f"{head} snapshot={_show(message.last_entry)}"
        case TimeoutNow():
            return head


def show_persist(persist: Persist) -> str:
    parts = []
    if persist.ballot is not None:
        vote = f" for {persist.ballot.voted_for}" if persist.ballot.voted_for else ""
        parts.append(f"ballot={persist.ballot.term}{vote}")
    if persist.reset is not None:
        parts.append(f"snapshot={_show(persist.reset.last_entry)} in place of its log")
    if persist.batches:
        parts.append(f"entries={_show_batches(persist.batches)}")
    return " ".join(parts) or "nothing new"


def show_effect(effect: Effect) -> str:
    match effect:
        case Committed():
            return f"commits {_range(effect.first_index, effect.last_index)}"
        case ProposalAccepted():
            last_index = effect.first_index + effect.count - 1
            return f"takes #{effect.token} as {effect.term}.{_range(effect.first_index, last_index)}"
        case ProposalRefused():
            return f"refuses #{effect.token}: {effect.reason.value}"
        case WaitersOutcomeUnknown():
            return f"ends what waits of term {effect.term}: outcome unknown"
        case ReadConfirmed():
            return f"confirms read {_tokens(effect.tokens)} at {effect.read_index}"
        case ReadRefused():
            return f"refuses read {_tokens(effect.tokens)}: {effect.reason.value}"
        case RoleChanged():
            return f"{effect.old.value} -> {effect.new.value} term={effect.term}"
        case LeaderChanged():
            return f"follows {effect.leader or 'nobody'} in term {effect.term}"
        case ConfigurationChanged():
            return f"configuration of {effect.index}: {_show_configuration(effect.configuration)}"
        case ChangeEnded():
            because = f": {effect.sentence}" if effect.sentence else ""
            return f"change #{effect.token} {effect.outcome.value}{because}"
        case Removed():
            return f"is no member as of {effect.index}"
        case TransferEnded():
            return f"transfer #{effect.token} {'done' if effect.reason is None else f'failed: {effect.reason.value}'}"
        case TruncatedTo():
            return f"truncates its log to {_show(effect.last)}"
        case RecordSnapshot():
            return f"records snapshot {_show(effect.snapshot.last_entry)}"
        case CompactLog():
            return f"cuts its log up to {effect.index}"
        case FetchSnapshot():
            return f"fetches snapshot {_show(effect.last_entry)} from {effect.leader}"
        case CancelFetch():
            return "gives up fetching a snapshot"
        case DiscardSnapshot():
            return f"discards snapshot {effect.index}"
        case InstallSnapshot():
            return f"installs snapshot {_show(effect.snapshot.last_entry)}"
        case Alarm():
            return f"ALARM {effect.sentence}"
        case _:
            return repr(effect)


def _show_configuration(configuration: Configuration) -> str:
    shown = f"voters {_show_members(configuration.voters)}"
    if configuration.learners:
        shown += f", learners {_show_members(configuration.learners)}"
    if configuration.outgoing:
        shown += f", joint with {_show_members(configuration.outgoing)}"
    return shown


def _show_members(members: Iterable[Member]) -> str:
    return " ".join(f"{member.id}({member.store_id})" if member.store_id else member.id for member in members)


def _tokens(tokens: Iterable[int]) -> str:
    return " ".join(f"#{token}" for token in tokens)


def _show(entry: EntryId) -> str:
    return "-" if entry == ZERO else f"{entry.term}.{entry.index}"


def _range(first_index: int, last_index: int) -> str:
    return str(first_index) if first_index == last_index else f"{first_index}..{last_index}"


def _show_batches(batches: Iterable[EntryBatch]) -> str:
    return ",".join(f"{batch.term}.{_range(batch.first_index, batch.last_index)}" for batch in batches)


def _show_terms(raft: Raft) -> str:
    log = raft.log
    entries = [f"{log.term_at(index)}.{index}" for index in range(log.base.index + 1, log.last_entry.index + 1)]
    return ",".join([f"[{_show(log.base)}]", *entries] if log.base != ZERO else entries)
