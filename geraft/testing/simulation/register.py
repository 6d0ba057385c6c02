"""The replicated state of a simulated cluster: a few registers, each of which knows the index of its last write."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from geraft.app import MakeSnapshot
from geraft.simple import SimpleRaftApp


class Cell(NamedTuple):
    """version: index of the entry that wrote it, 0 for none. number: of the write, which is its value."""

    version: int = 0
    number: int = 0


class Registers(SimpleRaftApp):
    """Commands are `set KEY NUMBER` and `cas KEY EXPECTED NUMBER`; a query is a key. Answers are `VERSION NUMBER`.

    A command is answered with the cell as it left it, so with its own number if it wrote. wrote: told each command, and
    says whether a snapshot shall be made of the state after it.
    """

    def __init__(self, wrote: Callable[[int, bytes], bool]) -> None:
        self._wrote = wrote
        self._cells: dict[bytes, Cell] = {}

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        snapshot = self._wrote(entry_index, request)
        operation, key, *numbers = request.split()
        cell = self._cells.get(key, Cell())
        if operation == b"set" or cell.number == int(numbers[0]):
            cell = self._cells[key] = Cell(entry_index, int(numbers[-1]))
        return b"%d %d" % cell, MakeSnapshot.COPY if snapshot else MakeSnapshot.NONE

    def process_read(self, request: bytes) -> bytes:
        return b"%d %d" % self._cells.get(request, Cell())

    def snapshot(self) -> bytes:
        return b"\n".join(b"%s %d %d" % (key, *cell) for key, cell in sorted(self._cells.items()))

    def restore(self, snapshot: bytes | None) -> None:
        rows = [row.split() for row in (snapshot or b"").splitlines()]
        self._cells = {key: Cell(int(version), int(number)) for key, version, number in rows}


def cell_of(answer: bytes) -> Cell:
    version, number = answer.split()
    return Cell(int(version), int(number))
