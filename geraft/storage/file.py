"""FileStorage: a log, a vote and an identity in a directory of plain files that only ever grow.

    00000001.log ...   segments; the one with the highest number takes the steps
    lock               who holds the store

A store is a list of steps, and what it holds is what the steps in turn have made of an empty one. A call is one step:
one write behind the last one and one sync. Nothing that was synced is changed, so what a crash can tear is the last
step, and a cut, of the tail or of the beginning, is a step as well. Each segment begins with all that went before it,
so opening reads one segment, however long the log is, and those without entries that count are deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from zlib import crc32

from geraft.core.entries import INDEX_MAX, ZERO, Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.snapshots import Snapshot
from geraft.errors import (
    BootstrapRefused,
    ConfigError,
    StorageCorrupt,
    StorageFailed,
    StorageForeign,
    StorageLocked,
)
from geraft.pb import file_store_pb2 as pb
from geraft.records import BadRecord, decode_batch, encode_batch
from geraft.storage.base import Identity, RaftStorage, StoredState
from geraft.storage.holding import (
    RESTORE_ADVICE,
    Lock,
    add_holder,
    advice_for,
    check_process,
    remove_holder,
    take_lock,
)
from geraft.storage.segment import (
    FILE_NAME,
    HEAD_BYTES,
    HEADER_BYTES,
    LOCK_NAME,
    Head,
    Segment,
    Window,
    create_segment,
    file_name,
    open_segment,
    write_all,
)
from geraft.storage.splice import (
    EMPTY,
    after_compact,
    after_forget,
    after_record,
    after_reset,
    after_write,
    check_compaction,
    check_no_gap,
    settle,
)
from geraft.storage.steps import (
    Outline,
    after_step,
    decode_state,
    encode_ballot,
    encode_entry_id,
    encode_identity,
    encode_snapshot,
    encode_state,
)

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 16 * 1024 * 1024
"""A segment that has become so long is followed by another. Longer ones take longer to open, and go later."""
SEGMENT_BYTES_MIN: Final = 1024
LOADED_SEGMENTS_MAX: Final = 32
"""Of the segments before the last one, so many are kept open with the list of where their entries are."""


class Frames:
    """Where the steps of a segment that hold entries are: their first indexes, ascending, and their offsets.

    It only grows, a cut makes another: readers go on with the one they have.
    """

    __slots__ = ("first_indexes", "offsets")

    def __init__(self, first_indexes: array[int] | None = None, offsets: array[int] | None = None) -> None:
        self.first_indexes = array("Q") if first_indexes is None else first_indexes
        self.offsets = array("Q") if offsets is None else offsets

    def add(self, first_index: int, offset: int) -> None:
        self.offsets.append(offset)  # first: readers go by the other
        self.first_indexes.append(first_index)

    def before(self, index: int) -> Frames:
        """Those that begin before index, as an object of their own."""
        count = bisect_right(self.first_indexes, index - 1)
        return Frames(self.first_indexes[:count], self.offsets[:count])

    def after(self, step: pb.Step, head: Head, *, cuts: bool) -> Frames:
        """With the step, and without what it takes away. cuts: whether it takes any entry away."""
        frames = self
        if step.HasField("reset"):
            frames = Frames()
        if step.batches:
            first_index = step.batches[0].first_index
            if cuts:
                frames = frames.before(first_index)
            frames.add(first_index, head.offset)
        return frames


@dataclass(frozen=True, slots=True)
class Part:
    """The entries [first_index, last_index] of the log are to be read from this segment.

    end, checksum: where its steps end, and of the last one's head; of the segment that takes the steps they are 0, and
    the part goes on to the end of the log.
    """

    sequence: int
    first_index: int
    last_index: int = INDEX_MAX
    end: int = 0
    checksum: int = 0


class View(NamedTuple):
    """What the store holds at one moment. A reader takes one and is not disturbed by later steps.

    parts: ascending; the last one is the segment that takes the steps, with frames saying where.
    """

    state: StoredState
    parts: tuple[Part, ...]
    segment: Segment
    frames: Frames

    @property
    def sequences(self) -> set[int]:
        return {part.sequence for part in self.parts}


class Overtaken(Exception):
    """A step that was made meanwhile took away what was being read."""


class FileStorage(RaftStorage):
    """A durable store in a directory of its own, made where there is none. Each write is one append and one fdatasync.

    segment_bytes: a file that has become so long is followed by another one.

    One process at a time, told by an flock on PATH/lock: use a local file system. To copy a store close it first.
    """

    def __init__(self, path: str | os.PathLike[str], *, segment_bytes: int = SEGMENT_BYTES) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given:
            raise ConfigError(f"path must name a directory, not {given!r}")
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise ConfigError(f"segment_bytes must be at least {SEGMENT_BYTES_MIN}, not {segment_bytes}")
        self.path: Final = os.path.realpath(given)
        self._segment_bytes: Final = segment_bytes
        self._lock: Lock | None = None
        self._pid = 0
        self._view: View | None = None
        self._failure: BaseException | None = None
        self._offset = 0  # where the next step goes
        self._previous = 0  # checksum of the head of the last one
        self._closed_by_step = False  # whether the last one tells that the store was closed
        self._loaded: dict[int, tuple[Segment, Frames]] = {}  # of the segments before the last; shared by readers

    # What RaftStorage asks for ---------------------------------------------------------------------------------------

    def open(self) -> StoredState:
        if self._view is not None and self._pid == os.getpid():
            raise StorageLocked(
                f"{self.path} is open already in this object (process {self._pid}): close it first", path=self.path
            )
        with self._errors("opening it"):
            # Before the lock, which leaves a file in what may not be ours.
            for sequence in self._sequences()[-1:]:
                open_segment(self.path, sequence)
            lock = take_lock(os.path.join(self.path, LOCK_NAME), self.path)
            try:
                sequences = self._sequences()
                if not sequences:
                    create_segment(self.path, 1, os.urandom(16), pb.Step(state=encode_state(EMPTY)))
                    sequences = [1]
                view = self._load(sequences[-1])
                self._remove(set(sequences) - view.sequences)
                for name in os.listdir(self.path):
                    if name.endswith(".log.new"):
                        os.unlink(os.path.join(self.path, name))
            except BaseException:
                lock.release()
                raise
        self._lock, self._pid, self._failure, self._loaded = lock, os.getpid(), None, {}
        self._view = view
        add_holder(self)
        return view.state

    def initialise(self, identity: Identity, batches: Sequence[EntryBatch]) -> None:
        state = self._usable().state
        if state.identity is not None or state.last_entry != ZERO:
            raise BootstrapRefused(
                f"{self.path} already holds the state of {state.identity or 'a log without identity'}"
            )
        self._write(state, identity, None, batches)

    def recover(self, identity: Identity, ballot: Ballot, batch: EntryBatch) -> None:
        self._write(self._usable().state, identity, ballot, [batch])

    def write(self, ballot: Ballot | None, batches: Sequence[EntryBatch]) -> None:
        state = self._usable().state
        if ballot is not None or batches:
            self._write(state, None, ballot, batches)

    def read(self, first_index: int, last_index: int, bytes_max: int) -> list[EntryBatch]:
        check_process(self.path, self._pid)
        while True:
            view = self._view
            if view is None:
                raise StorageFailed(f"{self.path} is not open", path=self.path)
            stop = min(last_index, view.state.last_entry.index)
            if not view.state.first_index <= first_index <= stop:
                return []
            with self._errors(f"reading entries {first_index} to {stop}"):
                try:
                    return _cut_after(bytes_max, self._batches(view, first_index, stop))
                except Overtaken:
                    continue  # a cut took a segment away: the log is another one now

    def record_snapshot(self, snapshot: Snapshot) -> None:
        after = after_record(self._usable().state, snapshot)
        self._append(pb.Step(recorded=encode_snapshot(snapshot)), [], after)

    def forget_snapshot(self, index: int) -> None:
        state = self._usable().state
        after = after_forget(state, index)
        if after.snapshots != state.snapshots:
            self._append(pb.Step(forgotten=index), [], after)

    def compact(self, index: int, bytes_max: int) -> EntryId:
        view = self._usable()
        check_compaction(view.state, index, path=self.path)
        with self._errors("looking for entries to drop"):
            last_dropped = self._last_to_drop(view, min(index, view.state.last_entry.index), bytes_max)
        if last_dropped > view.state.base.index:
            term = next(start.term for start in reversed(view.state.terms) if start.first_index <= last_dropped)
            base = EntryId(term, last_dropped)
            self._append(pb.Step(base=encode_entry_id(base)), [], after_compact(view.state, base))
        return self._usable().state.base

    def reset(self, snapshot: Snapshot) -> None:
        after = after_reset(self._usable().state, snapshot)
        self._append(pb.Step(reset=encode_snapshot(snapshot)), [], after)

    def close(self) -> None:
        view, lock = self._view, self._lock
        if view is None or lock is None or self._pid != os.getpid():
            self._view = self._lock = None
            return
        if self._failure is None and not self._closed_by_step:
            # A step behind the last one shows that a crash did not tear that. What fails here loses nothing.
            with contextlib.suppress(StorageFailed):
                self._append(pb.Step(closed=True), [], view.state)
        self._view = self._lock = None
        self._loaded = {}
        lock.release()
        remove_holder(self)

    def let_go_after_fork(self) -> None:
        if self._lock is not None:
            self._lock.release()

    # Writing ---------------------------------------------------------------------------------------------------------

    def _write(
        self, state: StoredState, identity: Identity | None, ballot: Ballot | None, batches: Sequence[EntryBatch]
    ) -> None:
        check_no_gap(state, batches, path=self.path)
        settled = settle(batches)
        encoded = list(map(encode_batch, settled))
        step = pb.Step(
            identity=None if identity is None else encode_identity(identity),
            ballot=None if ballot is None else encode_ballot(ballot),
            batches=[
                pb.StoredBatch(
                    first_index=batch.first_index,
                    last_index=batch.last_index,
                    term=batch.term,
                    kind=int(batch.kind),
                    size_bytes=len(content),
                    checksum=crc32(content),
                )
                for batch, content in zip(settled, encoded, strict=True)
            ],
        )
        self._append(step, encoded, after_write(state, identity, ballot, settled))

    def _append(self, step: pb.Step, batches: list[bytes], after: StoredState) -> None:
        """Write the step and its batches behind the last one, durably; then the store holds `after`."""
        view = self._usable()
        try:
            if self._offset >= self._segment_bytes:
                view = self._begin_segment(view)
            segment = view.segment
            head, pieces = segment.pack(step, batches, self._offset, self._previous)
            segment.write(pieces, self._offset, self._segment_bytes)
            segment.sync()
        except BaseException as error:
            # Whether the disk holds the step is open until the file is read again; in memory nothing changed.
            self._failure = self._storage_failed("writing", error) if isinstance(error, OSError) else error
            if self._failure is error:
                raise
            raise self._failure from error
        self._offset, self._previous, self._closed_by_step = head.end, head.checksum, step.closed
        self._view = _advanced(view, step, head, after)
        if len(self._view.parts) < len(view.parts):
            self._remove(view.sequences - self._view.sequences)

    def _begin_segment(self, view: View) -> View:
        """Go on in a new segment, which begins with all that is true now. Raises OSError."""
        old, state = view.segment, view.state
        parts = view.parts[:-1]
        ending = replace(view.parts[-1], last_index=state.last_entry.index, end=self._offset, checksum=self._previous)
        ending = replace(ending, first_index=max(ending.first_index, state.first_index))
        if ending.first_index <= ending.last_index:
            parts = (*parts, ending)
            self._keep_loaded(ending.sequence, old, view.frames)
        step = pb.Step(state=encode_state(state))
        step.state.segments.extend(
            pb.Segment(
                sequence=part.sequence,
                first_index=part.first_index,
                last_index=part.last_index,
                end=part.end,
                checksum=part.checksum,
            )
            for part in parts
        )
        segment, head = create_segment(self.path, old.sequence + 1, old.log_id, step)
        # Only now, or a crash would leave a segment that seems to have lost the next one.
        _, pieces = old.pack(pb.Step(followed_by=segment.sequence), [], self._offset, self._previous)
        old.write(pieces, self._offset, 0)
        old.sync()
        old.give_back_room()
        self._offset, self._previous = head.end, head.checksum
        self._view = View(state, (*parts, Part(segment.sequence, state.last_entry.index + 1)), segment, Frames())
        self._remove(view.sequences - self._view.sequences)
        return self._view

    def _remove(self, sequences: set[int]) -> None:
        """Delete segments that hold nothing that counts. One that stays is deleted when the store is opened."""
        for sequence in sequences:
            self._loaded.pop(sequence, None)
            try:
                os.unlink(os.path.join(self.path, file_name(sequence)))
            except OSError as error:
                log.warning("%s: can't delete %s: %s", self.path, file_name(sequence), error)

    def _last_to_drop(self, view: View, index: int, bytes_max: int) -> int:
        """The last entry that compact drops: the end of a batch at or before index."""
        dropped, bytes_dropped = view.state.base.index, 0
        for window, offset, size_bytes, last_index in self._steps(view, view.state.first_index, index):
            if last_index <= index and bytes_dropped + size_bytes <= bytes_max:
                dropped, bytes_dropped = last_index, bytes_dropped + size_bytes
                continue
            for batch in self._step_at(window, offset)[1].batches:
                batch_end = min(batch.last_index, last_index)
                if batch_end <= view.state.base.index or batch.first_index > last_index:
                    continue
                bytes_dropped += batch.size_bytes
                if batch_end > index or (dropped > view.state.base.index and bytes_dropped > bytes_max):
                    return dropped
                dropped = batch_end
            return dropped
        return dropped

    def _usable(self) -> View:
        check_process(self.path, self._pid)
        if self._view is None:
            raise StorageFailed(f"{self.path} is not open", path=self.path)
        if self._failure is not None:
            raise StorageFailed(
                f"{self.path} takes no writes any more: {self._failure}", path=self.path
            ) from self._failure
        return self._view

    # Reading ---------------------------------------------------------------------------------------------------------

    def _batches(self, view: View, first_index: int, last_index: int) -> Iterator[EntryBatch]:
        """The entries [first_index, last_index], which the view holds."""
        next_index = first_index
        for window, offset, _, step_end in self._steps(view, first_index, last_index):
            head, step = self._step_at(window, offset)
            position, stop = head.batches_offset, min(step_end, last_index)
            for stored in step.batches:
                if stored.first_index <= next_index <= min(stored.last_index, stop):
                    batch = self._batch(window, position, stored)
                    yield batch.slice(next_index, min(batch.last_index, stop))
                    next_index = min(batch.last_index, stop) + 1
                position += stored.size_bytes
            if next_index <= stop:
                raise window.segment.damaged(offset, f"entry {next_index} is not in the step that should hold it")
        if next_index <= last_index:
            raise StorageCorrupt(
                f"{self.path} is damaged: entry {next_index} is gone, though the log reaches to {last_index}."
                f" {RESTORE_ADVICE}",
                path=self.path,
            )

    def _steps(self, view: View, first_index: int, last_index: int) -> Iterator[tuple[Window, int, int, int]]:
        """The steps that hold the entries [first_index, last_index]: where, how many bytes, and up to which entry."""
        start = bisect_right(view.parts, first_index, key=lambda part: part.first_index) - 1
        for part in view.parts[max(start, 0) :]:
            if part.first_index > last_index:
                break
            if part.end:
                segment, frames = self._loaded.get(part.sequence) or self._load_sealed(part)
                end = part.end
            else:
                segment, frames, end = view.segment, view.frames, 0
            window = Window(segment)
            count = len(frames.first_indexes)
            at = max(bisect_right(frames.first_indexes, max(first_index, part.first_index), hi=count) - 1, 0)
            for number in range(at, count):
                step_first = frames.first_indexes[number]
                if step_first > min(last_index, part.last_index):
                    break
                if number + 1 < count:
                    step_last = frames.first_indexes[number + 1] - 1
                    size_bytes = frames.offsets[number + 1] - frames.offsets[number]
                else:
                    step_last = part.last_index
                    size_bytes = max(end, self._offset) - frames.offsets[number]
                step_last = min(step_last, part.last_index, view.state.last_entry.index)
                yield window, frames.offsets[number], size_bytes, step_last

    def _step_at(self, window: Window, offset: int) -> tuple[Head, pb.Step]:
        """Raises StorageCorrupt unless it is what was written."""
        head = window.head_at(offset)
        step = None if head is None else window.step_of(head)
        if head is None or step is None:
            raise window.segment.damaged(offset, "the head of the step there is not what was written")
        return head, step

    def _batch(self, window: Window, offset: int, stored: pb.StoredBatch) -> EntryBatch:
        """Raises StorageCorrupt unless it is what was written."""
        content = window.read(offset, stored.size_bytes)
        entries = f"the entries {stored.first_index} to {stored.last_index}"
        if len(content) < stored.size_bytes or crc32(content) != stored.checksum:
            raise window.segment.damaged(offset, f"the checksum of {entries} is wrong")
        try:
            batch = decode_batch(content)
        except BadRecord as error:
            raise window.segment.damaged(offset, f"{entries} can't be read: {error}") from None
        told = (stored.first_index, stored.last_index, stored.term, stored.kind)
        if (batch.first_index, batch.last_index, batch.term, int(batch.kind)) != told:
            raise window.segment.damaged(offset, f"{entries} are others than the step tells of")
        return batch

    def _load_sealed(self, part: Part) -> tuple[Segment, Frames]:
        """Open a segment that another one follows, and see where its entries are.

        Raises StorageCorrupt, and Overtaken if it was deleted meanwhile.
        """
        try:
            segment = open_segment(self.path, part.sequence)
        except FileNotFoundError:
            current = self._view
            if current is None or part.sequence not in current.sequences:
                raise Overtaken from None
            raise self._gone(part) from None
        window, frames = Window(segment), Frames()
        offset, previous = HEADER_BYTES, segment.seed
        while offset < part.end:
            head, step = self._step_at(window, offset)
            if head.previous != previous:
                raise segment.damaged(offset, "the step there does not belong behind the one before")
            cuts = bool(step.batches and frames.first_indexes)
            cuts = cuts and frames.first_indexes[-1] >= step.batches[0].first_index
            frames = frames.after(step, head, cuts=cuts)
            offset, previous = head.end, head.checksum
        if (offset, previous) != (part.end, part.checksum):
            raise segment.damaged(offset, "its last step is not the one that the next segment tells of")
        self._keep_loaded(part.sequence, segment, frames)
        return segment, frames

    def _keep_loaded(self, sequence: int, segment: Segment, frames: Frames) -> None:
        for oldest in list(self._loaded)[: max(0, len(self._loaded) + 1 - LOADED_SEGMENTS_MAX)]:
            self._loaded.pop(oldest, None)
        self._loaded[sequence] = (segment, frames)

    # Opening ---------------------------------------------------------------------------------------------------------

    def _sequences(self) -> list[int]:
        """The numbers of the segments that the directory holds, ascending. Raises StorageForeign."""
        if not os.path.exists(self.path):
            return []
        if not os.path.isdir(self.path):
            raise StorageForeign(f"{self.path} is no directory: name another path", path=self.path)
        names = os.listdir(self.path)
        sequences = sorted(int(match[1]) for match in map(FILE_NAME.fullmatch, names) if match)
        strangers = [name for name in names if name != LOCK_NAME and not name.endswith(".log.new")]
        if strangers and not sequences:
            raise StorageForeign(
                f"{self.path} holds {strangers[0]!r} and no log of geraft's: name another directory, one of its own",
                path=self.path,
            )
        return sequences

    def _load(self, sequence: int) -> View:
        """Read the last segment, check it and what stands before it, and mend what a crash tore. Raises OSError."""
        segment = open_segment(self.path, sequence, writable=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(f"the directory {self.path} can't be written to")
        window = Window(segment)
        last, first_step = self._step_at(window, HEADER_BYTES)
        if not first_step.HasField("state") or last.previous != segment.seed:
            raise segment.damaged(HEADER_BYTES, "its first step does not tell of what went before")
        state = self._decoded_state(segment, first_step.state)
        sealed = (
            Part(told.sequence, told.first_index, told.last_index, told.end, told.checksum)
            for told in first_step.state.segments
        )
        view = View(state, (*sealed, Part(sequence, state.last_entry.index + 1)), segment, Frames())
        while True:
            offset = last.end
            head = window.head_at(offset)
            step = None if head is None else window.step_of(head)
            if head is None or step is None or window.damaged_batch(head, step) is not None:
                break
            if head.previous != last.checksum:
                raise segment.damaged(offset, "the step there does not belong behind the one before")
            if step.followed_by:
                gone = os.path.join(self.path, file_name(step.followed_by))
                raise StorageCorrupt(f"{gone} is gone, and with it the end of the log. {RESTORE_ADVICE}", path=gone)
            view = _advanced(view, step, head, self._after(segment, view.state, window, head, step))
            last, first_step = head, step
        torn_bytes = self._torn_bytes(window, offset, head)
        for part in view.parts[:-1]:
            self._check_sealed(part, segment)
        # All checks are done. What a crash, or a sync that failed, left in the system's memory alone goes to the disk
        # now: it is about to be acted upon. Clean pages are not written, so the last step is written over itself.
        if torn_bytes:
            log.warning(
                "%s: dropped %d bytes from byte %d on, which a crash had torn; nothing that was acknowledged is lost",
                segment.path,
                torn_bytes,
                offset,
            )
            segment.cut_off(offset)
        write_all(segment.descriptor, [window.read(last.offset, last.end - last.offset)], last.offset)
        os.fsync(segment.descriptor)
        self._offset, self._previous, self._closed_by_step = last.end, last.checksum, first_step.closed
        return view

    def _torn_bytes(self, window: Window, offset: int, head: Head | None) -> int:
        """How many bytes a crash left of a write, from offset on. Raises StorageCorrupt if it was no crash.

        Each step is synced before the next one is written, so one behind it shows that it was whole once.
        """
        used_bytes = window.used_after(offset)
        if used_bytes:
            end = offset + HEAD_BYTES if head is None else head.last_byte + 1
            if window.step_follows(offset):
                raise window.segment.damaged(offset, "a step is not what was written, though others follow it")
            if not window.may_be_torn(offset, end):
                raise window.segment.damaged(offset, "the last step is not what was written, and no crash tore it")
        return used_bytes

    def _after(self, segment: Segment, state: StoredState, window: Window, head: Head, step: pb.Step) -> StoredState:
        outlines, position = [], head.batches_offset
        try:
            for stored in step.batches:
                configuration = None
                if stored.kind == EntryKind.CONFIGURATION:
                    configuration = self._batch(window, position, stored).configuration
                outlines.append(Outline(stored.term, stored.first_index, stored.last_index, configuration))
                position += stored.size_bytes
            if outlines and not state.first_index <= outlines[0].first_index <= state.last_entry.index + 1:
                raise BadRecord("its entries do not join the log")
            return after_step(state, step, outlines)
        except BadRecord as error:
            raise segment.damaged(head.offset, str(error)) from None

    def _decoded_state(self, segment: Segment, state: pb.State) -> StoredState:
        try:
            return decode_state(state)
        except BadRecord as error:
            raise segment.damaged(HEADER_BYTES, str(error)) from None

    def _check_sealed(self, part: Part, last: Segment) -> None:
        """Raises StorageError unless the segment of that part is there, of the same log, and long enough."""
        path = os.path.join(self.path, file_name(part.sequence))
        try:
            segment = open_segment(self.path, part.sequence)
        except FileNotFoundError:
            raise self._gone(part) from None
        if segment.log_id != last.log_id:
            raise StorageForeign(f"{path} belongs to another log than {last.path}. {RESTORE_ADVICE}", path=path)
        size_bytes = os.fstat(segment.descriptor).st_size
        if size_bytes < part.end:
            raise segment.damaged(size_bytes, f"the file ends there and should go on to {part.end}")

    # Errors ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._storage_failed(doing, error) from error

    def _gone(self, part: Part) -> StorageCorrupt:
        path = os.path.join(self.path, file_name(part.sequence))
        return StorageCorrupt(
            f"{path} is gone, and with it entries {part.first_index} to {part.last_index}. {RESTORE_ADVICE}", path=path
        )

    def _storage_failed(self, doing: str, error: OSError) -> StorageFailed:
        return StorageFailed(
            f"{self.path}: {doing} failed: {error}. {advice_for(error)}, then open the store again", path=self.path
        )


def _cut_after(bytes_max: int, batches: Iterator[EntryBatch]) -> list[EntryBatch]:
    """The batches up to about bytes_max, but the first one at least."""
    selected: list[EntryBatch] = []
    for batch in batches:
        bytes_max -= batch.size_bytes
        if selected and bytes_max < 0:
            break
        selected.append(batch)
    return selected


def _advanced(view: View, step: pb.Step, head: Head, after: StoredState) -> View:
    """What the store holds after the step."""
    parts, current = view.parts, view.parts[-1]
    cuts = bool(step.batches) and step.batches[0].first_index <= view.state.last_entry.index
    if step.HasField("reset"):
        parts = (replace(current, first_index=after.first_index),)
    elif cuts:
        cut = step.batches[0].first_index
        kept = (part for part in parts[:-1] if part.first_index < cut)
        parts = (
            *(replace(part, last_index=min(part.last_index, cut - 1)) for part in kept),
            replace(current, first_index=min(current.first_index, cut)),
        )
    if after.base != view.state.base and len(parts) > 1:
        parts = (*(part for part in parts[:-1] if part.last_index > after.base.index), parts[-1])
    return View(after, parts, view.segment, view.frames.after(step, head, cuts=cuts))
