"""A process that hosts a node of the key-value store beside work of its own, which it is told on stdin.

    python host.py [patched] ID DATA_DIR ID=ADDRESS ID=ADDRESS ...

Each line is a verb with its arguments; each is answered by one line of JSON, which names the GeraftError if one came.
"""

import sys

if sys.argv[1] == "patched":
    from gevent import monkey

    monkey.patch_all()
    del sys.argv[1]

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gevent

from geraft import Config, FileRepository, RaftNode, SqliteStorage, to_raft_app
from geraft.errors import GeraftError, OutcomeUnknown
from geraft.kv import KeyValueApp, decode_value, get, put


def sleep(seconds: str) -> str:
    time.sleep(float(seconds))
    return "slept"


def compute(seconds: str) -> int:
    """In pure Python, without a pause."""
    end, rounds = time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        rounds += sum(range(100)) > 0
    return rounds


def write_surely(key: str, value: bytes, timeout_seconds: float = 40.0) -> bytes:
    """Again, if the outcome is unknown: the same value twice is no harm."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return node.apply(put(key, value), max(left, 0.1))
        except OutcomeUnknown:
            if left < 0:
                raise


def write_from_greenlets(count: str) -> int:
    """So many at once, each a write of its own; gives how many of them can be read afterwards."""
    greenlets = [gevent.spawn(write_surely, f"greenlet/{n}", b"%d" % n) for n in range(int(count))]
    gevent.joinall(greenlets, raise_error=True)
    return sum(decode_value(node.read(get(f"greenlet/{n}"))) == b"%d" % n for n in range(int(count)))


def write_from_threads(count: str) -> int:
    """The same from threads; in a patched process these are greenlets too."""
    with ThreadPoolExecutor(int(count)) as threads:
        list(threads.map(lambda n: write_surely(f"thread/{n}", b"%d" % n), range(int(count))))
        values = threads.map(lambda n: decode_value(node.read(get(f"thread/{n}"))), range(int(count)))
        return sum(value == b"%d" % n for n, value in enumerate(values))


def transfer(target: str) -> str:
    node.transfer_leadership(target)
    return node.wait_for_leader()


def use_in_fork() -> dict[str, object]:
    """What a forked child gets when it uses the node of its parent, and after how long."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answers = {}
        began = time.monotonic()
        for name, use in {
            "apply": lambda: node.apply(put("forked", b"1")),
            "read": lambda: node.read(get("forked")),
            "stale": lambda: node.read(get("forked"), "stale"),
            "status": node.status,
            "wait_for_leader": node.wait_for_leader,
            "transfer_leadership": node.transfer_leadership,
        }.items():
            try:
                answers[name] = f"answered {use()}"
            except BaseException as error:
                answers[name] = type(error).__name__
        try:
            node.stop()  # must not touch what is the parent's
        except BaseException as error:
            answers["stop"] = type(error).__name__
        answers["seconds"] = time.monotonic() - began
        os.write(writing, json.dumps(answers).encode())
        os._exit(0)
    answers = json.loads(os.read(reading, 4096))  # not to the end of the pipe: gevent closes our other end later
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    return answers


def write(key: str, value: str) -> str:
    return write_surely(key, value.encode()).hex()


def read(key: str) -> str:
    return (decode_value(node.read(get(key), timeout_seconds=30.0)) or b"").decode()


def end() -> str:
    """Leave the main program without stopping the node."""
    print(json.dumps("ending"), flush=True)
    sys.exit(0)


VERBS = {
    verb.__name__: verb
    for verb in (
        sleep,
        compute,
        write_from_greenlets,
        write_from_threads,
        transfer,
        use_in_fork,
        write,
        read,
        end,
    )
}

node_id, data_dir, *members = sys.argv[1:]
node = RaftNode(
    to_raft_app(KeyValueApp(), FileRepository(Path(data_dir) / "snapshots")),
    SqliteStorage(Path(data_dir) / "log.db"),
    id=node_id,
    bootstrap=dict(member.split("=") for member in members),
    config=Config(acceptable_pause_seconds=3.0),  # a slow machine may let a process stand still for two seconds
)
node.start()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    verb, *arguments = line.split()
    try:
        answer = VERBS[verb](*arguments)
    except GeraftError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
node.stop()
