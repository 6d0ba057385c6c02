"""Feeds bytes that are almost right to everything that decodes bytes: only the errors that it promises may come out.

python tests/fuzz/fuzzing.py [--seconds N] [TARGET ...]      what make fuzz runs, on one core
python tests/fuzz/fuzzing.py --write-corpus                  writes tests/fuzz/corpus anew

A mutated input that reaches lines of geraft that none before it reached is kept, and mutated further. Chance comes from
a seed. An input that breaks a promise is written to tests/fuzz/found; once its cause is mended it belongs into the
corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import grpc
from google.protobuf.message import DecodeError

import geraft
from geraft.core.entries import Ballot, EntryBatch, EntryId, EntryKind
from geraft.core.membership import Configuration, Member
from geraft.core.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from geraft.errors import GeraftError, NotLeader, StorageError
from geraft.kv import KeyValueApp, compare_and_set, delete, get, list_pairs, put
from geraft.pb import geraft_pb2 as pb
from geraft.records import BadRecord, decode_batch, encode_batch
from geraft.simple import FileRepository
from geraft.storage import SqliteStorage
from geraft.storage.base import Identity, RaftStorage
from geraft.storage.file import FileStorage
from geraft.testing import scenarios
from geraft.transport import carrier, codec
from geraft.transport.carrier import ProcessLink
from geraft.transport.failures import error_from_failure, failure_from_error
from geraft.transport.grpc_mode import NativeOutbox
from geraft.transport.pulse import Pulse

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
FOUND = HERE / "found"
PACKAGE = str(Path(geraft.__file__).parent)


@dataclass(frozen=True)
class Target:
    """decode: raises one of `allowed` at most, and AssertionError if what it gives is wrong. examples: good inputs.

    slow: touches the disk. in_tree: whether the examples lie in the corpus, or are made when they are needed.
    """

    name: str
    decode: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...]
    examples: Callable[[], Iterable[bytes]]
    slow: bool = False
    in_tree: bool = True


# What is decoded ------------------------------------------------------------------------------------------------------

CONFIGURATION = Configuration(
    voters=(Member("n1", "127.0.0.1:7001", "store1"), Member("n2", "127.0.0.1:7002")),
    learners=(Member("n3", "127.0.0.1:7003"),),
)
BATCHES = (
    EntryBatch(term=1, first_index=1, kind=EntryKind.CONFIGURATION, commands=(b"",), configuration=CONFIGURATION),
    EntryBatch(term=2, first_index=2, kind=EntryKind.NOOP, commands=(b"",)),
    EntryBatch(term=2, first_index=3, kind=EntryKind.COMMAND, commands=(b"set a 1", b"", b"\x00" * 40)),
)


def batch_examples() -> list[bytes]:
    return [encode_batch(batch) for batch in BATCHES]


def decode_log_record(data: bytes) -> None:
    """What is taken is understood: written again and read again it is the same."""
    batch = decode_batch(data)
    fresh = EntryBatch(
        term=batch.term,
        first_index=batch.first_index,
        kind=batch.kind,
        commands=batch.commands,
        configuration=batch.configuration,
    )
    assert decode_batch(encode_batch(fresh)) == batch


WIRE: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (pb.AppendEntryReq, codec.append_entries),
    (pb.AppendEntryRep, codec.append_entries_reply),
    (pb.HeartbeatReq, codec.heartbeat),
    (pb.HeartbeatRep, codec.heartbeat_reply),
    (pb.RequestVoteReq, lambda record: codec.request_vote(record, 1)),
    (pb.RequestVoteRep, codec.request_vote_reply),
    (pb.TimeoutNowReq, codec.timeout_now),
)


def decode_wire_message(data: bytes) -> None:
    """The first byte says which kind it is."""
    kind, decode = WIRE[data[0] % len(WIRE)] if data else WIRE[0]
    decode(codec.parse(kind.FromString, data[1:]))


def wire_examples() -> list[bytes]:
    who = {"sender": "n1", "sender_store": "store1", "term": 3}
    last = EntryId(2, 5)
    messages: list[Any] = [
        AppendEntries(**who, prev=EntryId(0, 0), batches=BATCHES, commit_index=4),
        AppendEntriesReply(**who, match_index=0, rejected=last, hint=EntryId(1, 1)),
        Heartbeat(**who, commit_index=4, round=7),
        HeartbeatReply(**who, round=7),
        RequestVote(**who, last_entry=last, pre_vote=True),
        RequestVoteReply(**who, granted=True),
        TimeoutNow(**who),
    ]
    return [bytes([number]) + codec.encode(message, "cluster", "n2") for number, message in enumerate(messages)]


class Listener:
    """A process with one group, as far as a stream from another one needs it: carrier.Carrier."""

    def __init__(self) -> None:
        self.hub = SimpleNamespace(post=lambda run: run())
        self.address = "127.0.0.1:7001"
        self.groups = {"a": SimpleNamespace(take=lambda header, message, replies: "")}

    def ended(self, arrivals: object, replies: object) -> None:
        pass


def take_requests(data: bytes) -> None:
    """Of another process: what is no message of its group ends nothing, and what can be of no group ends the stream."""
    outbox = NativeOutbox()
    arrivals: Any = carrier._Arrivals(Listener(), outbox, lambda: None)  # type: ignore[arg-type]
    arrivals.read(iter([as_parcel(data)]))
    for kind, answer in outbox:
        if kind == pb.ITEM_KIND_NOT_HEARD:
            assert pb.NotHeard.FromString(answer).sentence
    if arrivals.error is not None:
        status, error = arrivals.error
        assert status is grpc.StatusCode.INVALID_ARGUMENT, error
        raise codec.BadMessage(str(error))


def _mistake(message: str, *arguments: object) -> None:
    """In place of log.exception, which would be the end of what nobody expected."""
    raise AssertionError(message % arguments)


def take_replies(data: bytes) -> None:
    """Of a process that was dialled."""
    told = SimpleNamespace(
        peer="n1",
        _is_heard=lambda header: True,
        _services=SimpleNamespace(deliver=lambda message: None, deliver_note=lambda note: None),
        not_heard=lambda sentence, passing=False: None,
    )
    dialler: Any = SimpleNamespace(_links={("a", "n1"): told}, pulse=Pulse(lambda run: run()))
    dialler._taker = partial(ProcessLink._taker, dialler)
    dialler._take_pulse = partial(ProcessLink._take_pulse, dialler)
    dialler._take_not_heard = partial(ProcessLink._take_not_heard, dialler)
    dialler._take = ProcessLink.takers(dialler)
    with patch.object(carrier.log, "exception", _mistake):
        ProcessLink.take(dialler, as_parcel(data))


WHOLE = 0xFF


def as_parcel(data: bytes) -> bytes:
    """After WHOLE a parcel as it is. Else the first byte is the kind of one item, and what follows its message: inside
    of a parcel hardly any change of it would leave the lengths right."""
    if data[:1] == bytes([WHOLE]):
        return data[1:]
    return pb.Parcel(items=[pb.Item(kind=data[0] if data else 0, message=data[1:])]).SerializeToString()  # type: ignore[arg-type]


def parcel_examples(items: list[tuple[int, bytes]]) -> list[bytes]:
    """All in one parcel, and each by itself."""
    record = pb.Parcel()
    for kind, message in items:
        record.items.add(kind=kind, message=message)  # type: ignore[arg-type]
    return [bytes([WHOLE]) + record.SerializeToString(), *(bytes([kind]) + message for kind, message in items)]


def request_parcels() -> list[bytes]:
    who = {"sender": "n1", "sender_store": "store1", "term": 3}
    header = pb.Header(cluster_id="cluster", sender="n1", receiver="n2", sender_store="store1", term=3, group="a")
    rest = pb.RestReq(header=header, last_entry=pb.EntryId(term=2, index=5), number=3)
    items = [
        (pb.ITEM_KIND_APPEND_ENTRY_REQ, AppendEntries(**who, prev=EntryId(0, 0), batches=BATCHES, commit_index=4)),
        (pb.ITEM_KIND_HEARTBEAT_REQ, Heartbeat(**who, commit_index=4, round=7)),
        (pb.ITEM_KIND_REQUEST_VOTE_REQ, RequestVote(**who, last_entry=EntryId(2, 5), pre_vote=True)),
    ]
    encoded = [(kind, codec.encode(message, "cluster", "n2", "a")) for kind, message in items]
    encoded += [(pb.ITEM_KIND_PULSE_REQ, b""), (pb.ITEM_KIND_REST_REQ, rest.SerializeToString())]
    return parcel_examples(encoded)


def reply_parcels() -> list[bytes]:
    who = {"sender": "n1", "sender_store": "store1", "term": 3}
    header = pb.Header(cluster_id="cluster", sender="n1", receiver="n2", sender_store="store1", term=3, group="a")
    rest = pb.RestRep(header=header, number=3, resting=True)
    refused = pb.NotHeard(group="a", receiver="n1", sentence="no", unknown_group=True)
    items = [
        (
            pb.ITEM_KIND_APPEND_ENTRY_REP,
            AppendEntriesReply(**who, match_index=0, rejected=EntryId(2, 5), hint=EntryId(1, 1)),
        ),
        (pb.ITEM_KIND_HEARTBEAT_REP, HeartbeatReply(**who, round=7)),
        (pb.ITEM_KIND_REQUEST_VOTE_REP, RequestVoteReply(**who, granted=True)),
    ]
    encoded = [(kind, codec.encode(message, "cluster", "n2", "a")) for kind, message in items]
    encoded += [
        (pb.ITEM_KIND_PULSE_REP, b""),
        (pb.ITEM_KIND_REST_REP, rest.SerializeToString()),
        (pb.ITEM_KIND_NOT_HEARD, refused.SerializeToString()),
    ]
    return parcel_examples(encoded)


def decode_failure(data: bytes) -> None:
    assert isinstance(error_from_failure(pb.Failure.FromString(data)), GeraftError)


def failure_examples() -> list[bytes]:
    errors = (NotLeader("ask n2", leader_id="n2", leader_address="127.0.0.1:7002"), ValueError("no"))
    return [failure_from_error(error).SerializeToString() for error in errors]


def write_key_value(data: bytes) -> None:
    """Whatever a command is, it is answered: an exception would stop every replica at this entry."""
    app = KeyValueApp()
    app.process_write(put("a", b"1"), 1)
    reply = app.process_write(data, 2)
    assert isinstance(reply if isinstance(reply, bytes) else reply[0], bytes)
    again = KeyValueApp()
    again.restore(app.snapshot())
    assert again.snapshot() == app.snapshot()


def read_key_value(data: bytes) -> None:
    app = KeyValueApp()
    app.process_write(put("a", b"1"), 1)
    assert isinstance(app.process_read(data), bytes)


def command_examples() -> list[bytes]:
    return [put("a", b"value"), delete("a"), compare_and_set("a", b"1", b"2"), compare_and_set("b", None, b"3")]


def replay_scenario(data: bytes) -> None:
    """No story that can be told breaks Raft, and one that can't be is refused."""
    scenarios.replay(data[:600].decode("utf-8", errors="replace"))


