"""One file of a FileStorage: a header, then steps one behind the other; bytes once synced are never written again.

    header   magic, format version, sequence number of the segment, id of the log, checksum; filled up to 64 bytes
    step     head (36 bytes), the encoded Step, the encoded batches, one byte END; filled up to 8 bytes
    ...
    zeros    room for the next steps, which a sync need not allocate any more

A head names the offset at which it stands, and carries the checksum of the head before; its own checksum begins with
that of the header. So a step counts only in its place: not one of another file, nor one left over from before.

Checksums are CRC-32 (IEEE 802.3): any change within 32 consecutive bits is found, and any two changed bits within
512 MiB; of changes beyond that one in 4 billion is not.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from typing import Final, NamedTuple
from zlib import crc32

from google.protobuf.message import DecodeError

from geraft.errors import StorageCorrupt, StorageError, StorageFailed, StorageForeign, StorageFormatTooNew
from geraft.pb import file_store_pb2 as store_pb
from geraft.storage.base import FORMAT_VERSION
from geraft.storage.holding import RESTORE_ADVICE

MAGIC: Final = b"geraftlg"
HEADER: Final = struct.Struct("<8sIIQ16s")
"""Magic, format version, 0, sequence number, id of the log; the checksum of these follows."""
HEADER_BYTES: Final = 64

STEP_MAGIC: Final = b"step"
HEAD: Final = struct.Struct("<4sIQQII")
"""Magic, bytes of the Step, bytes of the batches, offset, checksum of the head before, checksum of the Step."""
HEAD_BYTES: Final = HEAD.size + 4
END: Final = b"\xed"
ALIGNMENT: Final = 8

SECTOR_BYTES: Final = 512
"""What a disk writes at once, or, if it fails meanwhile, writes the first part of."""
AHEAD_BYTES: Final = 256 * 1024
"""So much room is made, as zeros, when a step does not fit into what there is; the step's own sync covers it."""
CHUNK_BYTES: Final = 64 * 1024
STEP_BYTES_MAX: Final = 2**32 - 1
BUFFERS_MAX: Final = 512
"""Given to one writev; the system takes 1024."""

FILE_NAME: Final = re.compile(r"(\d{8,18})\.log")


def file_name(sequence: int) -> str:
    return f"{sequence:08}.log"


