"""The log as the core sees it: terms, the cached tail, truncation, and where two logs part."""

from __future__ import annotations

import pytest
from core_servers import batch, configuration, configuration_batch, log_of

from geraft.core.entries import ZERO, EntryId
from geraft.core.log import BATCH_OVERHEAD_BYTES, Log
from geraft.core.membership import NO_MEMBERS


def test_an_empty_log() -> None:
    log = Log()
    assert (log.last_entry, log.configuration, log.cached_from) == (ZERO, NO_MEMBERS, 1)
    assert [log.term_at(index) for index in (0, 1)] == [0, None]
    assert log.cached(1, 9, 100) is None
    assert log.last_possible_match(EntryId(5, 5)) == ZERO


def test_the_term_of_every_index() -> None:
    log = log_of([2, 2, 5])
    assert [log.term_at(index) for index in range(-1, 6)] == [None, 0, 1, 2, 2, 5, None]


def test_a_log_read_from_a_store_knows_its_terms_though_nothing_is_cached() -> None:
    log = Log(last_entry=EntryId(5, 9), terms=[(1, 1), (2, 3), (7, 5)], configurations=[(1, configuration())])
    assert [log.term_at(index) for index in range(10)] == [0, 1, 3, 3, 3, 3, 3, 5, 5, 5]
    assert log.cached_from == 10
    assert log.cached(3, 9, 1000) is None


def test_a_log_after_a_snapshot_starts_at_its_base() -> None:
    log = Log(base=EntryId(4, 10), last_entry=EntryId(5, 12), terms=[(11, 4), (12, 5)])
    assert [log.term_at(index) for index in range(9, 14)] == [None, 4, 4, 5, None]
    assert log.last_possible_match(EntryId(3, 12)) == EntryId(4, 10), "all that the base stands for is committed"


def test_truncation_in_the_middle_of_a_batch() -> None:
    log = log_of([2])
    log.append(batch(3, 3, b"a", b"b", b"c"))
    log.append(batch(4, 6))
    log.truncate_to(4)
    assert log.last_entry == EntryId(3, 4)
    assert log.cached(3, 4, 1000) == (batch(3, 3, b"a", b"b"),)
    assert [log.term_at(index) for index in range(1, 6)] == [1, 2, 3, 3, None]
    assert log.cached_bytes == sum(part.size_bytes + BATCH_OVERHEAD_BYTES for part in log.cached(1, 4, 10_000) or ())


def test_truncation_rolls_configurations_back() -> None:
    log = log_of([2])
    log.append(configuration_batch(3, 3, configuration("1234")))
    assert log.configuration == configuration("1234")
    log.truncate_to(2)
    assert (log.configuration, log.configuration_index) == (configuration("123"), 1)


def test_truncation_below_what_is_cached() -> None:
    log = log_of([2, 2, 3])
    log.evict(4, 0)
    log.truncate_to(2)
    assert (log.last_entry, log.cached_from, log.cached_bytes) == (EntryId(2, 2), 3, 0)
    log.append(batch(4, 3))
    assert log.cached(3, 3, 100) == (batch(4, 3),)


@pytest.mark.parametrize(
    ("first", "last", "bytes_max", "expected"),
    [
        (2, 6, 1000, (batch(2, 2, b"a", b"b"), batch(2, 4, b"c", b"d"), batch(2, 6))),
        (3, 5, 1000, (batch(2, 3, b"b"), batch(2, 4, b"c", b"d"))),
        (3, 4, 1000, (batch(2, 3, b"b"), batch(2, 4, b"c"))),
        (2, 6, 1, (batch(2, 2, b"a", b"b"),)),  # at least one batch, however small the limit
        (2, 6, 45, (batch(2, 2, b"a", b"b"), batch(2, 4, b"c", b"d"))),
        (7, 9, 1000, None),  # not in the log
    ],
)
def test_reading_the_cache(first: int, last: int, bytes_max: int, expected: tuple[object, ...] | None) -> None:
    log = log_of()
    for part in (batch(2, 2, b"a", b"b"), batch(2, 4, b"c", b"d"), batch(2, 6)):
        log.append(part)
    assert log.cached(first, last, bytes_max) == expected


def test_a_batch_that_is_wanted_whole_is_not_copied() -> None:
    """So that its encoding is shared by the disk and every peer."""
    log = log_of()
    part = batch(2, 2, b"a", b"b")
    log.append(part)
    assert (log.cached(2, 3, 1000) or ())[0] is part


def test_eviction_forgets_the_oldest_and_never_what_is_not_durable() -> None:
    log = log_of([2] * 9)
    each = batch(2, 2).size_bytes + BATCH_OVERHEAD_BYTES
    log.evict(last_index=10, bytes_max=100 * each)
    assert log.cached_from == 1, "it fits"
    log.evict(last_index=10, bytes_max=8 * each)
    assert log.cached_from == 4, "an eighth below the limit, so that the next write need not evict again"
    log.evict(last_index=5, bytes_max=0)
    assert log.cached_from == 6
    assert log.cached_bytes == 5 * each
    assert log.cached(5, 10, 1000) is None


@pytest.mark.parametrize(
    ("term", "first_index", "count", "expected"),
    [
        (3, 7, 2, 7),  # directly after the log: all of it is new
        (2, 3, 2, 5),  # we have all of it
        (3, 5, 5, 7),  # we have the first two
        (4, 5, 2, 5),  # another term from its start
        (2, 3, 4, 5),  # the same up to 4
        (4, 2, 3, 2),
    ],
)
def test_the_first_conflict(term: int, first_index: int, count: int, expected: int) -> None:
    log = log_of([2, 2, 2, 3, 3])  # entries 2 to 4 of term 2, 5 and 6 of term 3
    assert log.first_conflict(batch(term, first_index, *[b"x"] * count)) == expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (EntryId(2, 4), EntryId(2, 4)),
        (EntryId(4, 20), EntryId(4, 9)),  # not after our last
        (EntryId(9, 6), EntryId(4, 6)),  # same index, whatever term
        (EntryId(3, 8), EntryId(2, 5)),  # all of term 4 is skipped at once
        (EntryId(1, 9), EntryId(1, 1)),
        (EntryId(0, 9), ZERO),
        (EntryId(2, 3), EntryId(2, 3)),
        (ZERO, ZERO),
    ],
)
def test_the_last_entry_that_another_log_may_hold_too(other: EntryId, expected: EntryId) -> None:
    log = log_of([2, 2, 2, 2, 4, 4, 4, 4])  # 2 to 5 of term 2, 6 to 9 of term 4
    assert log.last_possible_match(other) == expected


def test_a_gap_or_a_falling_term_is_a_bug_of_ours() -> None:
    log = log_of([3])
    with pytest.raises(AssertionError, match="without a gap"):
        log.append(batch(3, 4))
    with pytest.raises(AssertionError, match="terms never fall"):
        log.append(batch(2, 3))
