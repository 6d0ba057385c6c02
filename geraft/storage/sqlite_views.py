"""Views for people with a SQL tool: what the tables of a store hold, with plain columns.

    batches   one row per batch, as stored: which entries, what kind, how many bytes
    entries   one row per entry, with its command

A batch is protobuf. Its commands follow a head whose length is known from the batch's other columns, each after a tag
and a length, so SQL can walk from one to the next. geraft itself never reads through these.
"""

from __future__ import annotations

from typing import Final

KIND_NAME: Final = (
    "CASE kind WHEN 1 THEN 'noop' WHEN 2 THEN 'command' WHEN 3 THEN 'configuration'"
    " WHEN 4 THEN 'session' ELSE 'kind ' || kind END"
)

BATCHES: Final = f"""
SELECT first_index, last_index, last_index - first_index + 1 AS entry_count, term, {KIND_NAME} AS kind,
    length(entries) AS size_bytes
FROM log
ORDER BY first_index
"""


def _varint_bytes(number: str) -> str:
    """How many bytes a protobuf varint of that column takes."""
    sizes = " ".join(f"WHEN {number} < {1 << 7 * size} THEN {size}" for size in range(1, 9))
    return f"(CASE {sizes} ELSE 9 END)"


def _byte(number: int) -> str:
    """The number-th byte, from 1, of what stands as hexadecimal digits in `length_hex`."""
    digits = [f"instr('0123456789ABCDEF', substr(length_hex, {2 * number - half}, 1)) - 1" for half in (1, 0)]
    return f"(({digits[0]}) * 16 + {digits[1]})"


def _length() -> tuple[str, str]:
    """Of the varint at the beginning of `length_hex`: how many bytes it takes, and its value; up to four bytes."""
    first, second, third, fourth = (_byte(number) for number in range(1, 5))
    size = f"(CASE WHEN {first} < 128 THEN 1 WHEN {second} < 128 THEN 2 WHEN {third} < 128 THEN 3 ELSE 4 END)"
    two = f"{first} % 128 + {second} % 128 * 128"
    value = (
        f"(CASE {size} WHEN 1 THEN {first} WHEN 2 THEN {two} WHEN 3 THEN {two} + {third} % 128 * 16384"
        f" ELSE {two} + {third} % 128 * 16384 + {fourth} * 2097152 END)"
    )
    return size, value


# LIMIT -1 changes nothing, but keeps SQLite from leaving out the order, by which the rows come as the log has them.
_SIZE, _VALUE = _length()
_HEAD = f"4 + {_varint_bytes('term')} + {_varint_bytes('first_index')}"  # three tags, the kind, and two numbers

ENTRIES: Final = f"""
WITH RECURSIVE walk (entry_index, first_index, last_index, tag_at, length_hex) AS (
    SELECT first_index, first_index, last_index, 1 + {_HEAD}, hex(substr(entries, 2 + {_HEAD}, 4))
    FROM log
    UNION ALL
    SELECT entry_index + 1, walk.first_index, walk.last_index, tag_at + 1 + {_SIZE} + {_VALUE},
        hex(substr(entries, tag_at + 2 + {_SIZE} + {_VALUE}, 4))
    FROM walk CROSS JOIN log ON log.first_index = walk.first_index
    WHERE entry_index < walk.last_index
    ORDER BY 1 LIMIT -1
)
SELECT entry_index, term, {KIND_NAME} AS kind, {_VALUE} AS size_bytes,
    substr(entries, tag_at + 1 + {_SIZE}, {_VALUE}) AS command
FROM walk CROSS JOIN log ON log.first_index = walk.first_index
"""

VIEWS: Final = {"batches": BATCHES, "entries": ENTRIES}