class Head(NamedTuple):
    """Where a step is. checksum: of the head itself."""

    offset: int
    step_bytes: int
    batches_bytes: int
    previous: int
    step_checksum: int
    checksum: int

    @property
    def batches_offset(self) -> int:
        return self.offset + HEAD_BYTES + self.step_bytes

    @property
    def last_byte(self) -> int:
        return self.batches_offset + self.batches_bytes

    @property
    def end(self) -> int:
        """Where the next step begins."""
        return -(-(self.last_byte + 1) // ALIGNMENT) * ALIGNMENT


class Segment:
    """An open file. Closes itself once nobody refers to it, so that a reader keeps what it reads from."""

    def __init__(self, path: str, sequence: int, log_id: bytes, descriptor: int) -> None:
        self.path: Final = path
        self.sequence: Final = sequence
        self.log_id: Final = log_id
        self.descriptor: Final = descriptor
        self.seed: Final = crc32(HEADER.pack(MAGIC, FORMAT_VERSION, 0, sequence, log_id))
        self._written = 0  # up to where the file has steps
        self._room = 0  # up to where it has been filled with zeros

    def __del__(self) -> None:
        os.close(self.descriptor)

    # Writing ---------------------------------------------------------------------------------------------------------

    def pack(self, step: store_pb.Step, batches: list[bytes], offset: int, previous: int) -> tuple[Head, list[bytes]]:
        """A step as it stands in the file at offset, and its head. batches: their bytes, in order."""
        encoded = step.SerializeToString()
        batches_bytes = sum(map(len, batches))
        if batches_bytes + len(encoded) > STEP_BYTES_MAX:
            raise StorageFailed(f"{self.path}: one write may take 4 GB at most", path=self.path)
        step_checksum = crc32(encoded)
        packed = HEAD.pack(STEP_MAGIC, len(encoded), batches_bytes, offset, previous, step_checksum)
        checksum = crc32(packed, self.seed)
        head = Head(offset, len(encoded), batches_bytes, previous, step_checksum, checksum)
        first = packed + checksum.to_bytes(4, "little") + encoded
        return head, [first, *batches, END.ljust(head.end - head.last_byte, b"\0")]

    def write(self, pieces: list[bytes], offset: int, room_end: int) -> None:
        """Write the pieces one behind the other from offset on. Raises OSError.

        room_end: up to where to make room for later steps, if there is none left.
        """
        end = offset + sum(map(len, pieces))
        write_all(self.descriptor, pieces, offset)
        self._written = end
        if end > self._room:
            self._make_room(end, min(AHEAD_BYTES, room_end - end))

    def sync(self) -> None:
        os.fdatasync(self.descriptor)

    def _make_room(self, end: int, room_bytes: int) -> None:
        """Fill what comes after `end` with zeros: a sync that need not allocate is twice as fast.

        What fails here is left for the step itself to find.
        """
        self._room = end
        if room_bytes > 0:
            with contextlib.suppress(OSError):
                self._room += os.pwrite(self.descriptor, bytes(room_bytes), end)

    def give_back_room(self) -> None:
        """Shorten the file to what was written: no step follows any more. What fails here costs room only."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, self._written)

    def cut_off(self, end: int) -> None:
        """Drop what stands from `end` on, durably."""
        os.ftruncate(self.descriptor, end)
        self._room = end
        os.fsync(self.descriptor)

    # Reading ---------------------------------------------------------------------------------------------------------

    def damaged(self, offset: int, what: str) -> StorageCorrupt:
        return StorageCorrupt(f"{self.path} is damaged at byte {offset}: {what}. {RESTORE_ADVICE}", path=self.path)


def write_all(descriptor: int, pieces: list[bytes], offset: int) -> None:
    """Write the pieces one behind the other; a write may take less than all. Raises OSError."""
    if len(pieces) <= BUFFERS_MAX:
        written = os.pwritev(descriptor, pieces, offset)
        if written == sum(map(len, pieces)):
            return
    for start in range(0, len(pieces), BUFFERS_MAX):
        rest: list[bytes | memoryview] = list(pieces[start : start + BUFFERS_MAX])
        while rest:
            written = os.pwritev(descriptor, rest, offset)
            offset += written
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = memoryview(rest[0])[written:]


class Window:
    """Reads a segment in large pieces; one reader's own."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._start = 0
        self._chunk = b""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes [offset, offset + size), fewer at the end of the file. Raises OSError."""
        start = offset - self._start
        if not 0 <= start <= start + size <= len(self._chunk):
            self._chunk = self._pread(max(size, CHUNK_BYTES), offset)
            self._start, start = offset, 0
        return self._chunk[start : start + size]

    def _pread(self, size: int, offset: int) -> bytes:
        pieces = []
        while size > 0:
            piece = os.pread(self.segment.descriptor, size, offset)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def head_at(self, offset: int) -> Head | None:
        """The head of a step at offset; None if none was written there, or it is damaged."""
        packed = self.read(offset, HEAD_BYTES)
        if len(packed) < HEAD_BYTES:
            return None
        magic, step_bytes, batches_bytes, position, previous, step_checksum = HEAD.unpack_from(packed)
        checksum = int.from_bytes(packed[HEAD.size :], "little")
        if magic != STEP_MAGIC or position != offset or crc32(packed[: HEAD.size], self.segment.seed) != checksum:
            return None
        return Head(offset, step_bytes, batches_bytes, previous, step_checksum, checksum)

    def step_of(self, head: Head) -> store_pb.Step | None:
        """The step behind the head; None if it is not what was written."""
        encoded = self.read(head.offset + HEAD_BYTES, head.step_bytes)
        if len(encoded) < head.step_bytes or crc32(encoded) != head.step_checksum:
            return None
        try:
            return store_pb.Step.FromString(encoded)
        except DecodeError:
            return None

    def damaged_batch(self, head: Head, step: store_pb.Step) -> int | None:
        """The offset of the first batch of the step, or of its END, that is not what was written; None if all is."""
        offset = head.batches_offset
        for batch in step.batches:
            checksum, left, position = 0, batch.size_bytes, offset
            while left > 0:
                piece = self.read(position, min(left, 1024 * 1024))
                if not piece:
                    return offset
                checksum = crc32(piece, checksum)
                left -= len(piece)
                position += len(piece)
            if checksum != batch.checksum:
                return offset
            offset += batch.size_bytes
        return None if self.read(head.last_byte, 1) == END else head.last_byte

    def used_after(self, offset: int) -> int:
        """How many bytes there are from offset on, the zeros at the end of the file left out."""
        used, position = 0, offset
        while piece := self.read(position, 1024 * 1024):
            position += len(piece)
            stripped = piece.rstrip(b"\0")
            if stripped:
                used = position - len(piece) + len(stripped) - offset
        return used

    def step_follows(self, offset: int) -> bool:
        """Whether the head of a step stands anywhere behind offset: the step at offset was synced before it."""
        position = offset
        while len(piece := self.read(position, 1024 * 1024)) >= HEAD_BYTES:
            at = piece.find(STEP_MAGIC)
            while at >= 0:
                if (position + at) % ALIGNMENT == 0 and position + at > offset and self._is_head(piece, at, position):
                    return True
                at = piece.find(STEP_MAGIC, at + 1)
            position += len(piece) - HEAD_BYTES + 1
        return False

    def _is_head(self, piece: bytes, at: int, position: int) -> bool:
        packed = piece[at : at + HEAD_BYTES]
        return (
            len(packed) == HEAD_BYTES
            and int.from_bytes(packed[16:24], "little") == position + at
            and crc32(packed[: HEAD.size], self.segment.seed).to_bytes(4, "little") == packed[HEAD.size :]
        )

    def may_be_torn(self, start: int, end: int) -> bool:
        """Whether a write of the bytes [start, end) that a crash interrupted could have left what stands there.

        A sector that was not written wholly ends with what stood there before: zeros. A sector that was written may, so
        the answer is no only if that is certain.
        """
        position = start
        while position < end:
            border = min((position // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
            if self.read(border - 1, 1) in (b"", b"\0"):
                return True
            position = border
        return False


# Files ----------------------------------------------------------------------------------------------------------------


def create_segment(directory: str, sequence: int, log_id: bytes, first_step: store_pb.Step) -> tuple[Segment, Head]:
    """Make the file of a segment that begins with the step. It is there whole and durably, or not at all.

    Raises OSError.
    """
    path = os.path.join(directory, file_name(sequence))
    temporary = path + ".new"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    segment = Segment(path, sequence, log_id, descriptor)
    header = HEADER.pack(MAGIC, FORMAT_VERSION, 0, sequence, log_id)
    header = (header + segment.seed.to_bytes(4, "little")).ljust(HEADER_BYTES, b"\0")
    head, pieces = segment.pack(first_step, [], HEADER_BYTES, segment.seed)
    segment.write([header, *pieces], 0, 0)
    os.fsync(descriptor)
    os.replace(temporary, path)
    sync_directory(directory)
    return segment, head


def open_segment(directory: str, sequence: int, *, writable: bool = False) -> Segment:
    """The segment of that number. Raises StorageError unless its header is right, and OSError."""
    path = os.path.join(directory, file_name(sequence))
    descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        log_id = _log_id(path, os.pread(descriptor, HEADER_BYTES, 0), sequence)
    except BaseException:
        os.close(descriptor)
        raise
    return Segment(path, sequence, log_id, descriptor)


def _log_id(path: str, header: bytes, sequence: int) -> bytes:
    """What the header says. Raises StorageError unless it is that of the segment in a format that we know."""

    def refused(kind: type[StorageError], what: str, advice: str = RESTORE_ADVICE) -> StorageError:
        return kind(f"{path} {what}. {advice}", path=path)

    if len(header) < HEADER_BYTES:
        raise refused(StorageCorrupt, f"has {len(header)} bytes, and a segment of a log has {HEADER_BYTES} at least")
    magic, version, _, found_sequence, log_id = HEADER.unpack_from(header)
    right = crc32(header[: HEADER.size]).to_bytes(4, "little") == header[HEADER.size : HEADER.size + 4]
    if not right and magic != MAGIC and not os.path.exists(os.path.join(os.path.dirname(path), LOCK_NAME)):
        raise refused(StorageForeign, "is no segment of a geraft log", "Name another directory")
    if not right or magic != MAGIC:
        raise refused(StorageCorrupt, "is damaged: the checksum of its header is wrong")
    if version > FORMAT_VERSION:
        raise refused(
            StorageFormatTooNew,
            f"has format {version} and this geraft knows formats up to {FORMAT_VERSION}",
            "Install the newer geraft",
        )
    if found_sequence != sequence:
        raise refused(StorageCorrupt, f"is segment {found_sequence} under a wrong name")
    return bytes(log_id)


LOCK_NAME: Final = "lock"


def sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