def scenario_examples() -> list[bytes]:
    return [path.read_bytes() for path in sorted((HERE.parent / "scenarios").glob("*.txt"))]


def snapshot_file(data: bytes) -> None:
    """What is read from a damaged file is what was saved, or is refused."""
    with tempfile.TemporaryDirectory() as directory:
        repository = FileRepository(directory)
        repository.save(7, [SNAPSHOT[:100], SNAPSHOT[100:]])
        (path,) = [path for path in Path(directory).iterdir() if path.is_file()]
        path.write_bytes(data)
        assert b"".join(repository.open(7)) == SNAPSHOT


SNAPSHOT = bytes(range(256)) * 2


def snapshot_examples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        FileRepository(directory).save(7, [SNAPSHOT])
        (path,) = [path for path in Path(directory).iterdir() if path.is_file()]
        return [path.read_bytes()]


def _write_store(storage: RaftStorage) -> None:
    storage.open()
    storage.initialise(Identity("cluster", "n1", "store1"), BATCHES[:1])
    storage.write(Ballot(2, "n1"), BATCHES[1:])
    storage.write(Ballot(3, "n2"), [EntryBatch(term=3, first_index=6, kind=EntryKind.COMMAND, commands=(b"last",))])
    storage.close()


def _read_store(storage: RaftStorage) -> None:
    """What is read is what was written, as far as it goes: damage is named, never taken for entries."""
    try:
        state = storage.open()
        written = {1: (1, b""), 2: (2, b""), 3: (2, b"set a 1"), 4: (2, b""), 5: (2, b"\x00" * 40), 6: (3, b"last")}
        for batch in storage.read(1, state.last_entry.index, 1 << 20):
            for index, command in enumerate(batch.commands, batch.first_index):
                assert written[index] == (batch.term, command), f"entry {index} is not what was written"
        assert state.ballot in (Ballot(0), Ballot(2, "n1"), Ballot(3, "n2")), f"nobody wrote {state.ballot}"
    finally:
        storage.close()


