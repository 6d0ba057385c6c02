"""Ways to break what runs around the core, as tests/core/mutations.py breaks the core. The simulator must find them.

`old` must occur exactly once in its file, so a change that moves it asks for a look here.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """rule: of DESIGN section 4. file: below geraft/."""

    rule: int
    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        10,
        "who waits for an index gets the answer of whatever is there",
        "runtime/pending.py",
        "        for proposal in self._uncommitted:\n"
        "            fail(proposal.calls, error)\n"
        "        self._uncommitted.clear()",
        "        pass",
    ),
    Mutation(
        10,
        "a lost leadership tells callers that nothing happened",
        "runtime/node_loop.py",
        "        self.writes.fail_uncommitted(\n            OutcomeUnknown(",
        "        self.writes.fail_uncommitted(\n            ProposalDropped(",
    ),
    Mutation(
        10,
        "parked calls are lost when a leader is found",
        "runtime/node_loop.py",
        "        for waiter in parked:\n            self.inbox.put(waiter)",
        "        pass",
    ),
    Mutation(
        10,
        "parked calls have no end",
        "runtime/node_loop.py",
        "        late = [call for call in self._parked if call.deadline <= end]",
        "        late: list[Call] = []",
    ),
    Mutation(
        10,
        "reads of a deposed leader are lost",
        "runtime/node_loop.py",
        "            self._redirect(self.reads.take(token))",
        "            self.reads.take(token)",
    ),
    Mutation(
        10,
        "a node that stops forgets who waits for commitment",
        "runtime/node_loop.py",
        "        self.writes.fail_all(unknown)",
        "        pass",
    ),
    Mutation(
        10,
        "a node that stops forgets what it has not looked at",
        "runtime/node_loop.py",
        "        left += [item for item in [*self._untaken, *untaken] if isinstance(item, Waiter)]",
        "        pass",
    ),
    Mutation(
        10,
        "callers who wait for the commit are answered by the app too",
        "runtime/applier.py",
        "        if proposal.wait_for_commit:\n            pairs",
        "        if False:\n            pairs",
    ),
    Mutation(
        10,
        "an entry that the app refuses with an exception is skipped",
        "runtime/applier.py",
        "                reply, wish = self._retry(command, index, error)",
        "                reply, wish = b'0 0', MakeSnapshot.NONE",
    ),
    Mutation(
        10,
        "answers are given to the callers before them",
        "runtime/applier.py",
        "        start = proposal.first_index - first_index",
        "        start = 0",
    ),
    Mutation(
        10,
        "an entry loaded from the store is applied twice",
        "runtime/applier.py",
        "                    index = batch.last_index + 1",
        "                    index = batch.last_index",
    ),
    Mutation(
        6,
        "confirmed reads do not wait for the app",
        "runtime/pending.py",
        "        while self._confirmed and self._confirmed[0][0] <= last_applied:",
        "        while self._confirmed:",
    ),
    Mutation(
        6,
        "every read is served at once",
        "runtime/node_loop.py",
        "call for call in calls if call.consistency is Consistency.STALE]",
        "call for call in calls if call.consistency is not Consistency.LEASE]",
    ),
    Mutation(
        6,
        "a linearizable read is content with a lease, whatever the clocks",
        "runtime/node_loop.py",
        "            self.step(ReadRequested(token=token))",
        "            self._read_confirmed(ReadConfirmed(tokens=(token,), read_index=self.raft.commit_index))",
    ),
    Mutation(
        5,
        "a failed write is taken for done",
        "runtime/log_writer.py",
        "        except StorageError:\n            raise",
        "        except StorageError:\n            pass",
    ),
    Mutation(
        5,
        "replies leave before the disk has what they tell of",
        "runtime/log_writer.py",
        "        if ballot is not None or batches:\n            self._store",
        "        for send in then:\n            self._send(send.to, send.message)\n"
        "        if ballot is not None or batches:\n            self._store",
    ),
    Mutation(
        5,
        "the vote is lost when writes are grouped",
        "runtime/log_writer.py",
        "            ballot = persist.ballot or ballot",
        "            ballot = ballot",
    ),
    Mutation(
        5,
        "entries are lost when writes are grouped",
        "runtime/log_writer.py",
        "            batches += persist.batches",
        "            batches = batches or list(persist.batches)",
    ),
    Mutation(
        5,
        "a later write is told of as done with the first",
        "runtime/log_writer.py",
        "        ballot = persist.ballot\n        batches: list[EntryBatch] = list(persist.batches)",
        "        ballot = None\n        batches: list[EntryBatch] = list(persist.batches)",
    ),
    Mutation(
        5,
        "a store drops nothing when it is written over",
        "storage/memory.py",
        "            while kept and kept[-1].first_index >= settled[0].first_index:\n                kept.pop()",
        "            while kept and kept[-1].first_index > settled[0].first_index:\n                kept.pop()",
    ),
    Mutation(
        1,
        "an effect is forgotten",
        "runtime/node_loop.py",
        "            LoadEntries: self._load_entries,",
        "            LoadEntries: lambda effect: None,",
    ),
)
