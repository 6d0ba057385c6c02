"""Batches for the tests of a store, without what the suite imports: children start faster."""

from __future__ import annotations

from collections.abc import Sequence

from geraft.core.entries import EntryBatch, EntryId, EntryKind

UNLIMITED = 2**62


def commands(term: int, first_index: int, last_index: int, command_bytes: int = 0) -> EntryBatch:
    """A batch of commands each of which tells its own term and index, filled up to command_bytes."""
    return EntryBatch(
        term=term,
        first_index=first_index,
        kind=EntryKind.COMMAND,
        commands=tuple(
            (b"%d.%d " % (term, index)).ljust(command_bytes, b".") for index in range(first_index, last_index + 1)
        ),
    )


def entries_of(batches: Sequence[EntryBatch]) -> list[tuple[EntryId, bytes]]:
    return [
        (EntryId(batch.term, batch.first_index + offset), command)
        for batch in batches
        for offset, command in enumerate(batch.commands)
    ]


def entry_ids(batches: Sequence[EntryBatch]) -> list[EntryId]:
    return [id for id, _ in entries_of(batches)]