def file_store(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        _write_store(FileStorage(path))
        segment = _last_segment(path)
        segment.write_bytes(data.ljust(segment.stat().st_size, b"\0"))  # what is allocated beyond its end is zero
        _read_store(FileStorage(path))


def _last_segment(path: Path) -> Path:
    return max(file for file in path.iterdir() if file.stat().st_size > 100)


def file_store_examples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        _write_store(FileStorage(path))
        return [_last_segment(path).read_bytes().rstrip(b"\0")]


def sqlite_store(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "n1.db"
        path.write_bytes(data)
        _read_store(SqliteStorage(path))


def sqlite_examples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "n1.db"
        _write_store(SqliteStorage(path))
        return [path.read_bytes()]


TARGETS = {
    target.name: target
    for target in (
        Target("log_record", decode_log_record, (BadRecord,), batch_examples),
        Target("wire_message", decode_wire_message, (codec.BadMessage,), wire_examples),
        Target("request_parcel", take_requests, (codec.BadMessage,), request_parcels),
        Target("reply_parcel", take_replies, (codec.BadMessage,), reply_parcels),
        Target("failure", decode_failure, (DecodeError,), failure_examples),
        Target("kv_command", write_key_value, (), command_examples),
        Target("kv_query", read_key_value, (ValueError,), lambda: [get("a"), list_pairs("a", 3)]),
        Target("scenario", replay_scenario, (scenarios.ScenarioError,), scenario_examples, slow=True, in_tree=False),
        Target("snapshot_file", snapshot_file, (StorageError,), snapshot_examples, slow=True),
        Target("file_store", file_store, (StorageError,), file_store_examples, slow=True),
        Target("sqlite_store", sqlite_store, (StorageError,), sqlite_examples, slow=True, in_tree=False),
    )
}


def corpus_of(target: Target) -> list[bytes]:
    """The good examples, and what the corpus holds beside them: inputs that once did harm."""
    files = sorted((CORPUS / target.name).glob("*"))
    return [*(() if target.in_tree and files else target.examples()), *(file.read_bytes() for file in files)]


# How --------------------------------------------------------------------------------------------------------------

TELLING_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The input, with up to four small changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 2, 4, 16))
        match rng.randrange(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = rng.randbytes(size)
            case 4:
                changed[at:at] = changed[at : at + size * 4]
            case 5:  # where protobuf may have a number or a length
                changed[at : at + rng.randrange(3)] = varint(rng.choice(TELLING_NUMBERS))
            case 6:  # a field of any number and type
                changed[at:at] = varint(rng.randrange(1, 20) << 3 | rng.randrange(6)) + varint(rng.randrange(300))
            case _:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                changed[at:] = other[start:]
    return bytes(changed)


@dataclass
class Outcome:
    """kept: inputs that reached new lines. broken: what broke a promise, by how."""

    runs: int = 0
    kept: list[bytes] = field(default_factory=list)
    broken: dict[str, bytes] = field(default_factory=dict)


def fuzz(target: Target, seconds: float, seed: int) -> Outcome:
    """Try mutations for so long, at least ten of them, and every input of the corpus."""
    rng = random.Random(seed)
    outcome = Outcome()
    seen: set[tuple[str, int]] = set()
    inputs = corpus_of(target)
    pool = list(inputs)

    def lines_of(frame: FrameType, what: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return lines_of

    end = time.monotonic() + seconds
    while inputs or outcome.runs < 10 or time.monotonic() < end:
        data = inputs.pop() if inputs else mutate(rng, rng.choice(pool), pool)
        reached: set[tuple[str, int]] = set()
        before = sys.gettrace()
        sys.settrace(lines_of)
        try:
            target.decode(data)
        except target.allowed:
            pass
        except BaseException as error:
            outcome.broken.setdefault(f"{type(error).__name__}: {str(error)[:80]}", data)
        finally:
            sys.settrace(before)
        outcome.runs += 1
        if not reached <= seen:
            seen |= reached
            if data not in pool:
                pool.append(data)
                outcome.kept.append(data)
    return outcome


def write_corpus() -> None:
    for target in TARGETS.values():
        if target.in_tree:
            directory = CORPUS / target.name
            directory.mkdir(parents=True, exist_ok=True)
            for number, example in enumerate(target.examples(), start=1):
                (directory / f"good-{number}").write_bytes(example)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=30.0, help="for each target")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--write-corpus", action="store_true")
    options = parser.parse_args()
    if options.write_corpus:
        write_corpus()
        return 0
    logging.disable(logging.CRITICAL)  # of the damage that is found
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    broken = 0
    for name in options.targets:
        outcome = fuzz(TARGETS[name], options.seconds, seed)
        tried = f"{outcome.runs} inputs, {len(outcome.kept)} kept, {len(outcome.broken)} promises broken"
        print(f"{name}: {tried} (seed {seed})")
        for how, data in outcome.broken.items():
            broken += 1
            FOUND.mkdir(exist_ok=True)
            path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"  {how}\n  in {path}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
