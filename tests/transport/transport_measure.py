"""Round trips between two transports in two processes: python tests/transport/transport_measure.py [--patched]

Prints the latency of one small append at a time, and the rate of appends of 200 x 100 bytes, 1 and 8 in flight.
"""

from __future__ import annotations

import sys

if "--patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import subprocess
import time

from gevent import monkey as state
from transport_harness import Peer, batch, wait_until

from geraft.core.messages import AppendEntriesReply

allocate = state.get_original("_thread", "allocate_lock")


def serve() -> None:
    with Peer("n2") as peer:
        peer.on_delivered = lambda message: None
        print(peer.address, flush=True)
        while sys.stdin.readline():
            print(time.process_time(), flush=True)


def main() -> None:
    arguments = [sys.executable, __file__, "--serve"]
    if "--patched" in sys.argv:
        arguments.append("--patched")
    child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = child.stdout.readline().strip()
        with Peer("n1") as peer:
            for what in (ping, lambda *to: stream(*to, 1), lambda *to: stream(*to, 8)):
                before = cpu_seconds(child)
                count = what(peer, address)
                ours, theirs = (after - start for after, start in zip(cpu_seconds(child), before, strict=True))
                print(f"    processor time per message: {ours / count * 1e6:.0f} + {theirs / count * 1e6:.0f} us")
    finally:
        child.stdin.close()
        child.wait(10)


def cpu_seconds(child: subprocess.Popen[str]) -> tuple[float, float]:
    child.stdin.write("\n")
    child.stdin.flush()
    return time.process_time(), float(child.stdout.readline())


def ping(peer: Peer, address: str) -> int:
    """Each reply sends the next append, as a node loop would."""
    peer.transport.set_peers({"n2": address})
    times: list[float] = []
    one = peer.append(batch())
    sent = 0.0

    def again(message: object) -> None:
        nonlocal sent
        now = time.perf_counter()
        times.append(now - sent)
        sent = time.perf_counter()
        if len(times) < 4000:
            peer.transport.send("n2", one)

    def begin(message: object) -> None:
        pass

    peer.on_delivered = begin
    wait_until(lambda: peer.transport.send("n2", one) or peer.has_event("connected"))
    time.sleep(0.5)
    peer.on_delivered = again
    sent = time.perf_counter()
    peer.transport.send("n2", one)
    wait_until(lambda: len(times) >= 4000, timeout_seconds=60)
    measured = sorted(times[200:])
    p50, p90, p99 = (1e3 * measured[int(len(measured) * part)] for part in (0.5, 0.9, 0.99))
    print(f"ping-pong 1x100 B: p50 {p50:.3f} ms, p90 {p90:.3f} ms, p99 {p99:.3f} ms")
    return len(times)


def stream(peer: Peer, address: str, window: int) -> int:
    count = 6000
    done = 0
    finished = allocate()
    finished.acquire()

    def again(message: object) -> None:
        nonlocal done
        assert isinstance(message, AppendEntriesReply)
        done += 1
        if done + window <= count:
            peer.transport.send("n2", peer.append(batch(1, 200)))
        if done == count:
            finished.release()

    peer.on_delivered = again
    start = time.perf_counter()
    for _ in range(window):
        peer.transport.send("n2", peer.append(batch(1, 200)))
    wait_until(lambda: done >= count, timeout_seconds=120)
    seconds = time.perf_counter() - start
    rate = count / seconds
    print(f"appends of 200x100 B, window {window}: {rate:.0f} messages/s, {200 * rate:.0f} entries/s")
    return count


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
