"""The log as the core sees it: where its terms change, its configurations, and its newest entries.

The whole log lives in the store. Of it the core keeps the term of every index (a few numbers, as terms rarely change),
the configurations, and a bounded tail of entries for peers and the app.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from geraft.core.entries import ZERO, EntryBatch, EntryId
from geraft.core.membership import NO_MEMBERS, Configuration
from geraft.core.snapshots import Snapshot

BATCH_OVERHEAD_BYTES = 256
"""What a cached batch takes beside its bytes, roughly."""


class Log:
    """Entries (base, last_entry]; base is what stands before the first one held.

    terms: (first index, term) wherever the term changes, ascending. configurations: (index, configuration), ascending;
    the first is the one in force at base.
    """

    def __init__(
        self,
        *,
        base: EntryId = ZERO,
        last_entry: EntryId = ZERO,
        terms: Sequence[tuple[int, int]] = (),
        configurations: Sequence[tuple[int, Configuration]] = (),
    ) -> None:
        self.base = base
        self.last_entry = last_entry
        self._term_starts = [first_index for first_index, _ in terms]
        self._terms = [term for _, term in terms]
        self.configurations = list(configurations)
        # The cached tail: batches without gaps up to last_entry, and their first indexes.
        self._batches: list[EntryBatch] = []
        self._firsts: list[int] = []
        self.cached_bytes = 0

    @property
    def cached_from(self) -> int:
        """The first index in memory; last_entry.index + 1 if there is none."""
        return self._firsts[0] if self._firsts else self.last_entry.index + 1

    @property
    def configuration(self) -> Configuration:
        """The latest, which is in force whether committed or not (Raft dissertation 4.1)."""
        return self.configurations[-1][1] if self.configurations else NO_MEMBERS

    @property
    def configuration_index(self) -> int:
        return self.configurations[-1][0] if self.configurations else 0

    def configuration_at(self, index: int) -> tuple[int, Configuration]:
        """The configuration in force for who knows the log up to index, and the index of its entry."""
        for entry_index, configuration in reversed(self.configurations):
            if entry_index <= index:
                return entry_index, configuration
        return 0, NO_MEMBERS

    def term_at(self, index: int) -> int | None:
        """The term of the entry at index; None if the log does not hold it."""
        if index == self.last_entry.index:
            return self.last_entry.term
        if index == self.base.index:
            return self.base.term
        if not self.base.index < index < self.last_entry.index:
            return None
        return self._terms[bisect_right(self._term_starts, index) - 1]

    def append(self, batch: EntryBatch) -> None:
        """Add the batch directly after last_entry."""
        assert batch.first_index == self.last_entry.index + 1, "a batch must follow the log without a gap"
        assert batch.term >= self.last_entry.term, "terms never fall along a log"
        if not self._terms or self._terms[-1] != batch.term:
            self._term_starts.append(batch.first_index)
            self._terms.append(batch.term)
        if batch.configuration is not None:
            self.configurations.append((batch.first_index, batch.configuration))
        self._batches.append(batch)
        self._firsts.append(batch.first_index)
        self.cached_bytes += batch.size_bytes + BATCH_OVERHEAD_BYTES
        self.last_entry = batch.last_entry

    def truncate_to(self, index: int) -> None:
        """Drop every entry after index, and the configurations among them."""
        term = self.term_at(index)
        assert term is not None, "only what is held can become the end of the log"
        while self._batches and self._batches[-1].last_index > index:
            batch = self._batches.pop()
            self._firsts.pop()
            self.cached_bytes -= batch.size_bytes + BATCH_OVERHEAD_BYTES
            if batch.first_index <= index:
                head = batch.slice(batch.first_index, index)
                self._batches.append(head)
                self._firsts.append(head.first_index)
                self.cached_bytes += head.size_bytes + BATCH_OVERHEAD_BYTES
        while self._term_starts and self._term_starts[-1] > index:
            self._term_starts.pop()
            self._terms.pop()
        while self.configurations and self.configurations[-1][0] > index:
            self.configurations.pop()
        self.last_entry = EntryId(term, index)

    def compact_to(self, index: int) -> None:
        """Drop every entry up to index, which is held; it becomes the base."""
        term = self.term_at(index)
        assert term is not None, "only what is held can be cut off"
        self.base = EntryId(term, index)
        runs_gone = max(bisect_right(self._term_starts, index + 1) - 1, 0)
        del self._term_starts[:runs_gone], self._terms[:runs_gone]
        before = sum(at <= index for at, _ in self.configurations)
        del self.configurations[: max(before - 1, 0)]
        count = 0
        for batch in self._batches:
            if batch.last_index > index:
                break
            self.cached_bytes -= batch.size_bytes + BATCH_OVERHEAD_BYTES
            count += 1
        del self._batches[:count], self._firsts[:count]

    def reset(self, snapshot: Snapshot) -> None:
        """Hold nothing but the snapshot's last entry as the base, and its configuration."""
        self.base = self.last_entry = snapshot.last_entry
        self._term_starts, self._terms = [], []
        self.configurations = [(snapshot.configuration_index, snapshot.configuration)]
        self._batches, self._firsts, self.cached_bytes = [], [], 0

    def cached(self, first_index: int, last_index: int, bytes_max: int) -> tuple[EntryBatch, ...] | None:
        """The entries from first_index on, up to last_index or about bytes_max, but at least one batch.

        None if first_index is not in memory.
        """
        firsts = self._firsts
        if not firsts or not firsts[0] <= first_index <= self.last_entry.index:
            return None
        position = bisect_right(firsts, first_index) - 1
        batches: list[EntryBatch] = []
        for place in range(position, len(self._batches)):
            batch = self._batches[place]
            if batch.first_index > last_index or (batches and bytes_max <= 0):
                break
            part = batch.slice(max(first_index, batch.first_index), min(last_index, batch.last_index))
            bytes_max -= part.size_bytes
            if batches and bytes_max < 0:
                break
            batches.append(part)
        return tuple(batches)

    def evict(self, last_index: int, bytes_max: int) -> None:
        """If more than bytes_max are cached, forget the oldest batches, none that ends after last_index.

        Goes an eighth below bytes_max, so that a full cache does not move its lists at every write.
        """
        if self.cached_bytes <= bytes_max:
            return
        wanted = bytes_max - bytes_max // 8
        count = 0
        for batch in self._batches:
            if self.cached_bytes <= wanted or batch.last_index > last_index:
                break
            self.cached_bytes -= batch.size_bytes + BATCH_OVERHEAD_BYTES
            count += 1
        del self._batches[:count], self._firsts[:count]

    def first_conflict(self, batch: EntryBatch) -> int:
        """The first index of the batch that is not in the log with the batch's term; batch.last_index + 1 if none."""
        last_common = min(batch.last_index, self.last_entry.index)
        if batch.first_index > last_common:
            return batch.first_index
        if self.term_at(batch.first_index) == batch.term == self.term_at(last_common):
            return last_common + 1  # terms never fall along a log, so all between are of that term too
        index = batch.first_index
        while index <= last_common and self.term_at(index) == batch.term:
            index += 1
        return index

    def last_possible_match(self, other: EntryId) -> EntryId:
        """The last entry here that a log whose entry is `other` may hold too: not after it in term, nor in index.

        Skips a whole term at a time, so two logs find where they part in as many questions as they differ in terms.
        """
        index = min(other.index, self.last_entry.index)
        term = self.term_at(index)
        if term is None:
            return self.base
        if term <= other.term:
            return EntryId(term, index)
        run = bisect_right(self._terms, other.term) - 1
        if run < 0:
            return self.base
        return EntryId(self._terms[run], self._term_starts[run + 1] - 1)
