"""The replicated state of a simulated cluster: a few registers, each of which knows the index of its last write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from geraft.app import MakeSnapshot
from geraft.core.invariants import InvariantBroken
from geraft.simple import SimpleRaftApp
from geraft.testing.simulation.guest import Guest


class Cell(NamedTuple):
    """version: index of the entry that wrote it, 0 for none. number: of the write, which is its value."""

    version: int = 0
    number: int = 0


class Registers(SimpleRaftApp):
    """Commands are `set KEY NUMBER` and `cas KEY EXPECTED NUMBER`; a query is a key. Answers are `VERSION NUMBER`.

    A command is answered with the cell as it left it, so with its own number if it wrote. wrote: told each command, and
    says whether and how a snapshot shall be made of the state after it. index_of: tells the index of a command, which
    a fold is not told. guest: gets what stands behind the first line of a command, and has its state in every snapshot.
    """

    def __init__(
        self,
        wrote: Callable[[int, bytes], MakeSnapshot],
        index_of: Callable[[bytes], int],
        guest: Guest | None = None,
    ) -> None:
        self._wrote = wrote
        self._index_of = index_of
        self._guest = guest
        self._cells: dict[bytes, Cell] = {}

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        wish = self._wrote(entry_index, request)
        if self._guest is not None:
            self._guest.process_write(entry_index, guests_part(request))
        return b"%d %d" % self._write(request, entry_index), wish

    def _write(self, request: bytes, entry_index: int) -> Cell:
        operation, key, *numbers = request.partition(b"\n")[0].split()
        cell = self._cells.get(key, Cell())
        if operation == b"set" or cell.number == int(numbers[0]):
            cell = self._cells[key] = Cell(entry_index, int(numbers[-1]))
        return cell

    def process_read(self, request: bytes) -> bytes:
        return b"%d %d" % self._cells.get(request, Cell())

    def snapshot(self) -> bytes:
        return self.cells() + (b"\0" + self._guest.snapshot() if self._guest is not None else b"")

    def cells(self) -> bytes:
        """The snapshot without the guest's."""
        return b"\n".join(b"%s %d %d" % (key, *cell) for key, cell in sorted(self._cells.items()))

    def restore(self, snapshot: bytes | None) -> None:
        cells, guests = parts_of(snapshot)
        if self._guest is not None:
            self._guest.restore(guests)
        self._become(cells)

    def _become(self, cells: bytes) -> None:
        rows = [row.split() for row in cells.splitlines()]
        self._cells = {key: Cell(int(version), int(number)) for key, version, number in rows}

    def fold(self, old_snapshot: bytes | None, requests: Sequence[bytes]) -> bytes:
        """As every app must: from these alone, beside the state of this server, which may be ahead by now."""
        cells, guests = parts_of(old_snapshot)
        folded = Registers(self._wrote, self._index_of)
        folded._become(cells)
        last_index = 0
        for request in requests:
            index = self._index_of(request)
            if index <= last_index:
                raise InvariantBroken(f"a fold is given {request!r} of entry {index} after entry {last_index}")
            last_index = index
            folded._write(request, index)
        cells = b"\n".join(reversed(folded.cells().splitlines()))  # the same state in other bytes than a copy's
        if self._guest is None:
            return cells
        return cells + b"\0" + self._guest.fold(guests, [guests_part(request) for request in requests])


def guests_part(command: bytes) -> bytes:
    return command.partition(b"\n")[2]


def parts_of(snapshot: bytes | None) -> tuple[bytes, bytes | None]:
    """The cells, and the guest's snapshot; None for the empty state."""
    if snapshot is None:
        return b"", None
    cells, _, guests = snapshot.partition(b"\0")
    return cells, guests


def cell_of(answer: bytes) -> Cell:
    version, number = answer.split()
    return Cell(int(version), int(number))


def number_of(command: bytes) -> int:
    """Of the write."""
    return int(command.partition(b"\n")[0].rsplit(maxsplit=1)[-1])
