"""Apps that are wrong on purpose, and some that are right in an unusual way; other processes import them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, ClassVar

from geraft.app import MakeSnapshot, RaftApp
from geraft.simple import MemoryRepository, SimpleRaftApp


class Words(SimpleRaftApp):
    """Right: counts words, as JSON."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def process_read(self, request: bytes) -> bytes:
        return json.dumps(self.state.get(request.decode())).encode()

    def process_write(self, request: bytes, entry_index: int) -> bytes:
        word = request.decode()
        self.state[word] = self.state.get(word, 0) + 1
        return b"%d" % self.state[word]

    def snapshot(self) -> bytes:
        return json.dumps(self.state).encode()

    def restore(self, snapshot: bytes | None) -> None:
        self.state = json.loads(snapshot) if snapshot is not None else {}


class ReadsTheClock(Words):
    def process_write(self, request: bytes, entry_index: int) -> bytes:
        self.state[request.decode()] = time.time()
        return b""


class ReadsTheDate(Words):
    def process_write(self, request: bytes, entry_index: int) -> bytes:
        return datetime.now().isoformat().encode()


class DrawsNumbers(Words):
    def process_write(self, request: bytes, entry_index: int) -> bytes:
        return b"%d" % random.randrange(2**32)


class RepliesInSetOrder(Words):
    def process_write(self, request: bytes, entry_index: int) -> bytes:
        super().process_write(request, entry_index)
        return " ".join({*self.state, "one", "two", "three", "four", "five"}).encode()


class StoresInSetOrder(Words):
    """The snapshot is text, which is compared to the byte."""

    def snapshot(self) -> bytes:
        return "\n".join(f"{word} {self.state[word]}" for word in set(self.state)).encode()

    def restore(self, snapshot: bytes | None) -> None:
        pairs = (line.split() for line in (snapshot or b"").decode().splitlines())
        self.state = {word: int(count) for word, count in pairs}


class ForgetsOverASnapshot(Words):
    """How many commands there were is in no snapshot, but in the replies."""

    def __init__(self) -> None:
        super().__init__()
        self.commands = 0

    def process_write(self, request: bytes, entry_index: int) -> bytes:
        super().process_write(request, entry_index)
        self.commands += 1
        return b"tenth" if self.commands == 10 else b""


class LosesAKey(Words):
    def restore(self, snapshot: bytes | None) -> None:
        super().restore(snapshot)
        self.state.pop("beta", None)


class SharesState(Words):
    everything: ClassVar[dict[str, Any]] = {}

    def process_write(self, request: bytes, entry_index: int) -> bytes:
        word = request.decode()
        self.everything[word] = self.everything.get(word, 0) + 1
        return b"%d" % self.everything[word]


class FoldsWrongly(Words):
    def fold(self, old_snapshot: bytes | None, requests: Sequence[bytes]) -> bytes:
        return super().fold(old_snapshot, [request for request in requests if request != b"gamma"])


class Raises(Words):
    def process_write(self, request: bytes, entry_index: int) -> bytes:
        if request == b"gamma":
            raise KeyError("gamma")
        return b""


class CanNotRestore(Words):
    def restore(self, snapshot: bytes | None) -> None:
        if snapshot is not None:
            raise RuntimeError("out of order")


class NeedsAnArgument(Words):
    def __init__(self, first: str) -> None:
        super().__init__()


def make_with_an_argument() -> NeedsAnArgument:
    return NeedsAnArgument("x")


class LongHand(RaftApp):
    """Right: a RaftApp that makes a copy after every third entry, and folds nothing."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.stored = MemoryRepository()

    def process_read(self, request: bytes) -> bytes:
        return b"%d" % len(self.words)

    def process_write(self, request: bytes, entry_index: int) -> tuple[bytes, MakeSnapshot]:
        self.words.append(request.decode())
        if entry_index % 3:
            return b"%d" % len(self.words), MakeSnapshot.NONE
        self.stored.save(entry_index, [json.dumps(self.words).encode()])
        return b"%d" % len(self.words), MakeSnapshot.COPY

    def install_snapshot(self, snapshot_index: int | None) -> None:
        self.words = [] if snapshot_index is None else json.loads(b"".join(self.stored.open(snapshot_index)))

    def fold_snapshot(self, old_snapshot_index: int | None, requests: Sequence[bytes], snapshot_index: int) -> None:
        raise NotImplementedError("it copies")

    def save_snapshot(self, chunks: Iterable[bytes], snapshot_index: int) -> None:
        self.stored.save(snapshot_index, chunks)

    def open_snapshot(self, snapshot_index: int) -> Iterator[bytes]:
        return self.stored.open(snapshot_index)

    def delete_snapshot(self, snapshot_index: int) -> None:
        self.stored.delete(snapshot_index)


class LongHandForgets(LongHand):
    def install_snapshot(self, snapshot_index: int | None) -> None:
        super().install_snapshot(snapshot_index)
        self.words = self.words[:7]
