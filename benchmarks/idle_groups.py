"""What many idle groups cost: three processes, each with a node of every group, on SQLite.

    python benchmarks/idle_groups.py [--groups 1000] [--seconds 10] [--awake]

Tells how long it took until every group had a leader and rested, what each process then used of a core and of memory,
how long a write to a group takes that rests, and how long groups are without a leader when a process is killed.
--awake: groups never rest, for comparison.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from geraft import Config, RaftHost, RaftNode, SqliteStorage, signals, to_raft_app
from geraft.kv import KeyValueApp, put
from geraft.simple import MemoryRepository
from geraft.testing.cluster import free_addresses

IDS = ("n1", "n2", "n3")


def serve(pipe: Connection, id: str, members: dict[str, str], groups: int, folder: str, rest_after: float) -> None:
    """One process: starts its nodes, then answers what it is asked."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    leaders: dict[str, str] = {}  # by group, as its node here learned last

    def note(node: RaftNode, leader_id: str, term: int) -> None:
        leaders[node.group] = leader_id

    signals.leader_changed.connect(note)
    with RaftHost(members[id], config=Config(), rest_after_seconds=rest_after) as host:
        pipe.send("listens")
        pipe.recv()
        for number in range(groups):
            name = f"g{number}"
            app = to_raft_app(KeyValueApp(), MemoryRepository())
            storage = SqliteStorage(os.path.join(folder, f"{name}.db"))
            host.node(name, app, storage, id=id, bootstrap=members).start()
        pipe.send("started")
        nodes = host.nodes
        while (asked := pipe.recv()) is not None:
            pipe.send(answer(asked, nodes, leaders, id))


def answer(asked: tuple[str, Any], nodes: dict[str, RaftNode], leaders: dict[str, str], id: str) -> Any:
    match asked:
        case ("led", _):  # asked while elections are under way: costs no node anything
            now = leaders.copy()
            return sum(map(bool, now.values())), [group for group, leader in now.items() if leader == id]
        case ("who is awake", _):
            said = {group: node.status().explanation for group, node in nodes.items()}
            return [f"{id} of {group}: {sentence}" for group, sentence in said.items() if "rests" not in sentence]
        case ("use", _):
            used = resource.getrusage(resource.RUSAGE_SELF)
            with open("/proc/self/status") as file:
                memory = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
            with open("/proc/self/stat") as file:
                threads = int(file.read().rsplit(")", 1)[1].split()[17])
            return used.ru_utime + used.ru_stime, memory / 1024, threads
        case ("write", groups):
            took = []
            for group in groups:
                started = time.perf_counter()
                nodes[group].apply(put(b"key", b"value"), timeout_seconds=30.0)
                took.append(time.perf_counter() - started)
            return took
    raise ValueError(asked)


def ask(pipes: list[Connection], kind: str, argument: Any = None) -> list[Any]:
    for pipe in pipes:
        pipe.send((kind, argument))
    return [pipe.recv() for pipe in pipes]


def wait_until_led(pipes: list[Connection], groups: int, limit_seconds: float) -> tuple[float, list[list[str]]]:
    """Until every group has a leader in one of the processes, and each node knows one; also which groups each leads."""
    started = time.monotonic()
    while True:
        states = ask(pipes, "led")
        led = {group for _, leads in states for group in leads}
        if len(led) == groups and all(known == groups for known, _ in states):
            return time.monotonic() - started, [leads for _, leads in states]
        if time.monotonic() - started > limit_seconds:
            raise SystemExit(f"{groups - len(led)} groups have no leader after {limit_seconds} s")
        time.sleep(0.1)


def wait_until_all_rest(pipes: list[Connection], limit_seconds: float) -> float:
    started = time.monotonic()
    while awake := [sentence for said in ask(pipes, "who is awake") for sentence in said]:
        if time.monotonic() - started > limit_seconds:
            raise SystemExit(f"{len(awake)} nodes do not rest after {limit_seconds} s: {'; '.join(awake[:3])}")
        time.sleep(1.0)
    return time.monotonic() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--groups", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--awake", action="store_true")
    given = arguments.parse_args()
    context = multiprocessing.get_context("spawn")
    members = dict(zip(IDS, free_addresses(3), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for id in IDS:
            ours, theirs = context.Pipe()
            own = os.path.join(folder, id)
            os.mkdir(own)
            rest_after = 0.0 if given.awake else 0.3
            process = context.Process(target=serve, args=(theirs, id, members, given.groups, own, rest_after))
            process.start()
            pipes.append(ours)
            processes.append(process)
        try:
            measure(pipes, processes, given.groups, given.seconds, resting=not given.awake)
        finally:
            for process in processes:
                process.kill()
                process.join()


def measure(pipes: list[Connection], processes: list[Any], groups: int, seconds: float, *, resting: bool) -> None:
    for pipe in pipes:
        pipe.recv()
    started = time.monotonic()
    for pipe in pipes:
        pipe.send("go")
    for pipe in pipes:
        pipe.recv()
    print(f"{groups} groups, a node of each in 3 processes: started in {time.monotonic() - started:.1f} s", flush=True)
    took, all_leads = wait_until_led(pipes, groups, 120.0)
    print(
        f"all have a leader {took:.1f} s later; they lead {', '.join(str(len(leads)) for leads in all_leads)}", end=""
    )
    print(f"; all rest {wait_until_all_rest(pipes, 120.0):.1f} s later" if resting else "", flush=True)
    before = ask(pipes, "use")
    time.sleep(seconds)
    after = ask(pipes, "use")
    for id, (cpu_before, _, _), (cpu_after, memory, threads) in zip(IDS, before, after, strict=True):
        print(f"{id}: {100 * (cpu_after - cpu_before) / seconds:.1f} % of a core, {memory:.0f} MiB, {threads} threads")
    for pipe, leads in zip(pipes, all_leads, strict=True):
        pipe.send(("write", leads[:20]))
    times = [each for pipe in pipes for each in pipe.recv()]
    print(
        f"first write to a group that rested: p50 {1000 * statistics.median(times):.1f} ms, max {1000 * max(times):.1f}"
    )
    processes[0].kill()
    took, _ = wait_until_led(pipes[1:], groups, 120.0)
    print(f"n1 killed: every group has a leader again after {took:.1f} s", end="")
    print(f"; all rest {wait_until_all_rest(pipes[1:], 120.0):.1f} s later" if resting else "", flush=True)
    before = ask(pipes[1:], "use")
    time.sleep(seconds)
    after = ask(pipes[1:], "use")
    for id, (cpu_before, _, _), (cpu_after, _, _) in zip(IDS[1:], before, after, strict=True):
        print(f"{id}: {100 * (cpu_after - cpu_before) / seconds:.1f} % of a core")


if __name__ == "__main__":
    main()
