"""The replicated state of a simulated cluster: a few registers, each of which knows the index of its last write."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from geraft.app import MakeSnapshot
from geraft.simple import SimpleRaftApp
from geraft.testing.simulation.guest import Guest


class Cell(NamedTuple):
    """version: index of the entry that wrote it, 0 for none. number: of the write, which is its value."""

    version: int = 0
    number: int = 0


class Registers(SimpleRaftApp):
    """Commands are `set KEY NUMBER` and `cas KEY EXPECTED NUMBER`; a query is a key. Answers are `VERSION NUMBER`.

    A command is answered with the cell as it left it, so with its own number if it wrote. wrote: told each command, and
    says whether a snapshot shall be made of the state after it. guest: gets what stands behind the first line of a
    command, and has its state in every snapshot.
    """

    def __init__(self, wrote: Callable[[int, bytes], bool], guest: Guest | None = None) -> None:
        self._wrote = wrote
        self._guest = guest
        self._cells: dict[bytes, Cell] = {}

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        snapshot = self._wrote(entry_index, request)
        request, _, guests = request.partition(b"\n")
        if self._guest is not None:
            self._guest.process_write(entry_index, guests)
        operation, key, *numbers = request.split()
        cell = self._cells.get(key, Cell())
        if operation == b"set" or cell.number == int(numbers[0]):
            cell = self._cells[key] = Cell(entry_index, int(numbers[-1]))
        return b"%d %d" % cell, MakeSnapshot.COPY if snapshot else MakeSnapshot.NONE

    def process_read(self, request: bytes) -> bytes:
        return b"%d %d" % self._cells.get(request, Cell())

    def snapshot(self) -> bytes:
        return self.cells() + (b"\0" + self._guest.snapshot() if self._guest is not None else b"")

    def cells(self) -> bytes:
        """The snapshot without the guest's."""
        return b"\n".join(b"%s %d %d" % (key, *cell) for key, cell in sorted(self._cells.items()))

    def restore(self, snapshot: bytes | None) -> None:
        cells, _, guests = (snapshot or b"").partition(b"\0")
        if self._guest is not None:
            self._guest.restore(guests if snapshot is not None else None)
        rows = [row.split() for row in cells.splitlines()]
        self._cells = {key: Cell(int(version), int(number)) for key, version, number in rows}


def cell_of(answer: bytes) -> Cell:
    version, number = answer.split()
    return Cell(int(version), int(number))


def number_of(command: bytes) -> int:
    """Of the write."""
    return int(command.partition(b"\n")[0].rsplit(maxsplit=1)[-1])
